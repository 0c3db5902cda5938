/** The text as tokens, shaded by what one of them attends to, or by what attends to it. */

const NAMED = 5; // of the strongest tokens, those that bear their percentage
const SAID = 4; // and those that the sentence names
const NAMEABLE = 0.01; // share from which a token is named

class TokenText {
  constructor(view) {
    this.view = view;
    this.looked = null;
    this.list = piece("div.tokens", { role: "listbox", "aria-orientation": "horizontal", dir: "ltr",
      "aria-label": "tokens of the text; the chosen one's attention is shaded" });
    this.sentence = piece("p.sentence", { "aria-live": "polite" });
    this.hint = piece("p.hint", {}, "Point at a token, or walk with the arrow keys; Enter or a click pins it, Escape lets go.");
    // What changes its height stands below the tokens, or they would move away under the pointer.
    this.root = piece("div.text", {}, this.list, this.sentence, this.hint);
    const token = ({ target }) => target.closest("[role=option]")?.place ?? null;
    const on = (event, handler) => this.list.addEventListener(event, handler);
    on("pointerover", (event) => { if (event.pointerType !== "touch") this.look(token(event)); });
    on("pointerleave", () => this.look(null));
    on("click", (event) => { if (token(event) !== null) this.choose(token(event), true); });
    on("keydown", (event) => this.onKey(event));
    // The name of a focused token says it all already; the sentence speaks for all other changes.
    on("focusin", () => put(this.sentence, { "aria-live": "off" }));
    on("focusout", () => put(this.sentence, { "aria-live": "polite" }));
  }

  build() {
    const { tokens } = this.view.data;
    const focused = this.list.contains(this.list.getRootNode().activeElement);
    const items = tokens.map((text, place) => {
      const item = piece("span", { role: "option", tabindex: "-1", "aria-selected": "false" },
        piece("bdi", {}, text), piece("i", { "aria-hidden": "true" }));
      item.place = place;
      return item;
    });
    this.list.replaceChildren(...items);
    this.items = items;
    this.looked = this.stop = null;
    if (focused) this.items[this.token].focus({ preventScroll: true });
  }

  /** The token that is looked at: under the pointer or the keys, else the chosen one. */
  get token() {
    return (this.view.get("pinned") ? null : this.looked) ?? this.chosen;
  }

  get chosen() {
    const { token = 0 } = this.view.get("selected");
    return Math.min(Math.max(0, token), this.view.data.tokens.length - 1);
  }

  look(token) {
    if (token === this.looked) return;
    this.looked = token;
    if (!this.view.get("pinned")) this.show();
  }

  /** Chooses a token; a second time on a pinned one lets it go. */
  choose(token, pins) {
    const again = pins && this.view.get("pinned") && token === this.chosen;
    this.looked = null;
    if (token !== this.chosen) this.view.set("selected", { ...this.view.get("selected"), token });
    if (pins) this.view.set("pinned", !again);
    this.show();
  }

  show() {
    const { view } = this;
    if (!view.data || !view.shown || !view.surface || !this.items) return;
    const token = this.token;
    const ties = view.shown.ties(token, view.get("direction"));
    const shares = new Map(ties);
    const named = new Set(ties.slice(0, NAMED).filter(([, weight]) => weight >= NAMEABLE).map(([other]) => other));
    this.items.forEach((item, place) => this.paint(item, place === token, shares.get(place), named.has(place)));
    this.stop?.setAttribute("tabindex", "-1");
    this.stop = this.items[this.chosen];
    this.stop.setAttribute("tabindex", "0");
    this.say(token, ties);
    this.view.root.classList.toggle("lens-heads-pinned", view.get("pinned"));
    view.pattern.mark();
  }

  /** Scrolls the tokens, never the page, until one of them is in sight. */
  reveal(place) {
    const [item, { list }] = [this.items?.[place], this];
    if (!item || list.scrollHeight <= list.clientHeight) return;
    const top = item.offsetTop;
    if (top < list.scrollTop || top + 2 * item.offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = top - list.clientHeight / 2;
    }
  }

