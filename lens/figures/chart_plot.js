/**
 * What every plot of a chart shares: elements that are kept and changed, axes, named lines, and places that a reader
 * walks over. Python puts this text between theme.js, chart_numbers.js and the kinds of plot.
 */

const make = maker("lens-chart");
const SIZE = 12; // of all text in a plot, in pixels
const MAP_SIDE = 480; // the tallest heat map
const PLOT_HEIGHT = 210; // of curves and columns
const ORANGE = { light: [186, 84, 0], dark: [255, 168, 84] }; // the far end of a signed map
const LEAST = 3; // contrast of lines and marks with the surface
const EMPTY = { spec: {}, selected: {}, busy: {} };

/** Marks around (0, 0), of about the same weight. Those without an inside are drawn as strokes. */
const MARK = {
  circle: "m-3.4 0a3.4 3.4 0 1 0 6.8 0a3.4 3.4 0 1 0-6.8 0z", square: "m-3-3h6v6h-6z",
  diamond: "m0-4.3l4.3 4.3l-4.3 4.3l-4.3-4.3z", triangle: "m0-4.2l4 7h-8z", wedge: "m0 4.2l-4-7h8z",
  plus: "m0-4v8m-4-4h8", cross: "m-3-3l6 6m0-6l-6 6",
};
const OPEN = new Set(["plus", "cross"]);

// ── Elements ────────────────────────────────────────────────────────────────────────────────────────────────────

