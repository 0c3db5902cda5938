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
    if (!ends.every(known)) return this.write(values[spot]);
    if (!known(values[spot])) return ends.map(this.write).join(" to ");
    return `${this.write(values[spot])} [${ends.map(this.write).join(", ")}]`;
  }

  get alone() {
    return this.data.series.length === 1 && !this.data.rules.length;
  }

  showReadout(spot) {
    const { data } = this;
    say(this.at, spot === null ? `${tame(data.x.title)} –` : this.place(spot));
    const lines = [...data.series, ...(this.rulesNamed ? [] : data.rules)];
    const entries = pool(this.entries, lines.length, () => make("span.entry", {},
      make("span.sample"), make("span.name"), make("span.value")));
    lines.forEach((line, n) => {
      const [sample, name, value] = entries[n].children;
      this.drawSample(sample, line, n);
      say(name, tame(this.alone ? data.y.title : line.name ?? line.label));
      if (line.values) say(value, spot === null ? "–" : this.value(line, spot));
      else say(value, this.ruleValue(line));
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
      ...data.rules.map((line) => `${tame(line.label)} ${this.ruleValue(line)}`)].filter(Boolean).join("; ");
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
    this.layoutAxes();
  }

  paint() {
    const { box, data } = this;
    this.drawUp(this.up, this.y);
    this.drawAcross(this.across, this.x);
    this.drawFrame();
    this.ink = this.inked();
    this.drawRules();
    const bands = pool(this.part("bands", this.clip), data.series.length, () => shape("path"));
    const curves = pool(this.part("curves", this.clip), data.series.length, () => shape("path"));
    const marks = pool(this.part("marks", this.clip), data.series.length, () => shape("path"));
    const every = Math.max(1, Math.ceil((9 * this.count) / (box.right - box.left)));
    data.series.forEach((line, n) => {
      const colour = this.view.seen(line.colour);
      put(bands[n], { d: this.band(line), fill: colour, class: data.marks ? "" : "lens-chart-dense" });
      put(curves[n], { d: this.curve(line.values), stroke: colour, class: this.dashClass(n) });
      put(marks[n], { d: data.marks ? this.marksOf(line, every) : "", class: markClass(line), stroke: colour, fill: colour });
    });
    this.quiet("front");
  }

  /** Places that a text had better leave free: the points of all curves. */
  inked() {
    const { series, x, y } = this.data;
    const all = series.flatMap(({ values, low = [], high = [] }) => [values, low, high]);
    return all.flatMap((values) => closely(values.flatMap((value, n) => (
      share(value, y) === undefined ? [] : [[this.x(x.values[n]), this.y(value)]]))));
  }

  /** Many points leave no room for marks; then each curve has its own dashes. */
  dashClass(n) {
    return this.data.marks ? "" : dashClass(n);
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

  drawSeriesSample(stroke, mark, line, n) {
    const colour = this.view.seen(line.colour);
    put(stroke, { d: "M-13 0H13", class: `lens-chart-curve ${this.dashClass(n)}`, stroke: colour });
    const d = this.data.marks ? `M0 0${MARK[line.marker]}` : "";
    put(mark, { d, class: markClass(line), stroke: colour, fill: colour });
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
