/** One head's attention: how its numbers are read, and its map of queries (down) and keys (right). */

const piece = maker("lens-heads");
const MAP = 470; // the largest side of a map, in pixels
const SMALL = 10.5 / 12; // of the tokens beside a map, as a share of other text
const LABELLED = 11; // pixels of a cell from which its token is written beside it

/** Pages can hold several copies of this module, so the counter belongs to the page. */
function nextSerial() {
  const name = Symbol.for("lens-heads-serial");
  globalThis[name] = (globalThis[name] ?? 0) + 1;
  return `lens-heads-${globalThis[name]}`;
}

const percent = (share) => (share < 0.005 ? "under 1\u00a0%" : `${Math.round(100 * share)}\u00a0%`);

/** Colours cells on a canvas of as many pixels; `at(row, column)` gives NaN for a blank one. */
function paintCells(canvas, side, at, shade) {
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  for (let row = 0, n = 0; row < side; row += 1) {
    for (let column = 0; column < side; column += 1, n += 4) {
      const value = at(row, column);
      if (Number.isNaN(value)) continue;
      const [r, g, b] = shade(value).background;
      image.data[n] = r;
      image.data[n + 1] = g;
      image.data[n + 2] = b;
      image.data[n + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

/** A pattern whose every weight is here: rows of a lower triangle, one after the other. */
class Pattern {
  tile = 1;

  constructor({ key, parts, size, values, head, detail }) {
    Object.assign(this, { key, parts, size, values });
    this.side = size;
    this.start = (head * size * (size + 1)) / 2;
    this.logits = detail?.logits ? decode(detail.logits) : null;
    this.bound = detail?.logits?.bound ?? 1;
  }

  place(query, key) {
    return (query * (query + 1)) / 2 + key;
  }

  weight(query, key) {
    return key > query ? NaN : this.values[this.start + this.place(query, key)];
  }

  logit(query, key) {
    return key > query || !this.logits ? NaN : this.logits[this.place(query, key)];
  }

  /** [token, weight] of all that a query sees, or of all that see a key; the strongest first. */
  ties(token, direction) {
    const range = direction === "to" ? [0, token] : [token, this.size - 1];
    const found = [];
    for (let other = range[0]; other <= range[1]; other += 1) {
      const weight = direction === "to" ? this.weight(token, other) : this.weight(other, token);
      if (!Number.isNaN(weight)) found.push([other, weight]);
    }
    return found.sort((a, b) => b[1] - a[1]);
  }
}

/** A long text's pattern: the largest weight of each tile, and the strongest keys of each query. */
class TiledPattern {
  constructor({ key, parts, size, detail }) {
    Object.assign(this, { key, parts, size });
    const { tiles, logits, edges } = detail;
    [this.side] = tiles.shape;
    this.tile = tiles.tile;
    this.values = decode(tiles);
    this.logits = logits ? decode(logits) : null;
    this.bound = logits?.bound ?? 1;
    [this.keys, this.weights] = [decode(edges.keys), decode(edges.weights)];
    [, this.most] = edges.keys.shape;
  }

  weight(row, column) {
    return column > row ? NaN : this.values[row * this.side + column];
  }

  logit(row, column) {
    return column > row || !this.logits ? NaN : this.logits[row * this.side + column];
  }

  ties(token, direction) {
    const found = [];
    const { most, keys, weights } = this;
    const rows = direction === "to" ? [token, token] : [token, this.size - 1];
    for (let query = rows[0]; query <= rows[1]; query += 1) {
      for (let n = query * most; n < (query + 1) * most; n += 1) {
        if (Number.isNaN(weights[n])) continue;
        if (direction === "to") found.push([keys[n], weights[n]]);
        else if (keys[n] === token) found.push([query, weights[n]]);
      }
    }
    return found.sort((a, b) => b[1] - a[1]);
  }
}

/** The map of a pattern, with one cell that the keys walk. */
class PatternMap {
  constructor(view) {
    this.view = view;
    this.hover = null;
    this.cursor = [0, 0];
    this.title = make("h3");
    this.readout = make("p.readout", { "aria-live": "polite", "aria-atomic": "true" });
    this.key = make("span.key");
    this.yTitle = make("span", { "aria-hidden": "true" }, "query");
    this.canvas = piece("canvas.cells", { "aria-hidden": "true" });
    this.svg = shape("svg.svg", { "aria-hidden": "true" });
    this.layers = Object.fromEntries(["outline", "up", "across", "front"].map((name) => [name, this.svg.appendChild(shape(`g.${name}`))]));
    this.grid = piece("div.walk", { role: "grid", "aria-readonly": "true" });
    this.xTitle = make("p.x", { "aria-hidden": "true" }, "key");
    this.plane = piece("div.plane", {}, this.canvas, this.svg, this.grid);
    this.body = make("div.body", {}, this.plane, this.xTitle);
    this.element = make("figure.plot", {}, this.title, this.readout, make("div.head", {}, this.yTitle, this.key), this.body);
    this.buildKey();
    this.listen();
  }

  buildKey() {
    [this.what, this.lowest, this.bar, this.highest] = ["span", "span", "span.ramp", "span"].map((what) => make(what));
    this.key.append(this.what, this.lowest, this.bar, this.highest);
  }

  listen() {
    const on = (event, handler) => this.plane.addEventListener(event, handler);
    on("pointermove", (event) => this.hoverAt(event.pointerType === "touch" ? null : this.cellAt(event)));
    on("pointerleave", () => this.hoverAt(null));
    on("click", (event) => {
      const cell = this.cellAt(event);
      if (!cell) return;
      this.walkTo(cell);
      this.pin(cell);
    });
    on("keydown", (event) => this.onKey(event));
    on("focusin", () => { this.focused = true; this.mark(); this.follow(this.cursor); });
    on("focusout", () => { this.focused = false; this.mark(); this.follow(null); });
  }

  // ── Drawing ──

  update(pattern) {
    this.pattern = pattern;
    this.hover = null;
    this.cursor = this.inside(this.cursor);
    this.draw();
  }

  get values() {
    return this.view.get("values");
  }

  at(row, column) {
    return this.values === "logit" ? this.pattern.logit(row, column) : this.pattern.weight(row, column);
  }

  shade(value) {
    if (this.values !== "logit") return this.view.shade(value);
    const ramp = this.view.steps[value > 0 ? 1 : 0];
    return ramp[Math.round(Math.min(1, Math.abs(value) / this.pattern.bound) * (STEPS - 1))];
  }

  draw() {
    this.width = this.element.clientWidth;
    if (!this.width || !this.view.surface || !this.pattern) return;
    const { side } = this.pattern;
    const [head, block] = this.pattern.key;
    say(this.title, `block ${block}, head ${head}`);
    this.layout(side);
    put(this.canvas, { width: side, height: side, style: this.frame() });
    paintCells(this.canvas, side, (row, column) => this.at(row, column), (value) => this.shade(value));
    this.drawAxes();
    this.drawKey();
    this.place();
    this.mark();
  }

  layout(side) {
    const names = this.view.data.tokens.map((_, token) => this.name(token, 10));
    const widest = Math.ceil(SMALL * Math.max(...names.slice(0, MAP / LABELLED).map((name) => this.view.measure(name))));
    const beside = Math.min(MAP, this.width - widest - 16) / side; // with tokens beside the map
    this.named = this.pattern.tile === 1 && beside >= LABELLED;
    const cell = this.named ? Math.min(28, beside) : Math.min(MAP, this.width - 46) / side;
    this.cell = cell >= 3 ? Math.floor(cell) : cell;
    this.extent = this.cell * side;
    this.left = this.named ? widest + 12 : 40;
    this.deep = this.named ? widest + 10 : 22;
    const [width, height] = [this.left + this.extent + 4, this.extent + this.deep + 4];
    put(this.svg, { width, height, viewBox: `0 0 ${width} ${height}` });
    put(this.plane, { style: `height:${height}px` });
    put(this.xTitle, { style: `padding-left:${this.left}px;width:${this.left + this.extent}px` });
  }

  frame() {
    return `left:${this.left}px;top:2px;width:${this.extent}px;height:${this.extent}px`;
  }

  drawAxes() {
    const { side } = this.pattern;
    const step = (n) => `H${this.left + (n + 1) * this.cell}v${this.cell}`;
    const stairs = Array.from({ length: side }, (_, n) => step(n)).join("");
    const line = pool(this.layers.outline, 1, () => shape("path"))[0];
    put(line, { d: `M${this.left} 2${stairs}H${this.left}z`, class: "lens-heads-stairs" });
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => (n * this.cell) / this.pattern.tile >= (this.named ? LABELLED : 34)) ?? 500;
    const count = this.view.data.tokens.length;
    const marks = Array.from({ length: Math.ceil(count / every) }, (_, n) => n * every);
    const [up, across] = [this.layers.up, this.layers.across].map((group) => pool(group, marks.length, () => shape("text")));
    marks.forEach((token, n) => {
      const at = ((token + 0.5) * this.cell) / this.pattern.tile;
      const text = this.named ? this.name(token, 10) : String(token);
      put(up[n], { x: this.left - 6, y: 2 + at + 4, "text-anchor": "end" });
      const below = this.extent + (this.named ? 8 : 18);
      const turn = this.named ? { x: this.left + at, y: below, "text-anchor": "end", transform: `rotate(-90 ${this.left + at} ${below})`, dy: "0.32em" }
        : { x: this.left + at, y: below, "text-anchor": "middle", transform: "", dy: "0" };
      put(across[n], turn);
      say(up[n], text);
      say(across[n], text);
    });
    this.marks = marks;
  }

  drawKey() {
    const logit = this.values === "logit";
    const { bound } = this.pattern;
    const stops = Array.from({ length: 17 }, (_, n) => (logit ? ((2 * n) / 16 - 1) * bound : (n / 16) ** 2));
    put(this.bar, { style: `background:linear-gradient(to right,${stops.map((v) => css(this.shade(v).background)).join(",")})` });
    const tiled = this.pattern.tile > 1 ? `largest of ${this.pattern.tile} × ${this.pattern.tile}, ` : "";
    say(this.what, logit ? `${tiled}logit` : `${tiled}attention, square-root scale`);
    say(this.lowest, logit ? number(-bound) : "0");
    say(this.highest, logit ? number(bound) : "1");
  }

  // ── Reading ──

  name(token, width = 24) {
    const text = this.view.data.tokens[token];
    return text.length > width ? `${text.slice(0, width - 1)}…` : text;
  }

  /** The tokens of a row or column in words. */
  names(index) {
    const { tile, size } = this.pattern;
    if (tile === 1) return [`${index} `, quote(this.name(index))];
    return [`${index * tile}–${Math.min(size, (index + 1) * tile) - 1}`];
  }

  value(row, column) {
    const value = this.at(row, column);
    if (Number.isNaN(value)) return this.values === "logit" && !this.pattern.logits ? "…" : "no value";
    return this.values === "logit" ? `logit ${number(Number(value.toPrecision(3)))}` : percent(value);
  }

  /** The strongest key of the token that is looked at, or its strongest query. */
  resting() {
    const token = this.view.text.token;
    const { tile } = this.pattern;
    const direction = this.view.get("direction");
    const other = this.pattern.ties(token, direction)[0]?.[0] ?? token;
    const cell = direction === "to" ? [token, other] : [other, token];
    return cell.map((one) => Math.floor(one / tile));
  }

  mark() {
    if (!this.pattern || !this.view.surface) return;
    const cell = this.hover ?? (this.focused ? this.cursor : null);
    const [row, column] = cell ?? this.resting();
    const most = this.pattern.tile > 1 && this.values !== "logit" ? "at most " : "";
    this.readout.replaceChildren(make("span.at", {}, "query ", ...this.names(row), " → key ", ...this.names(column)),
      make("span.value", {}, most + this.value(row, column)));
    const [hover, gap, chosen] = pool(this.layers.front, 3, (n) => shape(["rect.hover", "rect.gap", "rect.chosen"][n]));
    const token = Math.floor(this.view.text.token / this.pattern.tile);
    const { left, cell: size, extent } = this;
    const band = this.view.get("direction") === "to"
      ? { x: left, y: 2 + token * size, width: (token + 1) * size, height: size }
      : { x: left + token * size, y: 2 + token * size, width: size, height: extent - token * size };
    const thick = Math.max(0, 4 - size) / 2; // a line of text must be found in a map of small cells
    put(gap, inner(band, -1.5 - thick));
    put(chosen, inner(band, -0.5 - thick));
    put(hover, { ...(cell ? inner({ x: left + column * size, y: 2 + row * size, width: size, height: size }, -0.5 - thick) : NOWHERE),
      class: `lens-chart-hover${this.focused && !this.hover ? " lens-chart-ringed" : ""}` });
  }

  // ── Pointing and walking ──

  cellAt(event) {
    if (!this.pattern) return null;
    const frame = this.canvas.getBoundingClientRect();
    const scale = frame.width / this.pattern.side;
    const [row, column] = [event.clientY - frame.top, event.clientX - frame.left].map((d) => Math.floor(d / scale));
    return row >= 0 && column >= 0 && row < this.pattern.side && column <= row ? [row, column] : null;
  }

  inside([row, column]) {
    const last = this.pattern.side - 1;
    const query = Math.min(last, Math.max(0, row));
    return [query, Math.min(query, Math.max(0, column))];
  }

  hoverAt(cell) {
    if (String(cell) === String(this.hover)) return;
    this.hover = cell;
    this.mark();
    this.follow(cell);
  }

  /** The text shows the token of a cell that is pointed at. */
  follow(cell) {
    this.view.text.look(cell && this.tokenOf(cell));
    this.view.text.reveal(this.view.text.token);
  }

  tokenOf([row, column]) {
    return Math.min(this.pattern.size - 1, (this.view.get("direction") === "to" ? row : column) * this.pattern.tile);
  }

  pin(cell) {
    this.view.text.choose(this.tokenOf(cell), true);
  }

  /** Puts the one cell that a voice reads, and that Tab stops at, where the cursor is. */
  place() {
    const [row, column] = this.cursor;
    const { side } = this.pattern;
    put(this.grid, { "aria-rowcount": side, "aria-colcount": side, style: this.frame(),
      "aria-label": `attention of block ${this.pattern.key[1]}, head ${this.pattern.key[0]}: queries down, keys right` });
    const words = (index) => this.names(index).map((part) => part.textContent ?? part).join("");
    const label = `query ${words(row)}, key ${words(column)}: ${this.value(row, column)}`;
    if (this.stop?.getAttribute("aria-label") === label) return;
    const focused = this.stop && this.stop === this.grid.getRootNode().activeElement;
    this.stop = piece("div", { role: "gridcell", tabindex: "0", "aria-colindex": column + 1, "aria-label": label });
    this.grid.replaceChildren(piece("div", { role: "row", "aria-rowindex": row + 1 }, this.stop));
    if (focused) this.stop.focus({ preventScroll: true });
  }

  walkTo(cell) {
    this.cursor = this.inside(cell);
    this.hover = null;
    this.place();
    this.stop.focus({ preventScroll: true });
    this.mark();
    this.follow(this.cursor);
  }

  onKey(event) {
    const [row, column] = this.cursor;
    const last = this.pattern.side - 1;
    const target = event.altKey ? undefined : {
      ArrowUp: [Math.max(row - 1, 0), column], ArrowDown: [row + 1, column], ArrowLeft: [row, column - 1],
      ArrowRight: [row, column + 1], Home: event.ctrlKey ? [0, 0] : [row, 0], End: event.ctrlKey ? [last, last] : [row, row],
      PageUp: [row - 10, column], PageDown: [row + 10, column] }[event.key];
    if (!target && event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    if (target) this.walkTo(target);
    else this.pin(this.cursor);
  }
}

/** Quoted token text, isolated so that a right-to-left token cannot turn the sentence around it. */
const quote = (text) => piece("bdi", {}, `“${text}”`);
