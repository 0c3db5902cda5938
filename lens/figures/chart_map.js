const NUMBER_SIZE = 11 / 12; // of the numbers in cells, as a share of other text

/** Values over two axes as colours; y runs upward, or down. */
class HeatMap extends Plot {
  valueAxis() {
    return this.data.value;
  }

  allValues() {
    return this.data.values.flat();
  }

  upTitle() {
    return titled(this.data.y);
  }

  acrossTitle() {
    return titled(this.data.x);
  }

  layout() {
    const { x, y, square } = this.data;
    this.columns = x.values.length;
    this.rows = y.values.length;
    this.flat = this.allValues();
    this.names = [x, y].map((axis) => axis.values.map((value, n) => (
      `${tame(axis.title)} ${axis.labels ? tame(axis.labels[n]) : withUnit(number(value), axis)}`)));
    const marks = (axis) => axis.values.map((_, n) => ({ value: n, text: this.markOf(axis, n) }));
    const left = Math.ceil(Math.max(26, ...marks(y).map(({ text }) => this.text(text)))) + 10;
    const room = (this.width - left - 12) / this.columns;
    this.w = Math.min(40, room < 4 ? room : Math.floor(room));
    this.h = Math.max(4, Math.min(30, Math.floor(MAP_SIDE / this.rows), square ? this.w : Math.max(this.w, 12)));
    this.box = { left, right: left + this.columns * this.w, top: 4, bottom: 4 + this.rows * this.h };
    this.across = this.fitAcross(marks(x), this.w);
    this.up = this.thin(marks(y), this.h, SIZE + 6);
    this.height = this.box.bottom + this.deep;
    this.x = (n) => left + (n + 0.5) * this.w;
    this.y = (n) => this.foot(n) - 0.5 * this.h;
  }

  /** The lower edge of a row. */
  foot(row) {
    return this.data.down ? this.box.top + (row + 1) * this.h : this.box.bottom - row * this.h;
  }

  paint() {
    this.drawUp(this.up, this.y, false);
    this.drawAcross(this.across, this.x);
    this.drawKey();
    const backing = pool(this.quiet("backing"), 1, () => shape("path"))[0];
    put(backing, { d: this.outline() });
  }

  /** Lines between the cells that have a value: a cell at the pale end is there, a blank one is not. */
  outline() {
    const { box, w, h, columns } = this;
    const corner = (n) => `M${box.left + (n % columns) * w} ${this.foot(Math.floor(n / columns))}`;
    return this.flat.map((value, n) => (known(value) ? `${corner(n)}h${w}v${-h}h${-w}z` : "")).join("");
  }

  /** The middle of a cell, without the line that parts it from the next. */
  centre(n) {
    return [this.x(n % this.columns) - 0.5, this.y(Math.floor(n / this.columns)) - 0.5];
  }

  tone(value) {
    const { range: [low, high], signed } = this.data.value;
    const ramp = this.view.ramps[signed && value > 0 ? 1 : 0];
    const place = signed ? Math.abs(value) / high : (value - low) / (high - low);
    return ramp[Math.round(Math.min(1, Math.max(0, place)) * (STEPS - 1))];
  }

  drawSpots() {
    const { columns, rows } = this;
    put(this.svg, { role: "grid", "aria-readonly": "true", "aria-label": this.label(), "aria-rowcount": rows,
      "aria-colcount": columns });
    this.placeSpots();
    this.flat.forEach((value, spot) => {
      put(this.spots[spot], { fill: known(value) ? this.tone(value).fill : "none",
        "aria-label": `${this.name(spot)}: ${this.value(spot)}` });
    });
    this.drawBeyond();
    this.drawNumbers();
    this.quiet("front");
  }

