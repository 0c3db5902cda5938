/**
 * The token grid: what a model would say at every layer and position.
 *
 * Python owns the numbers (`spec`, `trajectory`); this module owns what a reader does with them (colour, stride,
 * selection), so those answer at once and also without a kernel. One direction only: a gesture sets a trait, the
 * trait's change event repaints. Token text is data: it reaches the page through textContent and attributes alone.
 * Colours and the page's theme come from theme.js, which stands before this text in the finished module.
 */

const make = maker("lens-grid");
const SPOKEN = {
  ",": "comma", ".": "full stop", ":": "colon", ";": "semicolon", "-": "hyphen", "–": "dash", "—": "dash",
  "(": "opening bracket", ")": "closing bracket", "\"": "quote", "'": "apostrophe", "!": "exclamation mark",
  "?": "question mark", "/": "slash", "·": "space", "↵": "line break",
};
const EMPTY = {
  spec: {}, colour: "", stride: 1, strides: [1], selected: [0, 0], pinned: false, follow: {}, trajectory: {}, busy: {},
  choices: [],
};
// Every widget of a page can come with its own copy of this module, so the counter belongs to the page.
const SERIAL = Symbol.for("lens-grid-serial");

// ── Data ────────────────────────────────────────────────────────────────────────────────────────────────────────

function read(spec) {
  if (!spec?.layers?.length || !spec.input?.length) return null;
  const arrays = Object.entries(spec).filter(([, value]) => value?.dtype).map(([name, value]) => [name, decode(value)]);
  const texts = ["input", "words", "sentences"].map((name) => [name, spec[name].map(tame)]);
  const [height, width, k] = [spec.layers.length, spec.input.length, spec.rank_count];
  const at = (layer, position, rank) => {
    const cell = layer * width + position;
    return rank === undefined ? cell : cell * k + rank;
  };
  const data = { ...spec, ...Object.fromEntries([...arrays, ...texts]), height, width, k, at };
  data.tokenId = (layer, position, rank) => data.word_ids[data.top[at(layer, position, rank)]];
  return data;
}

/** Where a value lies on its colour scale, 0..1, or NaN. */
function level(value, { scale, range: [low, high], reverse }) {
  const place = scale === "log" ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
  const inside = Math.min(1, Math.max(0, place)); // NaN stays NaN
  return reverse ? 1 - inside : inside;
}

// ── Words ───────────────────────────────────────────────────────────────────────────────────────────────────────

const bare = (word) => word.replace(/^·(?=.)/u, "");
const whole = (x) => x.toLocaleString("en-US");
const short = (x) => (Number.isInteger(x) ? whole(x) : String(Number(x.toPrecision(3))));
const nats = (x) => (Number.isFinite(x) ? `${Math.abs(x) < 100 ? Math.abs(x).toFixed(2) : Math.round(x)} nats` : "—");
const probability = (p) => (!Number.isFinite(p) ? "—" : p < 0.005 ? "<0.01" : p.toFixed(2));
const percent = (p) => (p < 0.01 ? "under 1 percent" : `${Math.round(100 * p)} percent`);

/** A word as a screen reader should say it: punctuation is named, for most voices skip it. */
function spoken(word) {
  const name = SPOKEN[bare(word)];
  return name ? `${name} '${word}'` : word;
}

/** Quoted token text, isolated so that a right-to-left token cannot turn the sentence around it. */
const quoted = (word) => make("bdi", {}, `“${word}”`);

// ── The view ────────────────────────────────────────────────────────────────────────────────────────────────────

class TokenGrid {
  constructor(model, el) {
    this.model = model;
    globalThis[SERIAL] = (globalThis[SERIAL] ?? 0) + 1;
    this.uid = `lens-grid-${globalThis[SERIAL]}`;
    this.undo = [];
    this.bars = [];
    this.build(el);
    this.listen();
    this.retheme();
    this.rebuild();
  }

  get(name) {
    return this.model.get(name) ?? EMPTY[name];
  }

