/**
 * Small linked charts: curves, bars and heat maps in one row, drawn as SVG.
 *
 * Python owns the numbers (`spec`); a gesture sets `selected`, its change event repaints. Every drawing sets attributes
 * on elements that are already there, so that a slider's values arrive without a rebuilt tree, a lost focus or a jump.
 * Labels are data: they reach the page through textContent and attributes alone. Colours and the page's theme come
 * from theme.js, which stands before this text in the finished module.
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

let canvas;

/** Width of a text in pixels, before it is drawn. */
function measure(text, family) {
  canvas ??= document.createElement("canvas").getContext("2d");
  canvas.font = `${SIZE}px ${family}`;
  return canvas.measureText(text).width;
}

// ── Numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────

const known = (value) => value !== null && value !== undefined;
const minus = (text) => text.replace("-", "\u2212"); // as wide as a digit
const power = (n) => `10${[...String(n)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("")}`;

/** Three significant digits, or all of a whole number. */
function number(value) {
  if (!known(value)) return "—";
  const size = Math.abs(value);
  if (Number.isInteger(value) || size >= 1000) return minus(Math.round(value).toLocaleString("en-US"));
  if (size >= 0.001) return minus(value.toPrecision(3));
  const [digits, exponent] = value.toExponential(1).split("e");
  return `${minus(digits)}·${power(Number(exponent))}`;
}

const titled = ({ title, unit }) => (unit ? `${tame(title)} (${tame(unit)})` : tame(title));
const withUnit = (text, { unit }) => (unit ? `${text} ${tame(unit)}` : text);

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
  const [from, to] = [Math.ceil(Math.log10(low) - 1e-9), Math.floor(Math.log10(high) + 1e-9)];
  const every = Math.max(1, Math.ceil((to - from + 1) / most));
  const found = [];
  for (let n = from; n <= to; n += every) {
    found.push({ value: 10 ** n, text: n < -3 || n > 4 ? power(n) : (10 ** n).toLocaleString("en-US", { maximumFractionDigits: 3 }) });
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
function seen(hex, surface) {
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
    this.parts = {};
    this.element = make("figure.plot", {}, this.title, this.readout, make("div.head", {}, this.yTitle, this.key),
      this.svg, this.xTitle);
    this.listen();
  }

  listen() {
    const on = (event, handler) => this.svg.addEventListener(event, (e) => handler(e, this.spotOf(e.target)));
    on("pointerover", (_, spot) => { this.hover = spot; this.showAt(); });
    on("pointerleave", () => { this.hover = null; this.showAt(); });
    on("click", (_, spot) => { if (spot !== null) { this.go(spot); this.select(spot); } });
    // The name of a focused spot says its values already; the read-out speaks for all other changes.
    on("focusin", (event, spot) => this.focusAt(spot, event.target.matches(":focus-visible")));
    on("focusout", () => this.focusAt(null, false));
    on("keydown", (event, spot) => { if (spot !== null) this.onKey(event, spot); });
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
    this.layout();
    put(this.svg, { width: this.width, height: this.height, viewBox: `0 0 ${this.width} ${this.height}` });
    put(this.xTitle, { style: `padding:0 ${this.width - this.box.right}px 0 ${this.box.left}px` });
    this.paint();
    this.drawSpots();
    this.showAt();
  }

  text(value) {
    return measure(value, this.view.family);
  }

  // ── Axes ──

  /** Labels of the places along an axis: texts of the data, or round numbers. */
  marksAcross(axis, room) {
    if (axis.labels) return axis.labels.map((label, n) => ({ value: axis.values[n], text: short(tame(label)) }));
    const whole = (axis.values ?? axis.edges).every(Number.isInteger);
    return ticks(axis.range, axis.scale, 2 + Math.floor(room / 70), whole);
  }

  /** Draws the numbers of the upward axis and its quiet lines. */
  drawUp(marks, place, lines = true) {
    const { left, right } = this.box;
    const grid = pool(this.part("grid", this.svg, { "aria-hidden": "true" }), lines ? marks.length : 0, () => shape("path.rule"));
    const texts = pool(this.part("up", this.svg, { "aria-hidden": "true" }), marks.length, () => shape("text"));
    marks.forEach(({ text, value }, n) => {
      const y = place(value);
      if (lines) put(grid[n], { d: `M${left} ${half(y)}H${right}`, class: value === 0 ? "lens-chart-zero" : "lens-chart-rule" });
      put(texts[n], { x: left - 8, y: y + 4, "text-anchor": "end" });
      say(texts[n], text);
    });
  }

  /** Draws labels below; upright only where they fit side by side, and every so many where even that is too close. */
  drawAcross(marks, place) {
    const texts = pool(this.part("across", this.svg, { "aria-hidden": "true" }), marks.length, () => shape("text"));
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
    const reach = (other) => (this.turned ? SIZE + 2 : (this.text(text) + this.text(other)) / 2 + 6);
    [...this.part("across").children].forEach((other, n) => {
      const near = text !== "" && Math.abs(place(n) - x) < reach(other.textContent);
      put(other, { visibility: near ? "hidden" : "visible" });
    });
  }

  markOf(axis, n) {
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
    const widest = Math.max(...marks.map(({ text }) => this.text(text)));
    const words = marks.some(({ text }) => !/^[\d.,−]*$/.test(text));
    this.turned = words && widest + 8 > step;
    this.deep = this.turned ? widest + 14 : 24;
    return this.thin(marks, step, this.turned ? SIZE + 3 : widest + 10);
  }

  // ── Selection and walking ──

  spotOf(target) {
    return target.spot ?? null;
  }

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
    if (this.stop !== undefined) this.spots[this.stop]?.setAttribute("tabindex", "-1");
    this.stop = spot;
    this.spots[spot]?.setAttribute("tabindex", "0");
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
    if (this.marked !== spot) {
      if (known(this.marked)) this.spots[this.marked]?.removeAttribute("aria-selected");
      if (spot !== null) this.spots[spot].setAttribute("aria-selected", "true");
      this.marked = spot;
    }
    this.showAt();
  }

  /** After a drawing: the stop of Tab is a spot that exists, and focus stays where it was. */
  settle() {
    const stop = this.focus ?? this.selected() ?? this.stop ?? this.first();
    this.rove(Math.min(stop, this.spots.length - 1));
    this.hover = known(this.hover) && this.hover < this.spots.length ? this.hover : null;
    this.showSelected();
  }
}

