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
    const { x, y, series } = this.data;
    // Series that never meet (kinds of one thing) take turns in one row of bars.
    const meet = series[0].values.some((_, n) => series.filter(({ values }) => known(values[n])).length > 1);
    this.beside = meet ? series.length : 1;
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
    const wide = (right - left) / this.beside;
    const gap = this.beside > 1 ? 1 : 0;
    return { x: left + (k % this.beside) * wide, y: a, width: Math.max(0.5, wide - gap), height: b - a };
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