  /** Saved at once: the widget layer throttles, and the kernel's echo of an older value must find nothing unsaved. */
  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  build(el) {
    this.toolbar = make("div.toolbar");
    this.table = make("table", { role: "grid", "aria-readonly": "true" });
    this.scroller = make("div.scroller", {}, this.table);
    this.details = make("aside.details", { "aria-label": "details of the cell" });
    this.extent = make("p.extent", { "aria-hidden": "true" });
    this.body = make("div.body", {}, make("div", {}, this.scroller, this.extent), this.details);
    this.sentence = make("p.sentence", { dir: "auto" });
    this.key = make("p.key", {},
      make("span", {}, make("i.rule"), "from here up the column keeps its final answer"),
      make("span", {}, make("i.mark"), "the top word is the true next one for the first time"),
      make("span", {}, "arrow keys walk, Enter or a click pins, Escape lets go"));
    this.placeholder = make("p.placeholder", {}, "Nothing computed yet.");
    this.steps = make("style");
    this.root = make("div", { class: `lens-look lens-grid ${this.uid}`, "data-lm-suppress-shortcuts": "true" },
      this.steps, this.toolbar, this.body, this.sentence, this.key, this.placeholder);
    el.append(this.root);
  }

  on(target, event, handler) {
    target.addEventListener(event, handler);
    this.undo.push(() => target.removeEventListener(event, handler));
  }

  listen() {
    const traits = {
      spec: () => this.rebuild(), stride: () => this.restride(), busy: () => this.showBusy(),
      colour: () => { this.drawToolbar(); this.paint(); },
      choices: () => this.drawToolbar(), strides: () => this.drawToolbar(),
      selected: () => this.showSelected(), pinned: () => this.showSelected(),
      follow: () => this.showDetails(), trajectory: () => this.showDetails(),
    };
    for (const [name, handler] of Object.entries(traits)) {
      this.model.on(`change:${name}`, handler);
      this.undo.push(() => this.model.off(`change:${name}`, handler));
    }
    this.on(this.root, "keydown", (event) => this.onKey(event));
    this.on(this.table, "click", (event) => this.onClick(event));
    this.on(this.table, "pointerover", (event) => this.onHover(event));
    this.on(this.table, "pointerleave", () => this.hoverAt(null));
    this.on(this.scroller, "scroll", () => this.showExtent());
    this.undo.push(watchTheme(() => this.retheme()));
    // Notebooks attach the element after render() returns; the first size it gets is the moment to look at the page.
    const attached = new ResizeObserver(() => {
      this.retheme();
      if (this.data && this.surface) this.reveal();
      this.showExtent();
    });
    attached.observe(this.root);
    this.undo.push(() => attached.disconnect());
  }

  destroy() {
    this.undo.forEach((step) => step());
    this.root.remove();
  }

  // ── Theme and colour ──

  retheme() {
    if (!this.root.isConnected) return;
    const surface = surfaceOf(this.root);
    if (String(surface) === String(this.surface)) return;
    this.surface = surface;
    this.ramp = palette(surface);
    // One class for each step, not a style for each cell: the browser then shares styles, four times as fast.
    this.steps.textContent = this.ramp.map(({ background, ink }, step) => (
      `.${this.uid} .lens-step-${step}{background:${css(background)};color:${css(ink)}}`)).join("");
    this.root.dataset.theme = isDark(surface) ? "dark" : "light";
    this.root.style.setProperty("--lens-surface", css(surface));
    this.root.style.setProperty("--lens-hue", css(this.ramp[STEPS - 1].background));
    if (!this.data) return;
    this.drawLegend();
    this.reveal();
  }

  get colour() {
    return this.data.colours.find(({ name }) => name === this.get("colour")) ?? this.data.colours[0];
  }

  /** Colours the rows that are shown; the words stay, so this is all that a change of colour costs. */
  paint() {
    if (!this.data) return;
    const { data, colour } = this;
    const values = data[colour.name];
    const step = values.length / (data.height * data.width); // arrays with ranks hold the top one first
    for (const layer of this.shown) {
      for (let position = 0; position < data.width; position += 1) {
        const place = level(values[data.at(layer, position) * step], colour);
        const shade = Math.round(place * (STEPS - 1));
        this.cells[layer][position].className = Number.isNaN(place) ? "lens-grid-unknown" : `lens-step-${shade}`;
      }
    }
    this.drawLegend();
  }