const uprightAt = (x, y) => ({ x, y, "text-anchor": "middle", transform: "" });
const turnedAt = (x, y) => ({ x, y: y - 4, "text-anchor": "end", transform: `rotate(-90 ${x} ${y - 8})` });
const half = (y) => Math.round(y) + 0.5; // a line of one pixel, not of two grey ones
const short = (text) => (text.length > 18 ? `${text.slice(0, 17)}…` : text);

/** Plots with named series over one x: the read-out is their legend. */
class SeriesPlot extends Plot {
  get count() {
    return this.data.series[0].values.length;
  }

  upTitle() {
    return titled(this.data.y);
  }

  acrossTitle() {
    return titled(this.data.x);
  }

  selected() {
    const chosen = this.view.get("selected")[this.data.name];
    return this.selects && typeof chosen === "number" ? nearest(this.data.x.values, chosen) : null;
  }

  choice(spot) {
    return this.selects ? this.data.x.values[spot] : null;
  }

  first() {
    return 0;
  }

  /** The x of a place in words. */
  name(spot) {
    const { x } = this.data;
    if (x.edges) return `${number(x.edges[spot])} to ${withUnit(number(x.edges[spot + 1]), x)}`;
    return x.labels ? tame(x.labels[spot]) : withUnit(number(x.values[spot]), x);
  }

  value({ values, low, high }, spot) {
    const interval = known(low?.[spot]) && known(high?.[spot]) ? ` [${number(low[spot])}, ${number(high[spot])}]` : "";
    return number(values[spot]) + interval;
  }

  get alone() {
    return this.data.series.length === 1 && !this.data.rules.length;
  }

  showReadout(spot) {
    const { data } = this;
    const lead = data.x.labels ? "" : `${tame(data.x.title)} `;
    say(this.at, spot === null ? "" : lead + this.name(spot));
    const widest = Math.max(...Array.from({ length: this.count }, (_, n) => (lead + this.name(n)).length));
    put(this.at, { style: `min-width:${Math.min(widest, 24)}ch` });
    const lines = [...data.series, ...data.rules];
    const entries = pool(this.entries, lines.length, () => make("span.entry", {},
      make("span.sample"), make("span.name"), make("span.value")));
    lines.forEach((line, n) => {
      const [sample, name, value] = entries[n].children;
      this.drawSample(sample, line, n);
      say(name, tame(this.alone ? data.y.title : line.name ?? line.label));
      say(value, line.values ? (spot === null ? "" : this.value(line, spot)) : number(line.value));
      put(value, { style: `min-width:${line.values ? (line.low ? 16 : 6) : 0}ch` });
    });
    this.entries.classList.toggle("lens-chart-alone", this.alone);
  }

  drawSample(holder, line, n) {
    const svg = holder.firstChild ?? holder.appendChild(shape("svg", { width: 26, height: 12, viewBox: "-13 -6 26 12", "aria-hidden": "true" }));
    const [stroke, mark] = pool(svg, 2, () => shape("path"));
    if (!line.values) {
      put(stroke, { d: "M-13 0H13", class: `lens-chart-level lens-chart-level-${n - this.data.series.length}` });
      put(mark, { d: "" });
      return;
    }
    this.drawSeriesSample(stroke, mark, line, n);
  }