  paint(item, here, weight, named) {
    const shade = weight === undefined ? null : this.view.shade(weight);
    const style = shade ? `background:${css(shade.background)};color:${css(shade.ink)}` : "";
    put(item, { style, class: [here ? "lens-heads-here" : "", shade ? "" : "lens-heads-unseen"].filter(Boolean).join(" "),
      "aria-selected": String(here) });
    say(item.lastChild, named ? String(Math.max(1, Math.round(100 * weight))) : "");
  }

  // ── Words ──

  say(token, ties) {
    const direction = this.view.get("direction");
    const name = [quote(this.view.pattern.name(token)), ` (token ${token}) `];
    const strong = ties.filter(([, weight]) => weight >= NAMEABLE).slice(0, SAID);
    const rest = ties.slice(strong.length);
    const parts = direction === "to" ? this.attends(token, strong, rest, ties) : this.attended(strong, rest);
    this.sentence.replaceChildren(...name, ...parts);
    const spoken = `token ${token}, ${[...this.sentence.childNodes].map((node) => node.textContent).join("")}`;
    put(this.items[token], { "aria-label": spoken });
  }

  attends(token, strong, rest, ties) {
    const { shown } = this.view;
    const total = ties.reduce((sum, [, weight]) => sum + weight, 0);
    if (!ties.length) return ["has no attention left without the first token."];
    if (ties.length === 1 && token === 0) return ["is the first token: there is only itself to attend to."];
    const list = strong.flatMap(([other, weight], n) => [n ? ", " : "", this.other(other, token), ` ${percent(weight)}`]);
    const left = rest.reduce((sum, [, weight]) => sum + weight, 0);
    const ends = [];
    if (shown.tile > 1) ends.push(`; its ${ties.length} strongest keys hold ${percent(total)}, the others are not shown`);
    else if (rest.length) ends.push(`; ${rest.length === 1 ? "one other" : `${rest.length} others`} ${percent(left)} together`);
    if (shown.tile === 1 && total < 0.995) ends.push(`; ${percent(1 - total)} goes to no token`);
    return ["attends to ", ...(list.length ? list : ["no token with 1 % or more"]), ...ends, "."];
  }

  attended(strong, rest) {
    if (!strong.length) return ["gets under 1 % from every token that sees it."];
    const list = strong.flatMap(([other, weight], n) => [n ? ", " : "", `${percent(weight)} from `, this.other(other, -1)]);
    const { shown } = this.view;
    const less = rest.length ? `; at most ${percent(rest[0][1])} from ${rest.length === 1 ? "one other" : `each of ${rest.length} others`}` : "";
    const only = shown.tile > 1 ? `, counting queries that have it among their ${shown.most} strongest keys` : "";
    return ["gets, of the attention of each later token, ", ...list, `${less}${only}.`];
  }

  other(place, token) {
    return place === token ? "itself" : quote(this.view.pattern.name(place));
  }

  // ── Keys ──

  onKey(event) {
    const [here, last] = [this.chosen, this.items.length - 1];
    const target = event.altKey ? undefined : {
      ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last, ArrowUp: this.line(here, -1), ArrowDown: this.line(here, 1) }[event.key];
    if (target === undefined && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    const inside = Math.min(last, Math.max(0, target ?? here));
    this.choose(inside, target === undefined);
    this.items[inside].focus({ preventScroll: true });
    this.items[inside].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /** The token above or below in the lines as they are broken now. */
  line(here, by) {
    const top = (n) => this.items[n].offsetTop;
    const middle = (n) => this.items[n].offsetLeft + this.items[n].offsetWidth / 2;
    const tops = [...new Set(this.items.map((_, n) => top(n)))].sort((a, b) => a - b);
    const wanted = tops[tops.indexOf(top(here)) + by];
    if (wanted === undefined) return here;
    const there = this.items.map((_, n) => n).filter((n) => top(n) === wanted);
    return there.reduce((best, n) => (Math.abs(middle(n) - middle(here)) < Math.abs(middle(best) - middle(here)) ? n : best));
  }
}