  drawLegend() {
    if (!this.ramp) return;
    const { range: [low, high], unit, scale, reverse } = this.colour;
    const stops = [0, 1, 2, 3, 4, 5, 6, 7, 8].map((n) => css(this.ramp[Math.round((n * (STEPS - 1)) / 8)].background));
    this.rampBar.style.background = `linear-gradient(to right, ${(reverse ? stops.reverse() : stops).join(",")})`;
    this.legendLow.textContent = short(low);
    this.legendHigh.textContent = [short(high), unit, scale === "log" ? "(log)" : ""].filter(Boolean).join(" ");
  }

  // ── Toolbar ──

  /** Rebuilds the controls only if they are different ones, so that a focused radio keeps its focus. */
  drawToolbar() {
    const { data } = this;
    if (!data) return;
    const groups = [
      ...this.get("choices").map((choice) => ({ ...choice, send: true })),
      { name: "colour", label: "Colour", value: this.colour.name,
        options: data.colours.map(({ name, label }) => ({ value: name, label })) },
      { name: "stride", label: "Every", after: "layers", value: this.get("stride"), options: this.get("strides") },
    ].filter(({ options }) => options.length > 1);
    const shape = JSON.stringify(groups.map(({ value, ...rest }) => rest));
    if (shape !== this.toolbarShape) this.buildToolbar(groups);
    this.toolbarShape = shape;
    for (const { name, value } of groups) {
      for (const input of this.inputs.get(name)) input.checked = input.choice === value;
    }
  }

  buildToolbar(groups) {
    this.inputs = new Map();
    this.rampBar = make("span.ramp");
    [this.legendLow, this.legendHigh] = [make("span"), make("span")];
    const legend = make("div.legend", { "aria-label": "colour scale", role: "group" },
      this.legendLow, this.rampBar, this.legendHigh);
    this.toolbar.replaceChildren(...groups.map((group) => this.buildGroup(group)), legend);
    this.drawLegend();
  }

  /** A segmented control of native radio buttons: arrow keys, form semantics and focus are the browser's own. */
  buildGroup({ name, label, after, options, send }) {
    const id = `${this.uid}-${name}`;
    const inputs = [];
    const segments = options.map((option) => {
      const { value, label: text } = typeof option === "object" ? option : { value: option, label: String(option) };
      const input = make("input", { type: "radio", name: id, value });
      input.choice = value;
      const choose = () => (send ? this.model.send({ type: "choice", name, value }) : this.set(name, value));
      input.addEventListener("change", choose);
      inputs.push(input);
      return make("label", {}, input, make("span", { "data-text": text }, text));
    });
    this.inputs.set(name, inputs);
    const spokenLabel = after ? `${label} how many ${after}` : label;
    const row = make("span.segments", {}, ...segments);
    row.classList.toggle("lens-grid-many", segments.length > 3); // two rows where the page is narrow
    return make("div.group", { role: "radiogroup", "aria-label": spokenLabel },
      make("span", {}, label), row, after ? make("span", {}, after) : "");
  }

  // ── Grid ──

  rebuild() {
    const focused = this.root.getRootNode().activeElement; // a new picture must not throw the reader out of it
    const [inGrid, bar] = [this.table.contains(focused), this.bars.findIndex(({ option }) => option === focused)];
    this.data = read(this.get("spec"));
    this.hover = null;
    this.root.classList.toggle("lens-grid-empty", !this.data);
    this.table.replaceChildren();
    this.marked = [];
    this.chosen = this.chosenHead = null;
    if (!this.data) return;
    this.buildTable();
    this.buildDetails();
    this.drawToolbar();
    this.restride();
    this.showBusy();
    if (inGrid) this.chosen.focus({ preventScroll: true });
    this.bars[bar]?.option.focus({ preventScroll: true });
  }

