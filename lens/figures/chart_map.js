/** Heat maps: values over two axes, y upward. */

/** Values over two axes, as colours. */
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
    const { x, y } = this.data;
    this.wide = x.values.length;
    this.high = y.values.length;
    this.flat = this.data.values.flat();
    const marks = (axis) => axis.values.map((_, n) => ({ value: n, text: this.markOf(axis, n) }));
    const left = Math.ceil(Math.max(26, ...marks(y).map(({ text }) => this.text(text)))) + 10;
    const room = (this.width - left - 12) / this.wide;
    this.w = Math.min(40, room < 4 ? room : Math.floor(room));
    this.h = Math.max(4, Math.min(30, Math.floor(MAP_SIDE / this.high), Math.max(this.w, 12)));
    this.box = { left, right: left + this.wide * this.w, top: 4, bottom: 4 + this.high * this.h };
    this.across = this.fitAcross(marks(x), this.w);
    this.up = this.thin(marks(y), this.h, SIZE + 6);
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
          style: `fill:${css(this.tone(this.flat[n]).ink)}` });
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
    return known(this.flat[spot]) ? `${tame(value.title)} ${withUnit(this.write(this.flat[spot]), value)}` : "no value";
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
    put(gap, around(chosen, -0.25));
    put(accent, around(chosen, -1.75));
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
    const { x, y, value } = this.data;
    say(this.at, spot === null ? `${tame(x.title)} –, ${tame(y.title)} –` : this.name(spot));
    say(this.entries, spot === null ? `${tame(value.title)} –` : this.value(spot));
  }
}

/** A value short enough for a cell. */
const brief = (value) => minus(Math.abs(value) < 10 && !Number.isInteger(value) ? value.toFixed(2) : String(Math.round(value)));