  drawSpots() {
    const { data } = this;
    put(this.svg, { role: "listbox", "aria-label": this.label(), "aria-orientation": this.rows ? "vertical" : "horizontal" });
    this.spots = pool(this.part("spots"), this.count, () => shape("rect", { role: "option", tabindex: "-1" }));
    for (let n = 0; n < this.count; n += 1) {
      this.spots[n].spot = n;
      const values = data.series.map((line) => `${this.alone ? "" : `${tame(line.name)} `}${withUnit(this.value(line, n), data.y)}`);
      put(this.spots[n], { ...this.area(n), "aria-label": `${data.x.labels ? "" : `${tame(data.x.title)} `}${this.name(n)}: ${values.join(", ")}` });
    }
    this.settle();
  }

  label() {
    const { data } = this;
    return [tame(data.title), `${titled(data.y)} by ${titled(data.x)}`,
      ...data.rules.map(({ label, value }) => `${tame(label)} ${number(value)}`)].filter(Boolean).join("; ");
  }

  destination({ key }, spot) {
    const [back, on] = this.rows ? ["ArrowUp", "ArrowDown"] : ["ArrowLeft", "ArrowRight"];
    const inside = (n) => Math.min(this.count - 1, Math.max(0, n));
    return { [back]: inside(spot - 1), [on]: inside(spot + 1), Home: 0, End: this.count - 1,
      PageUp: inside(spot - 5), PageDown: inside(spot + 5) }[key];
  }
}

/** Curves with marks, intervals and gaps. */
class Lines extends SeriesPlot {
  selects = true;

  layout() {
    const { x, y } = this.data;
    this.up = ticks(y.range, y.scale, 6);
    const left = Math.ceil(Math.max(26, ...this.up.map(({ text }) => this.text(text)))) + 10;
    const room = this.width - left - 12;
    const all = this.marksAcross(x, room);
    const step = x.labels ? room / Math.max(1, this.count - 1) : room / Math.max(1, all.length - 1);
    const across = this.fitAcross(all, step);
    const right = this.width - Math.max(12, Math.ceil(this.text(all.at(-1)?.text ?? "") / 2));
    this.box = { left, right, top: 8, bottom: 8 + PLOT_HEIGHT };
    this.height = this.box.bottom + this.deep;
    this.x = (value) => left + share(value, x) * (right - left);
    this.y = (value) => this.box.bottom - share(value, y) * PLOT_HEIGHT;
    this.across = across;
  }

  paint() {
    const { box, data } = this;
    this.drawUp(this.up, this.y);
    this.drawAcross(this.across, this.x);
    // A curve that leaves the range is cut at the frame, its marks are not.
    this.clip ??= this.svg.appendChild(shape("svg.clip"));
    put(this.clip, { x: box.left - 6, y: box.top - 6, width: box.right - box.left + 12, height: PLOT_HEIGHT + 12,
      viewBox: `${box.left - 6} ${box.top - 6} ${box.right - box.left + 12} ${PLOT_HEIGHT + 12}` });
    this.drawRules();
    const bands = pool(this.part("bands", this.clip), data.series.length, () => shape("path"));
    const curves = pool(this.part("curves", this.clip), data.series.length, () => shape("path"));
    const marks = pool(this.part("marks", this.clip), data.series.length, () => shape("path"));
    const every = Math.max(1, Math.ceil((9 * this.count) / (box.right - box.left)));
    data.series.forEach((line, n) => {
      const colour = seen(line.colour, this.view.surface);
      put(bands[n], { d: this.band(line), fill: colour });
      put(curves[n], { d: this.curve(line.values), stroke: colour });
      put(marks[n], { d: this.marksOf(line, every), class: markClass(line), stroke: colour, fill: colour });
    });
    this.part("front", this.svg);
  }

  drawRules() {
    const { rules } = this.data;
    const levels = pool(this.part("levels", this.clip), rules.length, () => shape("path"));
    rules.forEach(({ value }, n) => {
      const y = share(value, this.data.y) === undefined ? null : half(this.y(value));
      put(levels[n], { d: y === null ? "" : `M${this.box.left} ${y}H${this.box.right}`, class: `lens-chart-level lens-chart-level-${n}` });
    });
  }

  point(values, n) {
    const y = share(values[n], this.data.y);
    return y === undefined ? null : `${this.x(this.data.x.values[n]).toFixed(1)} ${this.y(values[n]).toFixed(1)}`;
  }

  curve(values) {
    let pen = "M";
    return values.map((_, n) => {
      const at = this.point(values, n);
      const step = at === null ? "" : pen + at;
      pen = at === null ? "M" : "L";
      return step;
    }).join("");
  }

  band({ low, high }) {
    if (!low) return "";
    const runs = [[]];
    low.forEach((_, n) => {
      const ends = [this.point(low, n), this.point(high, n)];
      if (ends.includes(null)) runs.push([]);
      else runs.at(-1).push(ends);
    });
    return runs.filter((run) => run.length).map((run) => {
      const points = [...run.map(([, top]) => top), ...run.map(([bottom]) => bottom).reverse()];
      return `M${points.join("L")}Z`;
    }).join("");
  }

  marksOf({ values, marker }, every) {
    return values.map((_, n) => (n % every ? null : this.point(values, n)))
      .map((at) => (at === null ? "" : `M${at}${MARK[marker]}`)).join("");
  }