  buildTable() {
    const { data } = this;
    const fragment = document.createDocumentFragment();
    const blank = make("td", { role: "gridcell", tabindex: "-1" });
    const rows = make("tbody", { role: "rowgroup" });
    this.cells = [];
    this.rows = [];
    for (let layer = data.height - 1; layer >= 0; layer -= 1) { // layer 0 at the bottom
      const row = make("tr", { role: "row", "aria-rowindex": data.height - layer },
        make("th", { role: "rowheader", scope: "row" }, String(data.layers[layer])));
      this.cells[layer] = data.input.map((_, position) => {
        const cell = blank.cloneNode();
        cell.textContent = this.word(layer, position);
        cell.setAttribute("aria-label", this.spokenCell(layer, position));
        return cell;
      });
      row.append(...this.cells[layer]);
      rows.append(row);
      this.rows[layer] = row;
    }
    this.heads = data.input.map((word) => make("th", { role: "columnheader", scope: "col", title: word }, word));
    const foot = make("tfoot", { role: "rowgroup" }, make("tr", { role: "row", "aria-rowindex": data.height + 1 },
      make("th", { role: "columnheader", "aria-label": "layer" }, "layer"), ...this.heads));
    fragment.append(rows, foot);
    this.table.append(fragment);
    this.table.style.setProperty("--lens-columns", data.width);
    this.table.setAttribute("aria-label", `${data.title ?? "model"}: top word at each layer and position`);
    this.table.setAttribute("aria-rowcount", data.height + 1);
    this.table.setAttribute("aria-colcount", data.width + 1);
  }

  word(layer, position, rank = 0) {
    const { data } = this;
    return data.words[data.top[data.at(layer, position, rank)]] ?? "";
  }

  spokenCell(layer, position) {
    const { data } = this;
    const top = `${spoken(this.word(layer, position))} ${percent(data.probability[data.at(layer, position, 0)])}`;
    return `layer ${data.layers[layer]}, after ${data.input[position]}: ${top}`;
  }

  /** Shows every stride-th layer, the first and the last. All rows exist already, so nothing is built. */
  restride() {
    const { data } = this;
    if (!data) return;
    const last = data.height - 1;
    const few = data.layers[last] - data.layers[0] > last; // a lens that reads some layers only shows them all
    const stride = few ? 1 : Math.max(1, this.get("stride"));
    this.shown = [...data.layers.keys()].filter((n) => n === 0 || n === last || data.layers[n] % stride === 0);
    const shown = new Set(this.shown);
    this.rows.forEach((row, layer) => { row.hidden = !shown.has(layer); });
    const rowHeight = this.shown.length > 20 ? 22 : this.shown.length > 10 ? 26 : 34;
    this.table.style.setProperty("--lens-row", `${rowHeight}px`);
    this.mark();
    this.drawToolbar();
    this.paint();
    this.showSelected();
  }

  /** Puts the rule and the triangle where they belong among the rows that are shown. */
  mark() {
    const { data, shown } = this;
    for (const [layer, position] of this.marked) {
      delete this.cells[layer][position].dataset.settles;
      delete this.cells[layer][position].dataset.right;
      this.cells[layer][position].setAttribute("aria-label", this.spokenCell(layer, position));
    }
    this.marked = [];
    for (let position = 0; position < data.width; position += 1) {
      const settled = shown.find((n) => data.layers[n] >= data.settles[position]);
      this.markCell(settled, position, "settles", "keeps its final answer from here");
      // A layer between two shown rows may have been right by itself; the mark stands only where the word is.
      const first = data.first_correct[position];
      const says = (n) => data.layers[n] >= first && data.top[data.at(n, position, 0)] === data.next[position];
      const right = first < 0 ? undefined : shown.find(says);
      this.markCell(right, position, "right", "the true next word");
    }
  }

  markCell(layer, position, name, meaning) {
    if (layer === undefined) return;
    const cell = this.cells[layer][position];
    this.marked.push([layer, position]);
    cell.dataset[name] = "";
    cell.setAttribute("aria-label", `${cell.getAttribute("aria-label")}, ${meaning}`);
  }

  // ── Selection ──

  /** The selected cell as [layer index, position]; a hidden layer falls to the nearest shown one. */
  selected() {
    const { data } = this;
    const [layer, position] = this.get("selected");
    const distance = (n) => Math.abs(data.layers[n] - layer);
    const nearest = this.shown.reduce((best, n) => (distance(n) < distance(best) ? n : best));
    return [nearest, Math.min(Math.max(0, position ?? 0), data.width - 1)];
  }

  select(layer, position) {
    const moved = [this.data.layers[layer], position];
    if (String(moved) !== String(this.get("selected"))) this.set("selected", moved);
    else this.showSelected();
  }