/** Sets what differs; an attribute set to the value that it has would still cost a style pass. */
function put(element, attributes) {
  for (const name in attributes) {
    const value = String(attributes[name]);
    if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  }
  return element;
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Makes an SVG element: shape("path.line") is <path class="lens-chart-line">. */
function shape(what, attributes = {}) {
  const [tag, kind] = what.split(".");
  const element = document.createElementNS(SVG, tag);
  if (kind) element.setAttribute("class", `lens-chart-${kind}`);
  return put(element, attributes);
}

/** The children of an element, made or removed until there are `count`. */
function pool(parent, count, create) {
  while (parent.childElementCount > count) parent.lastElementChild.remove();
  while (parent.childElementCount < count) parent.append(create(parent.childElementCount));
  return parent.children;
}

/** Keeps what a function of one text has found: a slider asks the same again with each move. */
function remember(find) {
  const found = new Map();
  return (text) => {
    if (!found.has(text)) found.set(text, find(text));
    return found.get(text);
  };
}

/** Gives the width of a text in pixels, before it is drawn. */
function ruler(family) {
  const canvas = document.createElement("canvas").getContext("2d");
  canvas.font = `${SIZE}px ${family}`;
  return (text) => canvas.measureText(text).width;
}

// ── Colours ─────────────────────────────────────────────────────────────────────────────────────────────────────

const bytes = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** A colour of the same hue that is seen on the surface. */
function seenOn(surface, hex) {
  const [lightness, ...hue] = toLab(bytes(hex));
  const step = isDark(surface) ? 0.02 : -0.02;
  for (let n = 0; n < 50; n += 1) {
    const colour = fromLab([lightness + n * step, ...hue]);
    if (contrast(colour, surface) >= LEAST) return css(colour);
  }
  return "currentColor";
}

// ── Plots ───────────────────────────────────────────────────────────────────────────────────────────────────────

/** What all plots share: titles, axes, the read-out, and spots that a reader walks over. */
class Plot {
  constructor(view) {
    this.view = view;
    this.hover = null;
    this.focus = null;
    this.title = make("h3");
    this.readout = make("p.readout", { "aria-live": "polite", "aria-atomic": "true" });
    this.at = make("span.at");
    this.entries = make("span.entries");
    this.readout.append(this.at, this.entries);
    this.yTitle = make("span", { "aria-hidden": "true" });
    this.key = make("span.key", { hidden: "" });
    this.xTitle = make("p.x", { "aria-hidden": "true" });
    this.svg = shape("svg.svg");
    this.body = make("div.body", {}, this.svg, this.xTitle);
    this.parts = {};
    this.element = make("figure.plot", {}, this.title, this.readout, make("div.head", {}, this.yTitle, this.key),
      this.body);
    this.listen();
  }

  listen() {
    // Not on the drawing itself: Chromium lets Tab stop at an SVG element that listens for focus.
    const on = (event, handler) => this.body.addEventListener(event, (e) => handler(e, this.spotAt(e)));
    on("pointerover", (_, spot) => { this.hover = spot; this.showAt(); });
    on("pointerleave", () => { this.hover = null; this.showAt(); });
    on("click", (_, spot) => { if (spot !== null) { this.go(spot); this.select(spot); } });
    // The name of a focused spot says its values already; the read-out speaks for all other changes.
    on("focusin", (event, spot) => this.focusAt(spot, event.target.matches(":focus-visible")));
    on("focusout", () => this.focusAt(null, false));
    on("keydown", (event, spot) => { if (spot !== null) this.onKey(event, spot); });
  }

  /** The place that an event is about. */
  spotAt(event) {
    return event.target.spot ?? null;
  }

  focusAt(spot, ringed) {
    [this.focus, this.ringed] = [spot, ringed];
    this.readout.setAttribute("aria-live", spot === null ? "polite" : "off");
    this.showAt();
  }

  /** A group of the drawing, in the order in which groups are first asked for. */
  part(name, parent = this.svg, attributes = {}) {
    this.parts[name] ??= parent.appendChild(shape(`g.${name}`, attributes));
    return this.parts[name];
  }

  /** A part that a voice leaves out: the labels of the spots say it all. */
  quiet(name) {
    return this.part(name, this.svg, { "aria-hidden": "true" });
  }

  update(data) {
    this.data = data;
    this.draw();
  }

  draw() {
    const { data, view } = this;
    this.width = this.element.clientWidth;
    if (!this.width || !view.surface) return;
    say(this.title, tame(data.title));
    this.title.hidden = !data.title;
    say(this.yTitle, this.upTitle());
    say(this.xTitle, this.acrossTitle());
    this.write = evenly(this.valueAxis(), this.allValues());
    this.layout();
    put(this.svg, { width: this.width, height: this.height, viewBox: `0 0 ${this.width} ${this.height}` });
    put(this.xTitle, { style: `padding:0 ${this.width - this.box.right}px 0 ${this.box.left}px` });
    this.paint();
    this.drawSpots();
    this.settle();
  }

  text(value) {
    return this.view.measure(value);
  }

  // ── Axes ──

  /** Labels of the places along an axis: texts of the data, or round numbers. */
  marksAcross(axis, room) {
    if (axis.labels) return axis.labels.map((label, n) => ({ value: axis.values[n], text: short(tame(label)) }));
    const whole = (axis.values ?? axis.edges ?? [0.5]).every(Number.isInteger);
    return ticks(axis.range, axis.scale, 2 + Math.floor(room / 70), whole);
  }

  /** Draws the numbers of the upward axis and its quiet lines. */
  drawUp(marks, place, lines = true) {
    const { left, right } = this.box;
    const grid = pool(this.quiet("grid"), lines ? marks.length : 0, () => shape("path"));
    const texts = pool(this.quiet("up"), marks.length, () => shape("text", { "text-anchor": "end" }));
    marks.forEach(({ text, value }, n) => {
      const y = place(value);
      if (lines) put(grid[n], { d: `M${left} ${half(y)}H${right}`, class: gridClass(value) });
      put(texts[n], { x: left - 8, y: y + 4 });
      say(texts[n], text);
    });
  }

  /** Draws labels below; upright only where they fit side by side, and every so many where even that is too close. */
  drawAcross(marks, place) {
    const texts = pool(this.quiet("across"), marks.length, () => shape("text"));
    const y = this.box.bottom + 16;
    marks.forEach(({ text, value }, n) => {
      put(texts[n], this.turned ? turnedAt(place(value), y) : uprightAt(place(value), y));
      say(texts[n], text);
    });
  }

  /** Names the selected x on the axis, in place of the labels that it would touch. */
  nameAcross(label, text, x, place) {
    const y = this.box.bottom + 16;
    put(label, this.turned ? turnedAt(x, y) : uprightAt(x, y));
    say(label, text);
    const reach = (other) => (this.turned ? SIZE + 2 : (this.text(text) + this.text(other)) / 2 + 8);
    [...this.part("across").children].forEach((other, n) => {
      const near = text !== "" && Math.abs(place(n) - x) < reach(other.textContent);
      put(other, { visibility: near ? "hidden" : "visible" });
    });
  }

  /** The label of a place; none for no place. */
  markOf(axis, n) {
    if (n === null) return "";
    return axis.labels ? short(tame(axis.labels[n])) : number(axis.values[n]);
  }

  /** Every so many of labels that would touch, always counted from the first. */
  thin(marks, step, room) {
    const least = Math.max(1, room / step);
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((n) => n >= least);
    return marks.filter((_, n) => n % every === 0);
  }

  /** Labels below that stand on every place, turned where that is the only way; sets how deep they reach. */
  fitAcross(marks, step) {
    const widest = Math.max(0, ...marks.map(({ text }) => this.text(text)));
    const words = marks.some(({ text }) => !/^[\d.,−]*$/.test(text));
    this.turned = words && widest + 8 > step;
    this.deep = this.turned ? widest + 14 : 24;
    return this.thin(marks, step, this.turned ? SIZE + 3 : widest + 10);
  }

  /** Room for the numbers of two axes, and where their values lie. */
  layoutAxes(tall = PLOT_HEIGHT) {
    const { x, y } = this.data;
    this.up = ticks(y.range, y.scale, 6);
    const left = Math.ceil(Math.max(26, ...this.up.map(({ text }) => this.text(text)))) + 10;
    const room = this.width - left - 12;
    const all = this.marksAcross(x, room);
    this.across = this.fitAcross(all, room / Math.max(1, all.length - 1));
    const right = this.width - Math.max(12, Math.ceil(this.text(all.at(-1)?.text ?? "") / 2));
    this.box = { left, right, top: 8, bottom: Math.round(8 + tall) };
    this.height = this.box.bottom + this.deep;
    this.x = (value) => left + share(value, x) * (right - left);
    this.y = (value) => this.box.bottom - share(value, y) * (this.box.bottom - this.box.top);
  }

  /** A curve that leaves the range is cut a mark's width beyond the frame, so that the marks on it stay whole. */
  drawFrame() {
    const { box } = this;
    this.clip ??= this.svg.appendChild(shape("svg.clip", { "aria-hidden": "true" }));
    const frame = inner({ x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top }, -6);
    put(this.clip, { ...frame, viewBox: Object.values(frame).join(" ") });
  }

  /** Whether named lines bear their names in the picture: one or two across it are known by the read-out. */
  get rulesNamed() {
    const { rules } = this.data;
    return rules.length > 2 || rules.some(({ on }) => on === "x");
  }

  /** Draws the named lines. */
  drawRules() {
    const { box, data } = this;
    const levels = pool(this.part("levels", this.clip), data.rules.length, () => shape("path"));
    this.taken = [];
    const places = data.rules.map(({ value, on }, n) => {
      const part = share(value, data[on]);
      const inside = part >= -1e-6 && part <= 1 + 1e-6;
      const at = inside ? half(on === "x" ? this.x(value) : this.y(value)) : null;
      const ends = on === "x" ? [[at, box.top], [at, box.bottom]] : [[box.left, at], [box.right, at]];
      put(levels[n], { d: inside ? `M${ends[0]}L${ends[1]}` : "", class: levelClass(n) });
      if (inside) this.ink.push(...closely(ends));
      return at;
    });
    const names = data.rules.map((line, n) => {
      const text = `${tame(line.label)} ${this.ruleValue(line)}`;
      const named = places[n] !== null && this.rulesNamed;
      return { text, box: named ? this.claim(this.besideRule(line.on, places[n], this.text(text))) : null };
    });
    this.drawNames(this.quiet("names"), names);
  }

  /** Where the name of a line may stand, the better places first. */
  besideRule(on, at, width) {
    const { left, right, top, bottom } = this.box;
    const down = Array.from({ length: Math.floor((bottom - top) / 15) }, (_, n) => top + 15 * n);
    if (on === "x") return down.flatMap((y) => [at + 5, at - 5 - width].map((x) => ({ x, y, width })));
    const along = [0, 1, 2 / 3, 1 / 3].map((part) => right - width - 2 - part * (right - left - width - 6));
    return along.flatMap((x) => [at - 17, at + 3].map((y) => ({ x, y, width })));
  }

  /** The first of some places for a text that is in the picture and touches no other text, better no curve either; it is taken. */
  claim(boxes) {
    const { left, right, top, bottom } = this.box;
    const free = boxes.filter(({ x, y, width }) => (
      x >= left && x + width <= right + 6 && y >= top - 6 && y + SIZE <= bottom
      && this.taken.every((other) => x > other.x + other.width + 4 || other.x > x + width + 4 || Math.abs(y - other.y) > SIZE + 1)));
    const found = free.find((box) => !this.ink.some((point) => holds(box, point))) ?? free[0] ?? null;
    if (found) this.taken.push(found);
    return found;
  }

  drawNames(group, names) {
    const texts = pool(group, names.length, () => shape("text"));
    names.forEach(({ text, box }, n) => {
      put(texts[n], box ? { x: box.x, y: box.y + SIZE - 2 } : {});
      say(texts[n], box ? text : "");
    });
  }

  ruleValue({ value, on }) {
    return on === "x" || this.data.y.scale === "log" ? number(value) : this.write(value);
  }

  // ── Selection and walking ──

  /** The place that the read-out speaks of. */
  here() {
    return this.hover ?? this.focus ?? this.selected();
  }

  go(spot) {
    this.hover = null; // a resting pointer must not hide where the keys are
    this.rove(spot);
    this.spots[spot].focus({ preventScroll: true });
  }

  /** One stop for Tab: where the reader is, else what is selected, else the first known place. */
  rove(spot) {
    const [old, stop] = [this.stop, this.spots[spot]];
    if (old !== stop) old?.setAttribute("tabindex", "-1");
    stop.setAttribute("tabindex", "0");
    [this.stop, this.stopAt] = [stop, spot];
  }

  select(spot) {
    const chosen = this.choice(spot);
    if (chosen === null) return;
    const all = this.view.get("selected");
    if (String(all[this.data.name]) !== String(chosen)) this.view.set("selected", { ...all, [this.data.name]: chosen });
  }

  onKey(event, spot) {
    const target = event.altKey ? undefined : this.destination(event, spot);
    if (target === undefined && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (target === undefined) this.select(spot);
    else this.go(target);
    this.spots[target ?? spot].scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  showSelected() {
    if (!this.spots) return;
    const spot = this.selected();
    const marked = spot === null ? null : this.spots[spot];
    if (this.marked !== marked) {
      this.marked?.removeAttribute("aria-selected");
      marked?.setAttribute("aria-selected", "true");
      this.marked = marked;
      if (marked && this.focus === null) this.rove(spot);
    }
    this.showAt();
  }

  /** After a drawing: the stop of Tab is a spot that exists, and focus stays where it was. */
  settle() {
    const stop = this.focus ?? this.selected() ?? this.stopAt ?? this.first();
    this.rove(Math.min(stop, this.spots.length - 1));
    this.hover = known(this.hover) && this.hover < this.spots.length ? this.hover : null;
    this.showSelected();
  }
}

/** Whether a text at a place would hide a point. */
const holds = ({ x, y, width }, [a, b]) => a >= x - 3 && a <= x + width + 3 && b >= y - 2 && b <= y + SIZE + 3;
/** Points of a line with others between them, so that no two are farther apart than the height of a text. */
const closely = (points) => points.flatMap(([x, y], n) => {
  const [u, v] = points[n + 1] ?? [x, y];
  const steps = Math.max(1, Math.ceil(Math.hypot(u - x, v - y) / SIZE));
  return Array.from({ length: steps }, (_, k) => [x + (k * (u - x)) / steps, y + (k * (v - y)) / steps]);
});
const NOWHERE = { width: 0, height: 0 };
const inner = ({ x = 0, y = 0, width, height }, by) => ({
  x: x + by, y: y + by, width: Math.max(0, width - 2 * by), height: Math.max(0, height - 2 * by) });
const levelClass = (n) => `lens-chart-level lens-chart-level-${n % 4}`;
const dashClass = (n) => `lens-chart-dash-${n}`;
const markClass = ({ marker }) => (OPEN.has(marker) ? "lens-chart-open" : "lens-chart-mark");
const gridClass = (value) => (value === 0 ? "lens-chart-zero" : "lens-chart-rule");
const uprightAt = (x, y) => ({ x, y, "text-anchor": "middle", transform: "" });
const turnedAt = (x, y) => ({ x, y: y - 4, "text-anchor": "end", transform: `rotate(-90 ${x} ${y - 8})` });
const half = (y) => Math.round(y) + 0.5; // a line of one pixel, not of two grey ones
const short = (text) => (text.length > 18 ? `${text.slice(0, 17)}…` : text);