  drawSeriesSample(stroke, mark, line) {
    const colour = seen(line.colour, this.view.surface);
    put(stroke, { d: "M-13 0H13", class: "lens-chart-curve", stroke: colour });
    put(mark, { d: `M0 0${MARK[line.marker]}`, class: markClass(line), stroke: colour, fill: colour });
  }

  /** Each x owns the way half to its neighbours. */
  area(n) {
    const { left, right, top } = this.box;
    const at = (k) => this.x(this.data.x.values[k]);
    const from = n ? (at(n - 1) + at(n)) / 2 : left - 6;
    const to = n < this.count - 1 ? (at(n) + at(n + 1)) / 2 : right + 6;
    return { x: from.toFixed(1), y: top, width: Math.max(0, to - from).toFixed(1), height: PLOT_HEIGHT + 20 };
  }

  showAt() {
    if (!this.spots) return;
    const [here, chosen] = [this.here(), this.selected()];
    const front = this.part("front");
    const [hover, accent, frame, label, ...marks] = pool(front, 4 + this.data.series.length,
      (n) => shape(["path.hover", "path.here", "rect.frame", "text.here-text"][n] ?? "path"));
    const upright = (n) => `M${this.x(this.data.x.values[n]).toFixed(1)} ${this.box.top}V${this.box.bottom}`;
    put(hover, { d: here === null || here === chosen ? "" : upright(here) });
    put(accent, { d: chosen === null ? "" : upright(chosen) });
    put(frame, !this.ringed ? { width: 0, height: 0 } : this.area(this.focus));
    const text = chosen === null ? "" : this.markOf(this.data.x, chosen);
    this.nameAcross(label, text, chosen === null ? 0 : this.x(this.data.x.values[chosen]), (n) => this.x(this.across[n].value));
    this.data.series.forEach((line, n) => {
      const at = here === null ? null : this.point(line.values, here);
      const colour = seen(line.colour, this.view.surface);
      put(marks[n], { d: at === null ? "" : MARK[line.marker].replace("m", "M"), class: `${markClass(line)} lens-chart-big`, stroke: colour, fill: colour,
        transform: at === null ? "" : `translate(${at}) scale(1.5)` });
    });
    this.showReadout(here);
  }

}

const markClass = ({ marker }) => (OPEN.has(marker) ? "lens-chart-open" : "lens-chart-mark");

/** Bars from zero: rows for texts, columns for numbers and histograms. */
class Bars extends SeriesPlot {
  selects = false;

  get rows() {
    return Boolean(this.data.x.labels);
  }

  upTitle() {
    return titled(this.rows ? this.data.x : this.data.y);
  }

  acrossTitle() {
    return titled(this.rows ? this.data.y : this.data.x);
  }

  layout() {
    if (this.rows) this.layoutRows();
    else this.layoutColumns();
  }

  layoutRows() {
    const { x, y, series } = this.data;
    const labels = x.labels.map(tame);
    const widest = Math.max(...labels.map((label) => this.text(label)));
    this.above = widest > 0.42 * this.width; // no room beside the bars: then each label stands over its own
    const numbers = Math.max(...series.flatMap(({ values }) => values.map((value) => this.text(number(value)))));
    const left = this.above ? 2 : Math.ceil(widest) + 12;
    const right = this.width - Math.ceil(numbers) - 12;
    this.thick = series.length > 1 ? 13 : 16;
    this.pitch = series.length * (this.thick + 2) + (this.above ? 26 : 8);
    this.box = { left, right, top: 4, bottom: 4 + this.count * this.pitch };
    this.height = this.box.bottom + 24;
    this.deep = 24;
    this.turned = false;
    this.along = (value) => left + Math.min(1, Math.max(0, share(value, y))) * (right - left);
    this.across = ticks(y.range, y.scale, 2 + Math.floor((right - left) / 80));
  }

  layoutColumns() {
    const { x, y, series } = this.data;
    this.up = ticks(y.range, y.scale, 6);
    const left = Math.ceil(Math.max(26, ...this.up.map(({ text }) => this.text(text)))) + 10;
    const right = this.width - 16;
    const room = right - left;
    const step = room / this.count;
    this.box = { left, right, top: 8, bottom: 8 + PLOT_HEIGHT };
    this.x = x.edges ? (value) => left + share(value, x) * room : (n) => left + (n + 0.5) * step;
    const marks = x.edges ? this.marksAcross(x, room) : x.values.map((value, n) => ({ value: n, text: number(value) }));
    this.across = this.fitAcross(marks, x.edges ? room / Math.max(1, marks.length - 1) : step);
    this.height = this.box.bottom + this.deep;
    this.along = (value) => this.box.bottom - Math.min(1, Math.max(0, share(value, y))) * PLOT_HEIGHT;
    const gap = x.edges ? 1 : step * 0.2;
    this.slot = (n) => (x.edges ? [this.x(x.edges[n]), this.x(x.edges[n + 1]) - gap] : [left + n * step + gap / 2, left + (n + 1) * step - gap / 2]);
    this.thick = (this.slot(0)[1] - this.slot(0)[0]) / series.length;
  }