  showSelected() {
    if (!this.data) return;
    const [layer, position] = this.selected();
    const [cell, head] = [this.cells[layer][position], this.heads[position]];
    if (this.chosen !== cell) {
      this.chosen?.setAttribute("tabindex", "-1");
      this.chosen?.removeAttribute("aria-selected");
      this.chosenHead?.classList.remove("lens-grid-here");
      cell.setAttribute("tabindex", "0");
      cell.setAttribute("aria-selected", "true");
      head.classList.add("lens-grid-here");
      [this.chosen, this.chosenHead] = [cell, head];
      if (this.surface) this.reveal();
    }
    this.root.classList.toggle("lens-grid-pinned", this.get("pinned"));
    this.sentence.textContent = this.data.sentences[position] ?? "";
    this.showDetails();
  }

  /** Scrolls the panel, never the page, until the selected cell is clear of the sticky heads. */
  reveal() {
    const { scroller, chosen, chosenHead } = this;
    const [left, bottom] = [this.rows[0].firstChild.offsetWidth, chosenHead.offsetHeight];
    const [x, y] = [chosen.offsetLeft, chosen.offsetTop];
    if (x - left < scroller.scrollLeft) scroller.scrollLeft = x - left;
    const right = x + chosen.offsetWidth - scroller.clientWidth;
    // Whole columns at the left; the one cut at the right then shows that there is more.
    if (right > scroller.scrollLeft) scroller.scrollLeft = Math.ceil(right / chosen.offsetWidth) * chosen.offsetWidth;
    if (y < scroller.scrollTop) scroller.scrollTop = y;
    const below = y + chosen.offsetHeight + bottom - scroller.clientHeight;
    if (below > scroller.scrollTop) scroller.scrollTop = below;
  }

  /** Says which part of a long text is in sight, for many systems hide their scroll bars. */
  showExtent() {
    if (!this.data || !this.surface) return;
    const { scrollLeft, scrollWidth, clientWidth } = this.scroller;
    const column = this.heads[0].offsetWidth;
    const first = Math.ceil(scrollLeft / column - 0.25);
    const last = Math.floor((scrollLeft + clientWidth - this.rows[0].firstChild.offsetWidth) / column + 0.25);
    const text = `tokens ${first + 1}–${last} of ${this.data.width}; scroll or walk for the others`;
    this.extent.textContent = scrollWidth > clientWidth + 1 ? text : "";
  }

  cellOf(target) {
    const cell = target.closest?.("td");
    return cell ? [this.data.height - 1 - cell.parentElement.sectionRowIndex, cell.cellIndex - 1] : null;
  }

  onClick(event) {
    const at = this.cellOf(event.target);
    if (!at || event.detail > 1) return;
    const again = event.target.closest("td") === this.chosen && this.get("pinned");
    this.select(...at);
    this.set("pinned", !again);
    this.chosen.focus({ preventScroll: true });
  }

  onHover(event) {
    const at = event.pointerType === "touch" ? null : this.cellOf(event.target);
    if (at) event.target.title = this.hint(...at);
    this.hoverAt(at);
  }

  hoverAt(at) {
    this.hover = at;
    if (this.data && !this.get("pinned")) this.showDetails();
  }

  hint(layer, position) {
    const { data, colour } = this;
    const word = this.word(layer, position);
    if (!this.cells[layer][position].classList.contains("lens-grid-unknown")) return word;
    const ends = colour.name === "next_rank" && data.next[position] < 0;
    return `${word}\n${colour.label}: ${ends ? "the text ends here, so there is no true next word" : "no value"}`;
  }

  // ── Keyboard ──

  /** Notebook shortcuts such as `d d` must not fire from inside the panel; only Tab travels on. */
  onKey(event) {
    if (event.key !== "Tab") event.stopPropagation();
    if (event.key === "Escape") this.onEscape();
    else if (this.data && this.cellOf(event.target)) this.onGridKey(event);
    else if (event.target.getAttribute("role") === "option") this.onListKey(event);
  }

  onEscape() {
    if (this.get("pinned")) {
      this.set("pinned", false);
      return;
    }
    letGo(this.root);
  }

