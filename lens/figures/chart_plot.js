/**
 * What every plot of a chart shares: elements that are kept and changed, numbers as texts, axes, and places that a
 * reader walks over. Python puts this text between theme.js and the kinds of plot.
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

// ── Numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────

const known = (value) => value !== null && value !== undefined;
const minus = (text) => text.replace("-", "\u2212"); // as wide as a digit
const power = (n) => `10${[...String(n)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`;

const GROUPED = new Intl.NumberFormat("en-US");

/** Three significant digits, or all of a whole number. */
function number(value) {
  if (!known(value)) return "—";
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 1000) return minus(GROUPED.format(Math.round(value)));
  if (size >= 0.001) return minus(value.toPrecision(3));
  const [digits, exponent] = value.toExponential(1).split("e");
  return `${minus(digits)}·${power(Number(exponent))}`;
}

const titled = ({ title, unit }) => (unit ? `${tame(title)} (${tame(unit)})` : tame(title));
const withUnit = (text, { unit }) => (unit ? `${text}${unit === "°" ? "" : "\u00a0"}${tame(unit)}` : text);

/** A writer of an axis' values, all with the same decimals, so that they stand under each other and do not dance. */
function evenly({ range, scale }, values) {
  if (scale === "log") return number;
  const most = 0.999 * Math.max(...range.map(Math.abs));
  const size = Math.floor(Math.log10(most));
  const fine = most < 1 ? Math.min(9, 2 - size) : Math.max(0, 3 - Math.max(1, size));
  const digits = values.every((value) => !known(value) || Number.isInteger(value)) ? 0 : fine;
  const format = new Intl.NumberFormat("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  return (value) => {
    const vanishes = !known(value) || (value !== 0 && Math.abs(value) < 0.5 * 10 ** -digits);
    return vanishes ? number(value) : minus(format.format(value));
  };
}

/** Round numbers between two ends, at most `most` of them; only whole ones where the data are. */
function ticks([low, high], scale, most, whole = false) {
  if (scale === "log") return decades(low, high, most);
  const raw = (high - low) / Math.max(1, most - 1);
  const unit = 10 ** Math.floor(Math.log10(raw));
  const rough = unit * [1, 2, 5, 10].find((factor) => factor * unit >= raw * (1 - 1e-9));
  const step = whole ? Math.max(1, rough) : rough;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step - 1e-9);
  const count = Math.floor(high / step + 1e-9) - first + 1;
  return Array.from({ length: Math.max(0, count) }, (_, n) => {
    const value = (first + n) * step || 0; // no -0
    const text = value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
    return { value, text: minus(text) };
  });
}

function decades(low, high, most) {
  const [from, to] = [Math.floor(Math.log10(low) + 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.max(1, Math.ceil((to - from + 1) / most));
  const factors = 3 * (to - from + 1) <= most + 2 ? [1, 2, 5] : [1];
  const found = [];
  for (let n = from; n <= to; n += every) {
    const far = n < -3 || n > 4;
    for (const factor of far ? [1] : factors) {
      const value = Number(`${factor}e${n}`);
      if (value < low * (1 - 1e-9) || value > high * (1 + 1e-9)) continue;
      found.push({ value, text: far ? power(n) : value.toLocaleString("en-US", { maximumFractionDigits: 3 }) });
    }
  }
  return found;
}

/** Where a value lies between two ends, 0..1 inside; undefined where there is none. */
function share(value, { range: [low, high], scale }) {
  if (!known(value) || (scale === "log" && value <= 0)) return undefined;
  return scale === "log" ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
}

const nearest = (values, wanted) => values.reduce(
  (best, value, n) => (Math.abs(value - wanted) < Math.abs(values[best] - wanted) ? n : best), 0);

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

  /** Draws the named lines. One alone is known by the read-out; where there are more, each has its name beside it. */
  drawRules() {
    const { box, data } = this;
    const levels = pool(this.part("levels", this.clip), data.rules.length, () => shape("path"));
    this.taken = [];
    const names = data.rules.map(({ value, on, label }, n) => {
      const place = share(value, data[on]);
      const inside = place >= -1e-6 && place <= 1 + 1e-6;
      const at = inside ? half(on === "x" ? this.x(value) : this.y(value)) : 0;
      const d = on === "x" ? `M${at} ${box.top}V${box.bottom}` : `M${box.left} ${at}H${box.right}`;
      put(levels[n], { d: inside ? d : "", class: levelClass(n) });
      const named = inside && (data.rules.length > 1 || on === "x");
      return { text: tame(label), box: named ? this.claim(this.besideRule(on, at, this.text(tame(label)))) : null };
    });
    this.drawNames(this.quiet("names"), names);
  }

  /** Where the name of a line may stand. */
  besideRule(on, at, width) {
    const { left, right, top } = this.box;
    if (on === "x") return [0, 15, 30, 45].flatMap((down) => [at + 5, at - 5 - width].map((x) => ({ x, y: top + down, width })));
    return [right - width - 2, left + 4].flatMap((x) => [at - 15, at + 3].map((y) => ({ x, y, width })));
  }

  /** The first of some places for a text that is in the picture and touches no other text; it is taken then. */
  claim(boxes) {
    const { left, right, top, bottom } = this.box;
    const found = boxes.find(({ x, y, width }) => (
      x >= left && x + width <= right + 6 && y >= top - 6 && y + SIZE <= bottom
      && this.taken.every((other) => x > other.x + other.width + 4 || other.x > x + width + 4 || Math.abs(y - other.y) > SIZE + 1)));
    if (found) this.taken.push(found);
    return found ?? null;
  }

  drawNames(group, names) {
    const texts = pool(group, names.length, () => shape("text"));
    names.forEach(({ text, box }, n) => {
      put(texts[n], box ? { x: box.x, y: box.y + SIZE - 2 } : {});
      say(texts[n], box ? text : "");
    });
  }

  ruleValue({ value, on }) {
    return on === "x" ? number(value) : this.write(value);
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