  /** The rectangle of one bar: along the value, and across it. */
  bar(n, k, from, to) {
    const [a, b] = [this.along(from), this.along(to)].sort((p, q) => p - q);
    if (this.rows) {
      const y = this.box.top + n * this.pitch + (this.above ? 20 : 4) + k * (this.thick + 2);
      return { x: a, y, width: b - a, height: this.thick };
    }
    const [left, right] = this.slot(n);
    const wide = (right - left) / this.data.series.length;
    return { x: left + k * wide, y: a, width: Math.max(0.5, wide - (this.data.series.length > 1 ? 1 : 0)), height: b - a };
  }

  paint() {
    const { data, box } = this;
    if (this.rows) this.paintRowAxes();
    else {
      this.drawUp(this.up, this.along);
      this.drawAcross(this.across, this.x);
    }
    const each = data.series.flatMap((line, k) => line.values.map((value, n) => ({ line, k, value, n })));
    const rects = pool(this.part("bars"), each.length, () => shape("rect"));
    const whiskers = pool(this.part("whiskers"), each.length, () => shape("path"));
    const colours = data.series.map((line) => seen(line.colour, this.view.surface));
    each.forEach(({ line, k, value, n }, at) => {
      const shown = known(value) ? this.bar(n, k, 0, value) : { width: 0, height: 0 };
      const inset = data.series.length > 1 ? 0.75 : 0;
      put(rects[at], { ...inner(shown, inset), fill: colours[k], stroke: colours[k], class: `lens-chart-fill-${data.series.length > 1 ? k : "only"}` });
      put(whiskers[at], { d: this.whisker(line, n, k) });
    });
    const texts = pool(this.part("numbers", this.svg, { "aria-hidden": "true" }), this.rows ? each.length : 0, () => shape("text"));
    if (this.rows) {
      each.forEach(({ k, value, n }, at) => {
        put(texts[at], { x: this.width - 2, y: this.bar(n, k, 0, 0).y + this.thick / 2 + 4, "text-anchor": "end" });
        say(texts[at], number(value));
      });
    }
    const levels = pool(this.part("levels"), data.rules.length, () => shape("path"));
    data.rules.forEach(({ value }, n) => {
      const at = half(this.along(value));
      put(levels[n], { d: this.rows ? `M${at} ${box.top}V${box.bottom}` : `M${box.left} ${at}H${box.right}`, class: `lens-chart-level lens-chart-level-${n}` });
    });
    this.part("front");
  }

  paintRowAxes() {
    const { box, data } = this;
    const grid = pool(this.part("grid", this.svg, { "aria-hidden": "true" }), this.across.length, () => shape("path.rule"));
    this.across.forEach(({ value }, n) => {
      put(grid[n], { d: `M${half(this.along(value))} ${box.top}V${box.bottom}`, class: value === 0 ? "lens-chart-zero" : "lens-chart-rule" });
    });
    const labels = pool(this.part("up", this.svg, { "aria-hidden": "true" }), this.count, () => shape("text"));
    data.x.labels.forEach((label, n) => {
      const y = box.top + n * this.pitch;
      put(labels[n], this.above ? { x: 2, y: y + 15, "text-anchor": "start" } : { x: box.left - 10, y: y + this.pitch / 2 + 4, "text-anchor": "end" });
      say(labels[n], tame(label));
    });
    this.drawAcross(this.across, this.along);
  }

  whisker({ low, high }, n, k) {
    if (!known(low?.[n]) || !known(high?.[n])) return "";
    const { x, y, width, height } = this.bar(n, k, low[n], high[n]);
    if (this.rows) {
      const middle = y + height / 2;
      return `M${x} ${middle - 3}v6m0-3h${width}m0-3v6`;
    }
    const middle = x + width / 2;
    return `M${middle - 3} ${y}h6m-3 0v${height}m-3 0h6`;
  }

  drawSeriesSample(stroke, mark, line, n) {
    const colour = seen(line.colour, this.view.surface);
    put(stroke, { d: "", class: "" });
    put(mark, { d: "M-11-4.5h22v9h-22z", class: `lens-chart-fill-${this.data.series.length > 1 ? n : "only"}`, stroke: colour, fill: colour });
  }

  area(n) {
    const { box } = this;
    if (this.rows) return { x: 0, y: box.top + n * this.pitch, width: this.width, height: this.pitch };
    const [left, right] = this.slot(n);
    return { x: left, y: box.top, width: right - left, height: PLOT_HEIGHT + 20 };
  }

  showAt() {
    if (!this.spots) return;
    const here = this.here();
    const [shade, frame] = pool(this.part("front"), 2, (n) => shape(["rect.shade", "rect.frame"][n]));
    put(shade, here === null ? { width: 0, height: 0 } : this.area(here));
    put(frame, !this.ringed ? { width: 0, height: 0 } : inner(this.area(this.focus), 1));
    this.showReadout(here);
  }
}