  onGridKey(event) {
    const target = this.destination(event, ...this.selected());
    if (!target && event.key !== "Enter") return;
    event.preventDefault();
    if (target) {
      this.select(...target);
      this.chosen.focus({ preventScroll: true });
      this.chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else this.set("pinned", !this.get("pinned"));
  }

  /** Where a key leads from a cell, or undefined for keys that are not ours. */
  destination({ key, altKey, ctrlKey, metaKey }, layer, position) {
    const { shown, data } = this;
    const [row, end, top] = [shown.indexOf(layer), data.width - 1, shown.length - 1];
    const at = (n) => shown[Math.min(top, Math.max(0, n))];
    const leap = (by) => shown.findLastIndex((n) => data.layers[n] <= data.layers[layer] + by);
    if (altKey) return undefined;
    if (ctrlKey || metaKey) return { Home: [at(top), 0], End: [at(0), end] }[key];
    return {
      ArrowUp: [at(row + 1), position], ArrowDown: [at(row - 1), position],
      ArrowLeft: [layer, Math.max(0, position - 1)], ArrowRight: [layer, Math.min(end, position + 1)],
      Home: [layer, 0], End: [layer, end],
      PageUp: [at(Math.max(row + 1, leap(5))), position], PageDown: [at(Math.min(row - 1, leap(-5))), position],
    }[key];
  }

  onListKey(event) {
    const move = { ArrowDown: 1, ArrowUp: -1, Home: -this.bars.length, End: this.bars.length }[event.key];
    if (!move) return;
    event.preventDefault();
    const from = this.bars.findIndex(({ option }) => option === event.target);
    this.rove(Math.min(this.bars.length - 1, Math.max(0, from + move))).focus();
  }

  rove(index) {
    this.bars.forEach(({ option }, n) => { option.tabIndex = n === index ? 0 : -1; });
    return this.bars[index].option;
  }

  // ── Details ──

  /** The pane is built once for a spec and then only refilled: focus stays, and hovering costs little. */
  buildDetails() {
    this.heading = make("h3");
    this.bars = Array.from({ length: this.data.k }, (_, rank) => this.buildBar(rank));
    this.rove(0);
    const list = make("div.bars", { role: "listbox", "aria-label": "top words; choose one to follow it" },
      ...this.bars.map(({ option }) => option));
    this.facts = ["entropy", "next word", "KL to last layer", "settles at layer"].map((term) => ({
      term: make("dt", {}, term), value: make("dd") }));
    this.details.replaceChildren(this.heading, make("p", {}, "what the model would say next if it stopped here"), list,
      ...this.buildChart(), make("dl", {}, ...this.facts.map(({ term, value }) => make("div", {}, term, value))));
  }

  buildBar(rank) {
    const [word, fill, value] = [make("bdi"), make("i"), make("span.number")];
    const option = make("button", { type: "button", role: "option" }, word, make("span.track", {}, fill), value);
    option.addEventListener("click", () => this.follow(rank));
    return { option, word, fill, value };
  }

  buildChart() {
    const last = this.data.layers.at(-1);
    this.chartTitle = make("h3");
    this.chartValue = make("span.number");
    const svg = document.createElementNS(SVG, "svg");
    [this.cursor, this.line] = ["lens-grid-cursor", "lens-grid-line"].map((name) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      svg.append(path);
      return path;
    });
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("preserveAspectRatio", "none"); // the curve fills any width; words stay outside, undistorted
    this.plot = make("div.plot", { role: "img" }, svg, make("i"));
    const chart = make("div.chart", {},
      make("span.y", {}, make("span", {}, "1"), make("span", {}, "0")), this.plot,
      make("span.x", {}, make("span", {}, `layer ${this.data.layers[0]}`), make("span", {}, String(last))));
    return [make("div.chart-head", {}, this.chartTitle, this.chartValue), chart];
  }

  showDetails() {
    if (!this.data) return;
    const [layer, position] = (!this.get("pinned") && this.hover) || this.selected();
    const { data } = this;
    const name = `Layer ${data.layers[layer]}, after `;
    this.heading.replaceChildren(make("span", {}, name), quoted(data.input[position]));
    this.heading.title = name + data.input[position];
    this.fillBars(layer, position);
    this.drawChart(layer, position);
    this.fillFacts(layer, position);
  }

  fillBars(layer, position) {
    const { data } = this;
    const followed = this.get("follow");
    this.bars.forEach(({ option, word, fill, value }, rank) => {
      const at = data.at(layer, position, rank);
      const text = this.word(layer, position, rank);
      word.textContent = text;
      option.title = text;
      fill.style.width = `${100 * data.probability[at]}%`;
      value.textContent = probability(data.probability[at]);
      const here = followed.position === position && followed.token_id === data.tokenId(layer, position, rank);
      option.setAttribute("aria-selected", String(here));
      option.setAttribute("aria-label", `${spoken(text)} ${percent(data.probability[at])}`);
    });
  }

