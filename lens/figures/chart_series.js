/** Plots with named series over one x: the read-out is their legend. */
class SeriesPlot extends Plot {
  get count() {
    return this.data.series[0].values.length;
  }

  valueAxis() {
    return this.data.y;
  }

  allValues() {
    return this.data.series.flatMap(({ values, low = [], high = [] }) => [...values, ...low, ...high]);
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

  /** The x with its title. */
  place(spot) {
    return this.data.x.labels ? this.name(spot) : `${tame(this.data.x.title)} ${this.name(spot)}`;
  }

  value({ values, low, high }, spot) {
    const ends = [low?.[spot], high?.[spot]];
    return this.write(values[spot]) + (ends.every(known) ? ` [${ends.map(this.write).join(", ")}]` : "");
  }

  get alone() {
    return this.data.series.length === 1 && !this.data.rules.length;
  }

  showReadout(spot) {
    const { data } = this;
    say(this.at, spot === null ? `${tame(data.x.title)} –` : this.place(spot));
    const lines = [...data.series, ...data.rules];
    const entries = pool(this.entries, lines.length, () => make("span.entry", {},
      make("span.sample"), make("span.name"), make("span.value")));
    lines.forEach((line, n) => {
      const [sample, name, value] = entries[n].children;
      this.drawSample(sample, line, n);
      say(name, tame(this.alone ? data.y.title : line.name ?? line.label));
      if (line.values) say(value, spot === null ? "–" : this.value(line, spot));
      else say(value, this.write(line.value));
      put(value, { style: `min-width:${this.room[n] ?? 0}ch` });
    });
    this.entries.classList.toggle("lens-chart-alone", this.alone);
  }

  drawSample(holder, line, n) {
    const size = { width: 26, height: 12, viewBox: "-13 -6 26 12", "aria-hidden": "true" };
    const svg = holder.firstChild ?? holder.appendChild(shape("svg", size));
    const [stroke, mark] = pool(svg, 2, () => shape("path"));
    if (!line.values) {
      put(stroke, { d: "M-13 0H13", class: levelClass(n - this.data.series.length) });
      put(mark, { d: "" });
      return;
    }
    this.drawSeriesSample(stroke, mark, line, n);
  }

  drawSpots() {
    const { data } = this;
    put(this.svg, { role: "listbox", "aria-label": this.label(),
      "aria-orientation": this.rows ? "vertical" : "horizontal" });
    this.spots = pool(this.part("spots"), this.count, () => shape("rect", { role: "option", tabindex: "-1" }));
    const names = data.series.map(({ name }) => (this.alone ? "" : `${tame(name)} `));
    this.room = data.series.map(() => 0);
    let widest = 0;
    for (let n = 0; n < this.count; n += 1) {
      const values = data.series.map((line) => this.value(line, n));
      const place = this.place(n);
      // The read-out keeps room for its longest value, so that nothing moves while a reader does.
      values.forEach((text, k) => { this.room[k] = Math.max(this.room[k], text.length); });
      widest = Math.max(widest, this.text(place));
      this.spots[n].spot = n;
      const spoken = values.map((text, k) => names[k] + withUnit(text, data.y)).join(", ");
      put(this.spots[n], { ...this.area(n), "aria-label": `${place}: ${spoken}` });
    }
    put(this.at, { style: `min-width:${Math.ceil(Math.min(1.1 * widest, 240))}px` });
  }

  label() {
    const { data } = this;
    return [tame(data.title), `${titled(data.y)} by ${titled(data.x)}`,
      ...data.rules.map(({ label, value }) => `${tame(label)} ${this.write(value)}`)].filter(Boolean).join("; ");
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
    // A curve that leaves the range is cut a mark's width beyond the frame, so that the marks on it stay whole.
    this.clip ??= this.svg.appendChild(shape("svg.clip", { "aria-hidden": "true" }));
    const frame = inner({ ...box, x: box.left, y: box.top, width: box.right - box.left, height: PLOT_HEIGHT }, -6);
    put(this.clip, { ...frame, viewBox: Object.values(frame).join(" ") });
    this.drawRules();
    const bands = pool(this.part("bands", this.clip), data.series.length, () => shape("path"));
    const curves = pool(this.part("curves", this.clip), data.series.length, () => shape("path"));
    const marks = pool(this.part("marks", this.clip), data.series.length, () => shape("path"));
    const every = Math.max(1, Math.ceil((9 * this.count) / (box.right - box.left)));
    data.series.forEach((line, n) => {
      const colour = this.view.seen(line.colour);
      put(bands[n], { d: this.band(line), fill: colour });
      put(curves[n], { d: this.curve(line.values), stroke: colour });
      put(marks[n], { d: this.marksOf(line, every), class: markClass(line), stroke: colour, fill: colour });
    });
    this.quiet("front");
  }

  drawRules() {
    const { rules } = this.data;
    const levels = pool(this.part("levels", this.clip), rules.length, () => shape("path"));
    rules.forEach(({ value }, n) => {
      const there = share(value, this.data.y) !== undefined;
      const d = there ? `M${this.box.left} ${half(this.y(value))}H${this.box.right}` : "";
      put(levels[n], { d, class: levelClass(n) });
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
    const colour = this.view.seen(line.colour);
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
    const front = this.quiet("front");
    const [hover, accent, frame, label, ...marks] = pool(front, 4 + this.data.series.length,
      (n) => shape(["path.hover", "path.here", "rect.frame", "text.here-text"][n] ?? "path"));
    const upright = (n) => `M${this.x(this.data.x.values[n]).toFixed(1)} ${this.box.top}V${this.box.bottom}`;
    put(hover, { d: here === null || here === chosen ? "" : upright(here) });
    put(accent, { d: chosen === null ? "" : upright(chosen) });
    put(frame, !this.ringed ? NOWHERE : this.area(this.focus));
    const at = chosen === null ? 0 : this.x(this.data.x.values[chosen]);
    this.nameAcross(label, this.markOf(this.data.x, chosen), at, (n) => this.x(this.across[n].value));
    this.data.series.forEach((line, n) => {
      const at = here === null ? null : this.point(line.values, here);
      const colour = this.view.seen(line.colour);
      const larger = { d: `M0 0${MARK[line.marker]}`, transform: `translate(${at}) scale(1.5)` };
      put(marks[n], { ...(at === null ? { d: "" } : larger), class: markClass(line), stroke: colour, fill: colour });
    });
    this.showReadout(here);
  }

}

const levelClass = (n) => `lens-chart-level lens-chart-level-${n}`;
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
    // Rows are named where they stand; only a voice needs the name in the read-out.
    this.at.classList.toggle("lens-chart-unseen", this.rows);
    if (this.rows) this.layoutRows();
    else this.layoutColumns();
  }

  layoutRows() {
    const { x, y, series } = this.data;
    const labels = x.labels.map(tame);
    const widest = Math.max(...labels.map((label) => this.text(label)));
    this.above = widest > 0.42 * this.width; // no room beside the bars: then each label stands over its own
    const numbers = Math.max(...series.flatMap(({ values }) => values.map((value) => this.text(this.write(value)))));
    const right = this.width - Math.ceil(numbers) - 12;
    const room = right - (this.above ? 0 : widest + 12);
    this.across = ticks(y.range, y.scale, 2 + Math.floor(room / 80));
    const first = this.above ? this.text(this.across[0]?.text ?? "") / 2 + 1 : 0; // half of it stands left of the bars
    const left = Math.ceil(right - room + first);
    this.thick = series.length > 1 ? 13 : 16;
    this.pitch = series.length * (this.thick + 2) + (this.above ? 26 : 8);
    this.box = { left, right, top: 4, bottom: 4 + this.count * this.pitch };
    this.height = this.box.bottom + 24;
    this.deep = 24;
    this.turned = false;
    this.along = (value) => left + Math.min(1, Math.max(0, share(value, y))) * (right - left);
  }

  layoutColumns() {
    const { x, y } = this.data;
    this.up = ticks(y.range, y.scale, 6);
    const left = Math.ceil(Math.max(26, ...this.up.map(({ text }) => this.text(text)))) + 10;
    const right = this.width - 16;
    const room = right - left;
    const step = room / this.count;
    this.box = { left, right, top: 8, bottom: 8 + PLOT_HEIGHT };
    this.x = (at) => left + (x.edges ? share(at, x) * room : (at + 0.5) * step);
    const marks = x.edges ? this.marksAcross(x, room) : x.values.map((_, n) => ({ value: n, text: this.markOf(x, n) }));
    this.across = this.fitAcross(marks, x.edges ? room / Math.max(1, marks.length - 1) : step);
    this.height = this.box.bottom + this.deep;
    this.along = (value) => this.box.bottom - Math.min(1, Math.max(0, share(value, y))) * PLOT_HEIGHT;
    const gap = x.edges ? 1 : step * 0.2;
    this.slot = (n) => (x.edges ? [this.x(x.edges[n]), this.x(x.edges[n + 1]) - gap]
      : [left + n * step + gap / 2, left + (n + 1) * step - gap / 2]);
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
    const gap = this.data.series.length > 1 ? 1 : 0;
    return { x: left + k * wide, y: a, width: Math.max(0.5, wide - gap), height: b - a };
  }

  paint() {
    const { data, box } = this;
    if (this.rows) this.paintRowAxes();
    else {
      this.drawUp(this.up, this.along);
      this.drawAcross(this.across, this.x);
    }
    this.paintBars();
    const levels = pool(this.quiet("levels"), data.rules.length, () => shape("path"));
    data.rules.forEach(({ value }, n) => {
      const at = half(this.along(value));
      const d = this.rows ? `M${at} ${box.top}V${box.bottom}` : `M${box.left} ${at}H${box.right}`;
      put(levels[n], { d, class: levelClass(n) });
    });
    this.quiet("front");
  }

  paintBars() {
    const { series } = this.data;
    const each = series.flatMap((line, k) => line.values.map((value, n) => ({ line, k, value, n })));
    const rects = pool(this.quiet("bars"), each.length, () => shape("rect"));
    const whiskers = pool(this.quiet("whiskers"), each.length, () => shape("path"));
    const ends = () => shape("text", { "text-anchor": "end" });
    const numbers = pool(this.quiet("numbers"), this.rows ? each.length : 0, ends);
    const inset = series.length > 1 ? 0.75 : 0; // half the stroke that tells hollow bars
    each.forEach(({ line, k, value, n }, at) => {
      const colour = this.view.seen(line.colour);
      const place = known(value) ? this.bar(n, k, 0, value) : NOWHERE;
      put(rects[at], { ...inner(place, inset), fill: colour, stroke: colour, class: this.fillClass(k) });
      put(whiskers[at], { d: this.whisker(line, n, k) });
      if (!this.rows) return;
      put(numbers[at], { x: this.width - 2, y: this.bar(n, k, 0, 0).y + this.thick / 2 + 4 });
      say(numbers[at], this.write(value));
    });
  }

  fillClass(k) {
    return `lens-chart-fill-${this.data.series.length > 1 ? k : "only"}`;
  }

  paintRowAxes() {
    const { box, data } = this;
    const grid = pool(this.quiet("grid"), this.across.length, () => shape("path"));
    this.across.forEach(({ value }, n) => {
      put(grid[n], { d: `M${half(this.along(value))} ${box.top}V${box.bottom}`, class: gridClass(value) });
    });
    const labels = pool(this.quiet("up"), this.count, () => shape("text"));
    data.x.labels.forEach((label, n) => {
      const y = box.top + n * this.pitch;
      put(labels[n], this.above ? { x: 2, y: y + 15, "text-anchor": "start" }
        : { x: box.left - 10, y: y + this.pitch / 2 + 4, "text-anchor": "end" });
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
    const colour = this.view.seen(line.colour);
    put(stroke, { d: "", class: "" });
    put(mark, { d: "M-11-4.5h22v9h-22z", class: this.fillClass(n), stroke: colour, fill: colour });
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
    const [shade, frame] = pool(this.quiet("front"), 2, (n) => shape(["rect.shade", "rect.frame"][n]));
    put(shade, here === null ? NOWHERE : this.area(here));
    put(frame, !this.ringed ? NOWHERE : inner(this.area(this.focus), 1));
    this.showReadout(here);
  }
}

const inner = ({ x = 0, y = 0, width, height }, by) => ({
  x: x + by, y: y + by, width: Math.max(0, width - 2 * by), height: Math.max(0, height - 2 * by) });