  /** Cells where they belong, top row first as a voice reads them; values that change leave them where they are. */
  placeSpots() {
    const { box, w, h, columns, rows, data: { down } } = this;
    const places = [box.left, box.bottom, w, h, columns, rows, down].join();
    if (places === this.places) return;
    this.places = places;
    const all = this.part("cells", this.svg, { role: "presentation" });
    const groups = pool(all, rows, () => shape("g", { role: "row" }));
    const gap = Math.min(w, h) >= 6 ? 1 : 0;
    this.spots = [];
    for (let row = 0; row < rows; row += 1) {
      const cells = pool(groups[down ? row : rows - 1 - row], columns, () => shape("rect", { role: "gridcell", tabindex: "-1" }));
      [...cells].forEach((cell, column) => {
        put(cell, { x: box.left + column * w, y: this.foot(row) - h, width: w - gap, height: h - gap });
        cell.spot = this.spots.push(cell) - 1;
      });
    }
  }

  /** Values outside the range have the colour of its end, and a mark that says so. */
  drawBeyond() {
    const { range: [low, high] } = this.data.value;
    const paths = pool(this.quiet("beyond"), 2, () => shape("path"));
    const size = Math.min(this.w, this.h) / 4;
    const where = (test) => this.flat.map((value, n) => (known(value) && test(value) ? n : -1)).filter((n) => n >= 0);
    const corner = (n) => {
      const [x, y] = this.centre(n);
      return `M${x - size} ${y + size / 2}`;
    };
    const draw = (path, places, sign, end) => put(path, { stroke: this.tone(end).ink,
      d: places.map((n) => corner(n) + sign).join("") });
    const [under, over] = [where((value) => value < low), where((value) => value > high)];
    draw(paths[0], under, `m0 ${-size}l${size} ${size}l${size} ${-size}`, low);
    draw(paths[1], over, `l${size} ${-size}l${size} ${size}`, high);
    const notes = [under.length && `⌄ below ${number(low)}`, over.length && `⌃ above ${number(high)}`];
    say(this.note, notes.filter(Boolean).join(", "));
    this.beyond = new Set([...under, ...over]);
  }

  /** Writes the values into the cells where there is room for them. */
  drawNumbers() {
    const whole = this.flat.every((value) => !known(value) || Number.isInteger(value) || Math.abs(value) >= 100);
    const written = (value, n) => (known(value) && !this.beyond.has(n) ? brief(value, whole ? 0 : 2) : "");
    const texts = this.flat.map(written);
    const fits = this.h >= 18 && texts.length <= 400 && texts.every((text) => this.text(text) * NUMBER_SIZE <= this.w - 3);
    const group = this.quiet("values");
    const elements = pool(group, fits ? texts.length : 0, () => shape("text", { "text-anchor": "middle" }));
    texts.slice(0, elements.length).forEach((text, n) => {
      say(elements[n], text);
      const [x, y] = this.centre(n);
      if (text) put(elements[n], { x, y: y + 4, style: `fill:${this.tone(this.flat[n]).ink}` });
    });
  }

  drawKey() {
    const { value } = this.data;
    const { range: [low, high] } = value;
    if (!this.note) {
      const parts = ["span", "span", "span.ramp", "span", "span.note"].map((what) => make(what));
      [this.what, this.lowest, this.bar, this.highest, this.note] = parts;
      this.key.append(...parts);
      this.key.hidden = false;
    }
    const stops = Array.from({ length: 17 }, (_, n) => this.tone(low + ((high - low) * n) / 16).fill);
    put(this.bar, { style: `background:linear-gradient(to right,${stops.join(",")})` });
    say(this.what, tame(value.title));
    say(this.lowest, number(low));
    say(this.highest, withUnit(number(high), value));
  }

  // ── Reading and walking ──

  name(spot) {
    return `${this.names[0][spot % this.columns]}, ${this.names[1][Math.floor(spot / this.columns)]}`;
  }

  value(spot) {
    if (!known(this.flat[spot])) return "no value";
    const { value } = this.data;
    return `${tame(value.title)} ${withUnit(this.write(this.flat[spot]), value)}`;
  }