  fillFacts(layer, position) {
    const { data } = this;
    const at = data.at(layer, position);
    const next = data.words[data.next[position]];
    const [entropy, rank, divergence, settles] = this.facts;
    entropy.value.textContent = nats(data.entropy[at]);
    rank.term.replaceChildren("next word ", next === undefined ? "" : quoted(next));
    rank.term.title = rank.term.textContent;
    rank.value.textContent = next === undefined ? "none, the text ends" : `rank ${whole(data.next_rank[at])}`;
    divergence.value.textContent = nats(data.kl_to_final[at]);
    settles.value.textContent = String(data.settles[position]);
  }

  /** The word to draw through the layers: the followed one, else the one that the model finally answers. */
  trace(position) {
    const { data } = this;
    const [followed, answer] = [this.get("follow"), this.get("trajectory")];
    const chosen = followed.position === position;
    if (answer.position === position && !(chosen && answer.token_id !== followed.token_id)) {
      return { word: answer.word, values: answer.probability };
    }
    if (!chosen) {
      const values = data.layers.map((_, layer) => data.final_probability[data.at(layer, position)]);
      return { word: data.words[data.final[position]], values };
    }
    // Until Python answers (or for ever, in a page without a kernel) the top words alone say where this one is.
    const values = data.layers.map((_, layer) => {
      const ranks = [...Array(data.k).keys()];
      const rank = ranks.find((r) => data.tokenId(layer, position, r) === followed.token_id);
      return rank === undefined ? NaN : data.probability[data.at(layer, position, rank)];
    });
    return { word: followed.word, values, partial: true };
  }

  drawChart(layer, position) {
    const { word, values, partial } = this.trace(position);
    const span = this.data.layers.at(-1) - this.data.layers[0] || 1;
    const x = (n) => (100 * (this.data.layers[n] - this.data.layers[0])) / span;
    const y = (n) => 100 * (1 - values[n]);
    const known = (n) => Number.isFinite(values[n]);
    const step = (n) => (known(n - 1) ? `L${x(n)} ${y(n)}` : `M${x(n)} ${y(n)}h0`); // h0: a lone point shows as a dot
    this.line.setAttribute("d", [...this.data.layers.keys()].filter(known).map(step).join(""));
    this.cursor.setAttribute("d", `M${x(layer)} 0V100`);
    const point = this.plot.lastChild;
    point.hidden = !known(layer);
    point.style.cssText = known(layer) ? `left:${x(layer)}%;top:${y(layer)}%` : "";
    const where = partial ? ` in the top ${this.data.k}` : " through the layers";
    this.chartTitle.replaceChildren(quoted(word ?? ""), make("span", {}, where));
    this.chartTitle.title = this.chartTitle.textContent;
    const value = probability(values[layer]);
    this.chartValue.textContent = value;
    const place = `layer ${this.data.layers[layer]}`;
    this.plot.setAttribute("aria-label", `probability of ${spoken(word ?? "")}, ${place}: ${value}`);
  }

  /** Follows a word through the layers; choosing it again goes back to the final answer. */
  follow(rank) {
    const { data } = this;
    const [layer, position] = this.selected();
    const token_id = data.tokenId(layer, position, rank);
    const followed = this.get("follow");
    this.rove(rank);
    if (followed.position === position && followed.token_id === token_id) {
      this.set("trajectory", {});
      this.set("follow", {});
    } else this.set("follow", { position, token_id, word: this.word(layer, position, rank) });
  }

  showBusy() {
    const busy = Object.keys(this.get("busy")).length > 0;
    this.root.classList.toggle("lens-grid-busy", busy);
    this.body.setAttribute("aria-busy", String(busy));
  }
}

/** Shows the grid in a page without a kernel. Returns a function that takes it away again. */
export function mount(el, state) {
  return render({ model: plainModel({ ...state }), el });
}

function render({ model, el }) {
  const view = new TokenGrid(model, el);
  return () => view.destroy();
}

export default { render };
