const REACH = 14; // pixels from a dot at which the pointer still means it
const TOGETHER = 5; // dots nearer than this are one place for the eye

/** Plots of single things, of which each can be pointed at: dots and hands. The nearest one is meant. */
class Things extends Plot {
  listen() {
    super.listen();
    this.readout.classList.add("lens-chart-named"); // the name has a line of its own
    this.body.addEventListener("pointermove", (event) => {
      const spot = this.spotAt(event);
      if (spot === this.hover) return;
      this.hover = spot;
      this.showAt();
    });
  }

  /** For the pointer the nearest thing; a second click on things in one place leads to the next of them. */
  spotAt(event) {
    if (event.clientX === undefined || !this.spots) return event.target.spot ?? null;
    const frame = this.svg.getBoundingClientRect();
    const [x, y] = [event.clientX - frame.left, event.clientY - frame.top];
    const far = this.places.map((place) => Math.hypot(place[0] - x, place[1] - y));
    const near = far.reduce((best, distance, n) => (distance < far[best] ? n : best), 0);
    if (!(far[near] <= REACH)) return null;
    const chosen = this.selected();
    const here = this.together(near);
    if (!here.includes(chosen)) return near;
    return event.type === "click" ? here[(here.indexOf(chosen) + 1) % here.length] : chosen;
  }

  /** Numbers of the things in one place with another, itself among them. */
  together(spot) {
    const [x, y] = this.places[spot];
    return this.places.flatMap((place, n) => (Math.hypot(place[0] - x, place[1] - y) < TOGETHER ? [n] : []));
  }

  keyOf(thing) {
    return thing.value ?? thing.label;
  }

  selected() {
    const chosen = this.view.get("selected")[this.data.name];
    const found = this.things.findIndex((thing) => this.keyOf(thing) === chosen);
    return found < 0 || !this.spots ? null : found;
  }

  choice(spot) {
    return this.keyOf(this.things[spot]);
  }

  first() {
    return 0;
  }


  /** A mark of its group's colour at each place, one path for each group; a trace has none. */
  drawMarks(parent) {
    const { groups } = this.data;
    const paths = pool(this.part("marks", parent), groups.length, () => shape("path"));
    groups.forEach((group, k) => {
      const d = this.things.map((thing, n) => (thing.group === k && thing.kind !== "trace" ? `M${at(this.places[n])}${MARK[group.marker]}` : "")).join("");
      const colour = this.view.seen(group.colour);
      put(paths[k], { d, class: markClass(group), stroke: colour, fill: colour });
    });
  }

  drawSpots() {
    put(this.svg, { role: "listbox", "aria-label": this.label() });
    this.spots = pool(this.part("spots"), this.things.length, () => shape("circle", { role: "option", tabindex: "-1" }));
    this.things.forEach((thing, n) => {
      const [x, y] = this.places[n].map((value) => value.toFixed(1));
      this.spots[n].spot = n;
      put(this.spots[n], { cx: x, cy: y, r: 7, "aria-label": this.spoken(thing) });
    });
  }

  /** Rings and larger marks over what is pointed at and what is selected. */
  drawRings(here, chosen) {
    const [mark, ring, focus] = pool(this.quiet("front"), 3, (n) => shape(["path", "circle.chosen", "circle.frame"][n]));
    const group = here === null ? null : this.data.groups[this.things[here].group];
    const colour = group && this.view.seen(group.colour);
    put(mark, group ? { d: `M0 0${MARK[group.marker]}`, transform: `translate(${at(this.places[here])}) scale(1.6)`,
      class: markClass(group), stroke: colour, fill: colour } : { d: "" });
    const around = (spot, r) => (spot === null ? { r: 0 } : { cx: this.places[spot][0], cy: this.places[spot][1], r });
    put(ring, around(chosen, 8));
    put(focus, around(this.ringed ? this.focus : null, 11));
  }

  /** Entries of the read-out: a sample where there is one, a name, and a value in room for the longest. */
  showEntries(rows) {
    const entries = pool(this.entries, rows.length, () => make("span.entry", {},
      make("span.sample"), make("span.name"), make("span.value")));
    rows.forEach(({ sample, name, value = "", room = 0 }, n) => {
      const [holder, what, figure] = entries[n].children;
      const svg = holder.firstChild ?? holder.appendChild(shape("svg", SAMPLE));
      const [stroke, mark] = pool(svg, 2, () => shape("path"));
      put(stroke, { d: "", class: "", ...sample?.stroke });
      put(mark, { d: "", class: "", ...sample?.mark });
      holder.hidden = !sample;
      what.hidden = !name;
      say(what, name);
      say(figure, value);
      put(figure, { style: `min-width:${room}ch` });
    });
  }