  label() {
    const { title, value } = this.data;
    return [tame(title), `${titled(value)} by ${this.acrossTitle()} and ${this.upTitle()}`].filter(Boolean).join("; ");
  }

  selected() {
    const chosen = this.view.get("selected")[this.data.name];
    if (!Array.isArray(chosen) || !this.spots) return null;
    return nearest(this.data.y.values, chosen[1]) * this.columns + nearest(this.data.x.values, chosen[0]);
  }

  choice(spot) {
    if (!known(this.flat[spot])) return null;
    return [this.data.x.values[spot % this.columns], this.data.y.values[Math.floor(spot / this.columns)]];
  }

  first() {
    return Math.max(0, this.flat.findIndex(known));
  }

  /** Where a key leads; cells without a value are stepped over. */
  destination({ key, ctrlKey, metaKey }, spot) {
    const { columns, rows, flat } = this;
    const row = spot - (spot % columns);
    const up = this.data.down ? -1 : 1;
    const across = Array.from({ length: columns }, (_, n) => row + n).filter((n) => known(flat[n]));
    const along = Array.from({ length: rows }, (_, n) => n * columns + (spot % columns)).filter((n) => known(flat[n]));
    const step = (line, by) => line[Math.min(line.length - 1, Math.max(0, line.indexOf(spot) + by))];
    const keys = ctrlKey || metaKey ? { Home: flat.findIndex(known), End: flat.findLastIndex(known) } : {
      ArrowLeft: step(across, -1), ArrowRight: step(across, 1), ArrowUp: step(along, up), ArrowDown: step(along, -up),
      Home: across[0], End: across.at(-1), PageUp: step(along, 5 * up), PageDown: step(along, -5 * up),
    };
    return keys[key];
  }

  showAt() {
    if (!this.spots) return;
    const [here, chosen] = [this.here(), this.selected()];
    const [hover, gap, accent, x, y] = pool(this.quiet("front"), 5, (n) => (
      shape(["rect.hover", "rect.gap", "rect.chosen", "text.here-text", "text.here-text"][n])));
    const around = (spot, by) => {
      if (spot === null) return NOWHERE;
      const [x0, y0] = this.centre(spot);
      const [width, height] = [this.w - 1, this.h - 1];
      return inner({ x: x0 - width / 2, y: y0 - height / 2, width, height }, by);
    };
    const ringed = this.ringed && here === this.focus;
    put(hover, { ...around(here === chosen && !ringed ? null : here, 0.5),
      class: `lens-chart-hover${ringed ? " lens-chart-ringed" : ""}` });
    put(gap, around(chosen, -0.25));
    put(accent, around(chosen, -1.75));
    const column = chosen === null ? null : chosen % this.columns;
    this.nameAcross(x, this.markOf(this.data.x, column), this.x(column), (n) => this.x(this.across[n].value));
    this.nameUp(y, chosen);
    this.showReadout(here);
  }

  nameUp(label, chosen) {
    const row = chosen === null ? 0 : Math.floor(chosen / this.columns);
    say(label, chosen === null ? "" : this.markOf(this.data.y, row));
    put(label, { x: this.box.left - 8, y: this.y(row) + 4, "text-anchor": "end" });
    [...this.part("up").children].forEach((other, n) => {
      const near = chosen !== null && Math.abs(this.y(this.up[n].value) - this.y(row)) < SIZE + 4;
      put(other, { visibility: near ? "hidden" : "visible" });
    });
  }

  showReadout(spot) {
    const { x, y, value } = this.data;
    say(this.at, spot === null ? `${tame(x.title)} –, ${tame(y.title)} –` : this.name(spot));
    say(this.entries, spot === null ? `${tame(value.title)} –` : this.value(spot));
    put(this.entries, { class: "lens-chart-value" });
  }
}

/** A value short enough for a cell. */
function brief(value, digits) {
  const text = value.toFixed(digits);
  return minus(Number(text) === 0 ? text.replace("-", "") : text);
}