const inner = ({ x = 0, y = 0, width, height }, by) => ({
  x: x + by, y: y + by, width: Math.max(0, width - 2 * by), height: Math.max(0, height - 2 * by) });

/** Values over two axes, as colours. */
class HeatMap extends Plot {
  upTitle() {
    return titled(this.data.y);
  }

  acrossTitle() {
    return titled(this.data.x);
  }

  layout() {
    const { x, y } = this.data;
    this.wide = x.values.length;
    this.high = y.values.length;
    this.flat = this.data.values.flat();
    const marks = (axis) => axis.values.map((_, n) => ({ value: n, text: this.markOf(axis, n) }));
    const left = Math.ceil(Math.max(26, ...marks(y).map(({ text }) => this.text(text)))) + 10;
    this.w = Math.min(40, Math.max(2, Math.floor((this.width - left - 12) / this.wide)));
    this.h = Math.max(4, Math.min(30, Math.floor(MAP_SIDE / this.high), Math.max(this.w, 12)));
    this.box = { left, right: left + this.wide * this.w, top: 4, bottom: 4 + this.high * this.h };
    this.across = this.fitAcross(marks(x), this.w);
    this.up = this.thin(marks(y), this.h, SIZE + 2);
    this.height = this.box.bottom + this.deep;
    this.x = (n) => left + (n + 0.5) * this.w;
    this.y = (n) => this.box.bottom - (n + 0.5) * this.h;
  }

  paint() {
    this.drawUp(this.up, this.y, false);
    this.drawAcross(this.across, this.x);
    this.drawKey();
    const backing = pool(this.part("backing", this.svg, { "aria-hidden": "true" }), 1, () => shape("path"))[0];
    put(backing, { d: this.outline() });
  }

  /** Lines between the cells that have a value: a cell at the pale end is there, a blank one is not. */
  outline() {
    const { box, w, h, wide } = this;
    const cells = this.flat.map((value, n) => (known(value) ? `M${box.left + (n % wide) * w} ${box.bottom - Math.floor(n / wide) * h}h${w}v${-h}h${-w}z` : ""));
    return cells.join("");
  }

  tone(value) {
    const { range: [low, high], signed } = this.data.value;
    const ramp = this.view.ramps[signed && value > 0 ? 1 : 0];
    const place = signed ? Math.abs(value) / high : (value - low) / (high - low);
    return ramp[Math.round(Math.min(1, Math.max(0, place)) * (STEPS - 1))];
  }

  drawSpots() {
    const { box, w, h, wide, high, data } = this;
    put(this.svg, { role: "grid", "aria-readonly": "true", "aria-label": this.label(), "aria-rowcount": high, "aria-colcount": wide });
    const rows = pool(this.part("cells", this.svg, { role: "presentation" }), high, () => shape("g", { role: "row" }));
    const gap = Math.min(w, h) >= 6 ? 1 : 0;
    this.spots = new Array(wide * high);
    for (let row = 0; row < high; row += 1) {
      const cells = pool(rows[high - 1 - row], wide, () => shape("rect", { role: "gridcell", tabindex: "-1" }));
      const y = box.bottom - (row + 1) * h;
      for (let column = 0; column < wide; column += 1) {
        const cell = cells[column];
        const spot = row * wide + column;
        const value = this.flat[spot];
        this.spots[spot] = cell;
        cell.spot = known(value) ? spot : null;
        put(cell, { x: box.left + column * w, y, width: w - gap, height: h - gap,
          fill: known(value) ? css(this.tone(value).background) : "none", "aria-label": `${this.name(spot)}: ${this.value(spot)}` });
      }
    }
    this.drawBeyond();
    this.drawNumbers();
    this.part("front", this.svg, { "aria-hidden": "true" });
    this.settle();
  }

  /** Values outside the range have the colour of its end, and a mark that says so. */
  drawBeyond() {
    const { range: [low, high] } = this.data.value;
    const paths = pool(this.part("beyond", this.svg, { "aria-hidden": "true" }), 2, () => shape("path"));
    const size = Math.min(this.w, this.h) / 4;
    const where = (test) => this.flat.map((value, n) => (known(value) && test(value) ? n : -1)).filter((n) => n >= 0);
    const draw = (path, places, sign, end) => put(path, { stroke: css(this.tone(end).ink), d: places.map((n) => (
      `M${this.x(n % this.wide) - 0.5 - size} ${this.y(Math.floor(n / this.wide)) - 0.5 + size / 2}${sign}`)).join("") });
    const [under, over] = [where((value) => value < low), where((value) => value > high)];
    draw(paths[0], under, `m0 ${-size}l${size} ${size}l${size} ${-size}`, low);
    draw(paths[1], over, `l${size} ${-size}l${size} ${size}`, high);
    const notes = [under.length ? `⌄ below ${number(low)}` : "", over.length ? `⌃ above ${number(high)}` : ""].filter(Boolean);
    say(this.note, notes.join(", "));
    this.beyond = new Set([...under, ...over]);
  }