  groupRows() {
    return this.data.groups.filter(({ name }) => name).map((group) => {
      const colour = this.view.seen(group.colour);
      const mark = { d: `M0 0${MARK[group.marker]}`, class: markClass(group), stroke: colour, fill: colour };
      return { sample: { mark }, name: tame(group.name) };
    });
  }
}

const SAMPLE = { width: 26, height: 12, viewBox: "-13 -6 26 12", "aria-hidden": "true" };
const rounded = (value) => (known(value) ? Number(value.toPrecision(3)) : null); // between the points of a curve
const longest = (texts) => Math.max(0, ...texts.map((text) => text.length));
const at = ([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`;

/** Dots with names among curves and named lines. */
class Scatter extends Things {
  get things() {
    return this.data.dots;
  }

  valueAxis() {
    return this.data.y;
  }

  allValues() {
    return this.data.dots.map(({ y }) => y);
  }

  upTitle() {
    return titled(this.data.y);
  }

  acrossTitle() {
    return titled(this.data.x);
  }

  layout() {
    this.layoutAxes(Math.max(PLOT_HEIGHT, Math.min(0.62 * this.width, 340)));
    this.places = this.things.map((dot) => this.place(dot));
  }

  place({ x, y }) {
    return [this.x(x), this.y(y)];
  }

  paint() {
    const { curves } = this.data;
    this.drawUp(this.up, this.y);
    this.drawAcross(this.across, this.x);
    this.drawFrame();
    const paths = pool(this.part("curves", this.clip), curves.length, () => shape("path"));
    curves.forEach((line, n) => put(paths[n], { d: this.curve(line), stroke: this.view.seen(line.colour), class: dashClass(n) }));
    this.ink = [...this.places, ...curves.flatMap(({ x, y }) => (
      closely(x.flatMap((value, n) => (share(y[n], this.data.y) === undefined ? [] : [this.place({ x: value, y: y[n] })])))))];
    this.drawRules();
    this.drawMarks(this.clip);
    this.quiet("names");
    this.quiet("labels");
    this.quiet("front");
    this.lined = [...this.taken];
  }

  curve({ x, y }) {
    let pen = "M";
    return x.map((value, n) => {
      const there = share(y[n], this.data.y) !== undefined && share(value, this.data.x) !== undefined;
      const step = there ? pen + at([this.x(value), this.y(y[n])]) : "";
      pen = there ? "L" : "M";
      return step;
    }).join("");
  }

  /** What a curve says at an x between two of its points, on the scales of the picture. */
  read({ x, y }, wanted) {
    const n = x.findIndex((value) => value >= wanted);
    if (n < 0 || !known(y[n]) || (n === 0 && x[0] !== wanted)) return null;
    if (x[n] === wanted) return y[n];
    if (!known(y[n - 1])) return null;
    const [a, b, c] = [x[n - 1], x[n], wanted].map((value) => share(value, this.data.x));
    const part = (c - a) / (b - a);
    if (this.data.y.scale !== "log") return y[n - 1] + part * (y[n] - y[n - 1]);
    return y[n - 1] * (y[n] / y[n - 1]) ** part;
  }

  spoken(dot) {
    const { x, y, groups } = this.data;
    const values = [[x, dot.x], [y, dot.y]].map(([axis, value]) => `${tame(axis.title)} ${withUnit(number(value), axis)}`);
    return [`${tame(dot.label)}: ${values.join(", ")}`, tame(groups[dot.group].name)].filter(Boolean).join(", ");
  }

  label() {
    const { data } = this;
    const names = data.curves.map(({ name }) => `curve ${tame(name)}`);
    return [tame(data.title), `${titled(data.y)} by ${titled(data.x)}`, ...names,
      ...data.rules.map((line) => `${tame(line.label)} ${this.ruleValue(line)}`)].filter(Boolean).join("; ");
  }

  destination({ key }, spot) {
    const ranks = (axis) => this.things.map((_, n) => n).sort((a, b) => this.things[a][axis] - this.things[b][axis] || a - b);
    const step = (order, by) => order[Math.min(order.length - 1, Math.max(0, order.indexOf(spot) + by))];
    const across = ranks("x");
    return { ArrowLeft: step(across, -1), ArrowRight: step(across, 1), ArrowDown: step(ranks("y"), -1), ArrowUp: step(ranks("y"), 1),
      Home: across[0], End: across.at(-1), PageUp: step(across, -5), PageDown: step(across, 5) }[key];
  }

  showAt() {
    if (!this.spots) return;
    const [here, chosen] = [this.here(), this.selected()];
    this.drawRings(here, chosen);
    this.drawControls();
    this.drawLabels(here, chosen);
    this.showReadout(here);
  }

  /** The place of the controls: lines to both axes, so that it is found among many dots. */
  drawControls() {
    const { box, data } = this;
    const [lines, mark] = pool(this.part("controls", this.clip), 2, (n) => shape(["path.here", "path.point"][n]));
    if (!data.here) {
      [lines, mark].forEach((path) => put(path, { d: "" }));
      return;
    }
    const [x, y] = this.place(data.here);
    put(lines, { d: `M${box.left} ${half(y)}H${half(x)}V${box.bottom}` });
    put(mark, { d: `M${at([x, y])}m-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z` });
  }

  /** Names beside their dots: of what is pointed at and selected in any case, of the others where there is room. */
  drawLabels(here, chosen) {
    const { data } = this;
    this.taken = [...this.lined];
    const names = [];
    const add = (place, text, kind, needed) => {
      const width = this.text(text) * (kind ? 1.08 : 1); // bold
      const places = this.beside(place, width);
      // A name that nobody asked for had better be missing than hide another dot.
      const offered = places.filter((box) => !this.places.some((other) => holds(box, other)));
      const box = this.claim(offered) ?? (needed ? this.claim(places) ?? this.inside(places[0]) : null);
      if (box) names.push({ text, box, kind });
    };
    if (data.here) add(this.place(data.here), tame(data.here.label), "here-text", true);
    const told = [...new Set([chosen, here])].filter((n) => n !== null);
    told.forEach((n) => add(this.places[n], this.labelOf(n), n === chosen ? "here-text" : "told", true));
    const shown = new Set(told.flatMap((n) => this.together(n)));
    data.named.map((label) => this.things.findIndex((dot) => dot.label === label)).filter((n) => !shown.has(n))
      .forEach((n) => add(this.places[n], tame(this.things[n].label), "", false));
    const group = this.part("labels");
    this.drawNames(group, names);
    names.forEach(({ kind }, n) => put(group.children[n], { class: kind ? `lens-chart-${kind}` : "" }));
  }

  labelOf(spot) {
    const more = this.together(spot).length - 1;
    return tame(this.things[spot].label) + (more ? ` +${more}` : "");
  }

  beside([x, y], width) {
    return [[9, -6], [-9 - width, -6], [-width / 2, -22], [-width / 2, 9], [9, -18], [9, 6], [-9 - width, -18], [-9 - width, 6]]
      .map(([right, down]) => ({ x: x + right, y: y + down, width }));
  }

  inside({ x, y, width }) {
    const { left, right, top, bottom } = this.box;
    return { x: Math.max(left, Math.min(x, right - width)), y: Math.max(top, Math.min(y, bottom - SIZE)), width };
  }

  showReadout(spot) {
    const { data } = this;
    const thing = spot === null ? data.here : this.things[spot];
    const others = spot === null ? [] : this.together(spot).filter((n) => n !== spot);
    const also = others.length ? `, in the same place ${others.map((n) => tame(this.things[n].label)).join(", ")}` : "";
    say(this.at, thing ? tame(thing.label) + also : `${tame(data.name)} –`);
    const axis = (side, key) => ({ name: tame(side.title), value: thing ? withUnit(number(thing[key]), side) : "–",
      room: longest(this.things.map((dot) => withUnit(number(dot[key]), side))) });
    const curves = data.curves.map((line, n) => ({
      sample: { stroke: { d: "M-13 0H13", class: `lens-chart-curve ${dashClass(n)}`, stroke: this.view.seen(line.colour) } },
      name: tame(line.name), value: thing ? number(rounded(this.read(line, thing.x))) : "–",
      room: longest(line.y.map((value) => number(rounded(value)))),
    }));
    const rules = (this.rulesNamed ? [] : data.rules).map((line, n) => ({
      sample: { stroke: { d: "M-13 0H13", class: levelClass(n) } },
      name: tame(line.label), value: this.ruleValue(line),
    }));
    this.showEntries([axis(data.x, "x"), axis(data.y, "y"), ...curves, ...rules, ...this.groupRows()]);
  }
}