  /** Writes the values into the cells where there is room for them. */
  drawNumbers() {
    const texts = this.flat.map((value, n) => (known(value) && !this.beyond.has(n) ? brief(value) : ""));
    const fits = this.h >= 18 && this.flat.length <= 400 && Math.max(...texts.map((text) => this.text(text))) <= this.w - 4;
    const elements = pool(this.part("values", this.svg, { "aria-hidden": "true" }), fits ? texts.length : 0, () => shape("text"));
    if (!fits) return;
    texts.forEach((text, n) => {
      say(elements[n], text);
      if (text) {
        put(elements[n], { x: this.x(n % this.wide) - 0.5, y: this.y(Math.floor(n / this.wide)) + 3.5, "text-anchor": "middle",
          fill: css(this.tone(this.flat[n]).ink) });
      }
    });
  }

  drawKey() {
    const { value } = this.data;
    const { range: [low, high], signed } = value;
    if (!this.note) {
      [this.lowest, this.bar, this.highest, this.what, this.note] = [make("span"), make("span.ramp"), make("span"), make("span"), make("span.note")];
      this.key.append(this.what, this.lowest, this.bar, this.highest, this.note);
      this.key.hidden = false;
    }
    const stops = Array.from({ length: signed ? 17 : 9 }, (_, n, count = signed ? 16 : 8) => css(this.tone(low + ((high - low) * n) / count).background));
    put(this.bar, { style: `background:linear-gradient(to right,${stops.join(",")})` });
    say(this.what, tame(value.title));
    say(this.lowest, number(low));
    say(this.highest, withUnit(number(high), value));
  }

  // ── Reading and walking ──

  name(spot) {
    const { x, y } = this.data;
    const part = (axis, n) => `${tame(axis.title)} ${axis.labels ? tame(axis.labels[n]) : withUnit(number(axis.values[n]), axis)}`;
    return `${part(x, spot % this.wide)}, ${part(y, Math.floor(spot / this.wide))}`;
  }

  value(spot) {
    const { value } = this.data;
    return known(this.flat[spot]) ? `${tame(value.title)} ${withUnit(number(this.flat[spot]), value)}` : "no value";
  }

  label() {
    const { title, value } = this.data;
    return [tame(title), `${titled(value)} by ${this.acrossTitle()} and ${this.upTitle()}`].filter(Boolean).join("; ");
  }

  selected() {
    const chosen = this.view.get("selected")[this.data.name];
    if (!Array.isArray(chosen) || !this.spots) return null;
    return nearest(this.data.y.values, chosen[1]) * this.wide + nearest(this.data.x.values, chosen[0]);
  }

  choice(spot) {
    if (!known(this.flat[spot])) return null;
    return [this.data.x.values[spot % this.wide], this.data.y.values[Math.floor(spot / this.wide)]];
  }

  first() {
    return Math.max(0, this.flat.findIndex(known));
  }

  /** Where a key leads; cells without a value are stepped over. */
  destination({ key, ctrlKey, metaKey }, spot) {
    const [column, row] = [spot % this.wide, Math.floor(spot / this.wide)];
    const across = Array.from({ length: this.wide }, (_, n) => row * this.wide + n).filter((n) => known(this.flat[n]));
    const upward = Array.from({ length: this.high }, (_, n) => n * this.wide + column).filter((n) => known(this.flat[n]));
    const all = ctrlKey || metaKey;
    const step = (line, by) => line[Math.min(line.length - 1, Math.max(0, line.indexOf(spot) + by))];
    const keys = all ? { Home: this.flat.findIndex(known), End: this.flat.findLastIndex(known) } : {
      ArrowLeft: step(across, -1), ArrowRight: step(across, 1), ArrowUp: step(upward, 1), ArrowDown: step(upward, -1),
      Home: across[0], End: across.at(-1), PageUp: step(upward, 5), PageDown: step(upward, -5),
    };
    return keys[key];
  }

  showAt() {
    if (!this.spots) return;
    const [here, chosen] = [this.here(), this.selected()];
    const [hover, gap, accent, x, y] = pool(this.part("front"), 5, (n) => (
      shape(["rect.hover", "rect.gap", "rect.chosen", "text.here-text", "text.here-text"][n])));
    const around = (spot, by) => (spot === null ? { width: 0, height: 0 } : inner({ x: this.x(spot % this.wide) - this.w / 2,
      y: this.y(Math.floor(spot / this.wide)) - this.h / 2, width: this.w - 1, height: this.h - 1 }, by));
    put(hover, around(here === chosen ? null : here, 0.5));
    put(hover, { class: this.ringed && here === this.focus ? "lens-chart-hover lens-chart-ringed" : "lens-chart-hover" });
    put(gap, around(chosen, 1));
    put(accent, around(chosen, 0));
    this.nameAcross(x, chosen === null ? "" : this.markOf(this.data.x, chosen % this.wide), chosen === null ? 0 : this.x(chosen % this.wide),
      (n) => this.x(this.across[n].value));
    this.nameUp(y, chosen);
    this.showReadout(here);
  }

  nameUp(label, chosen) {
    const row = chosen === null ? 0 : Math.floor(chosen / this.wide);
    say(label, chosen === null ? "" : this.markOf(this.data.y, row));
    put(label, { x: this.box.left - 8, y: this.y(row) + 4, "text-anchor": "end" });
    [...this.part("up").children].forEach((other, n) => {
      const near = chosen !== null && Math.abs(this.y(this.up[n].value) - this.y(row)) < SIZE + 1;
      put(other, { visibility: near ? "hidden" : "visible" });
    });
  }

  showReadout(spot) {
    say(this.at, spot === null ? "" : this.name(spot));
    say(this.entries, spot === null ? "" : this.value(spot));
  }
}

/** A value short enough for a cell. */
const brief = (value) => minus(Math.abs(value) < 10 && !Number.isInteger(value) ? value.toFixed(2) : String(Math.round(value)));

const KINDS = { lines: Lines, bars: Bars, heat_map: HeatMap };

// ── The view ────────────────────────────────────────────────────────────────────────────────────────────────────

class Chart {
  constructor(model, el) {
    this.model = model;
    this.undo = [];
    this.plots = [];
    this.row = make("div.row");
    this.placeholder = make("p.placeholder", {}, "Nothing computed yet.");
    this.root = make("div", { class: "lens-look lens-chart", "data-lm-suppress-shortcuts": "true" }, this.row, this.placeholder);
    el.append(this.root);
    this.listen();
    this.retheme();
    this.update();
  }

  get(name) {
    return this.model.get(name) ?? EMPTY[name];
  }

  /** Saved at once: the widget layer throttles, and the kernel's echo of an older value must find nothing unsaved. */
  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  listen() {
    const traits = {
      spec: () => this.update(), busy: () => this.showBusy(),
      selected: () => this.plots.forEach((plot) => plot.showSelected()),
    };
    for (const [name, handler] of Object.entries(traits)) {
      this.model.on(`change:${name}`, handler);
      this.undo.push(() => this.model.off(`change:${name}`, handler));
    }
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.undo.push(watchTheme(() => this.retheme()));
    // Notebooks attach the element after render() returns; the first size it gets is the moment to look at the page.
    this.sizes = new ResizeObserver(() => {
      this.retheme();
      this.plots.filter((plot) => plot.element.clientWidth !== plot.width).forEach((plot) => plot.draw());
    });
    this.sizes.observe(this.root);
    this.undo.push(() => this.sizes.disconnect());
  }

  destroy() {
    this.undo.forEach((step) => step());
    this.root.remove();
  }

  retheme() {
    if (!this.root.isConnected) return;
    const surface = surfaceOf(this.root);
    const { fontFamily } = getComputedStyle(this.root);
    if (String(surface) === String(this.surface) && fontFamily === this.family) return;
    [this.surface, this.family] = [surface, fontFamily];
    this.ramps = [palette(surface), palette(surface, isDark(surface) ? ORANGE.dark : ORANGE.light)];
    this.root.dataset.theme = isDark(surface) ? "dark" : "light";
    this.root.style.setProperty("--lens-surface", css(surface));
    this.plots.forEach((plot) => plot.draw());
  }

  /** New values go into the plots that are there; only a plot of another kind or name is made anew. */
  update() {
    const wanted = this.get("spec").plots ?? [];
    const old = this.plots;
    this.plots = wanted.map(({ kind, name }, n) => {
      const same = old[n]?.data.kind === kind && old[n].data.name === name;
      return same ? old[n] : new KINDS[kind](this);
    });
    if (old.length !== this.plots.length || old.some((plot, n) => plot !== this.plots[n])) this.place();
    this.plots.forEach((plot, n) => plot.update(wanted[n]));
    this.root.classList.toggle("lens-chart-empty", !wanted.length);
    this.showBusy();
  }

  place() {
    this.row.replaceChildren(...this.plots.map(({ element }) => element));
    this.sizes.disconnect();
    [this.root, ...this.plots.map(({ element }) => element)].forEach((element) => this.sizes.observe(element));
  }

  /** Notebook shortcuts such as `d d` must not fire from inside the chart; only Tab travels on. */
  onKey(event) {
    if (event.key !== "Tab") event.stopPropagation();
    if (event.key === "Escape") letGo(this.root);
  }

  showBusy() {
    const busy = Object.keys(this.get("busy")).length > 0;
    this.root.classList.toggle("lens-chart-busy", busy);
    this.row.setAttribute("aria-busy", String(busy));
  }
}

/** Shows a chart in a page without a kernel. Returns a function that takes it away again. */
export function mount(el, state) {
  return render({ model: plainModel({ ...state }), el });
}

function render({ model, el }) {
  const view = new Chart(model, el);
  return () => view.destroy();
}

export default { render };
