/**
 * The attention atlas: a map of all heads, the pattern of one, its scree plot, its neighbours, and the text it reads.
 *
 * Python owns the numbers: `spec` (all heads, all measures), `block` (patterns of the chosen block) and `detail` (what
 * only the chosen head has). The reader owns `selected`, `measure`, `values`, `direction` and `pinned`, which this module
 * answers at once where the numbers are here; a head of another block waits, dimmed, until its numbers come.
 * Token text is data: it reaches the page through textContent and attributes alone.
 */

const DEFAULTS = {
  spec: {}, block: {}, detail: {}, details: [], measure: "", values: "attention", direction: "to", selected: {}, pinned: false, busy: {},
};
const CONTROLS = [
  { name: "values", label: "Map", options: [["attention", "attention"], ["logit", "logits"]] },
  { name: "direction", label: "A token", options: [["to", "attends to"], ["by", "is attended by"]] },
];

/** The map of heads: a step of the keys chooses, so that a reader walks through the pictures of the heads. */
class HeadMap extends HeatMap {
  go(spot) {
    super.go(spot);
    this.select(spot);
  }

  /** The menu names the measure, and some names are long. */
  showReadout(spot) {
    super.showReadout(spot);
    const { value } = this.data;
    if (spot !== null && known(this.flat[spot])) say(this.entries, withUnit(this.write(this.flat[spot]), value));
  }
}

/** The heads of the chosen block side by side, small. */
class Thumbnails {
  constructor(view) {
    this.view = view;
    this.title = piece("h4");
    this.row = piece("div.tiles", { "aria-hidden": "true" }); // the map of heads says and does the same with keys
    this.root = piece("div.thumbs", {}, this.title, this.row);
    this.row.addEventListener("click", ({ target }) => {
      const tile = target.closest("[data-head]");
      if (tile) view.choose(Number(tile.dataset.head), this.block.block);
    });
  }

  update(block) {
    if (!block.thumbs || !this.view.surface) return;
    if (block !== this.block) this.values = decode(block.thumbs);
    this.block = block;
    const [count, side] = block.thumbs.shape;
    say(this.title, `all heads of block ${block.block}`);
    const tiles = pool(this.row, count, (head) => piece("div", { "data-head": head },
      piece("canvas", { width: side, height: side }), piece("span", {}, String(head))));
    put(this.row, { style: `--lens-columns:${count > 16 ? 8 : Math.min(count, Math.max(3, Math.ceil(Math.sqrt(count))))}` });
    const [chosen, shown] = this.view.chosen();
    [...tiles].forEach((tile, head) => {
      put(tile, { class: head === chosen && shown === block.block ? "lens-heads-here" : "", title: `head ${head}` });
      const at = (row, column) => (column > row ? NaN : this.values[(head * side + row) * side + column]);
      put(tile.firstChild, { width: side, height: side });
      paintCells(tile.firstChild, side, at, (value) => this.view.shade(value));
    });
  }
}

class HeadGrid extends View {
  constructor(model, el) {
    super(model, el, "lens-heads");
    this.maps = make("div.row");
    this.placeholder = piece("p.placeholder", {}, "Nothing computed yet.");
    this.heads = new HeadMap(this);
    this.pattern = new PatternMap(this);
    this.scree = new Lines(this);
    this.thumbs = new Thumbnails(this);
    this.text = new TokenText(this);
    this.buildToolbar();
    this.scree.body.append(this.thumbs.root);
    this.maps.append(this.heads.element, this.pattern.element, this.scree.element);
    this.body = piece("div.body", {}, piece("div", { class: "lens-heads-maps lens-chart" }, this.maps), this.text.root);
    this.root.append(this.toolbar, this.body, this.placeholder);
    this.follow({
      spec: () => this.update(), block: () => this.showHead(), detail: () => this.showHead(),
      measure: () => this.showMeasure(), values: () => this.showChoices(), direction: () => this.showChoices(),
      selected: () => this.showSelected(), pinned: () => this.text.show(), busy: () => this.dim(),
    });
    [this.maps, ...[this.heads, this.pattern, this.scree].map(({ element }) => element)].forEach((e) => this.sizes.observe(e));
    this.retheme();
    this.update();
  }

  get(name) {
    return this.model.get(name) ?? DEFAULTS[name];
  }

  // ── Controls ──

  buildToolbar() {
    this.measures = piece("select");
    this.measures.addEventListener("change", () => this.set("measure", this.measures.value));
    const groups = CONTROLS.map((control) => this.buildGroup(control));
    this.note = piece("span.note");
    this.absent = piece("span.note", { role: "status" });
    this.toolbar = piece("div.toolbar", {}, piece("label.group", {}, "Colour heads by", this.measures), ...groups, this.note,
      this.absent);
  }

  /** A segmented control of native radio buttons: arrow keys, form semantics and focus are the browser's own. */
  buildGroup({ name, label, options }) {
    this.serial ??= nextSerial();
    this.inputs ??= {};
    const inputs = options.map(([value]) => {
      const input = piece("input", { type: "radio", name: `${this.serial}-${name}`, value });
      input.addEventListener("change", () => this.set(name, value));
      return input;
    });
    this.inputs[name] = inputs;
    const segments = options.map(([, text], n) => piece("label", {}, inputs[n], piece("span", { "data-text": text }, text)));
    return piece("div.group", { role: "radiogroup", "aria-label": label }, piece("span", {}, label),
      piece("span.segments", {}, ...segments));
  }

  showChoices() {
    for (const { name } of CONTROLS) this.inputs[name].forEach((input) => { input.checked = input.value === this.get(name); });
    this.pattern.draw();
    this.text.show();
  }

  // ── New numbers ──

  update() {
    const spec = this.get("spec");
    this.data = spec.tokens?.length ? { ...spec, tokens: spec.tokens.map(tame) } : null;
    this.root.classList.toggle("lens-heads-empty", !this.data);
    if (!this.data) return;
    this.values = new Map(spec.measures.map((measure) => [measure.name, decode(measure.values)]));
    const options = spec.measures.map(({ name, words }) => piece("option", { value: name }, words));
    this.measures.replaceChildren(...options);
    this.plots = [this.heads, this.pattern, this.scree];
    say(this.note, spec.note ?? "");
    this.text.build();
    this.showMeasure();
    this.showHead();
    this.showChoices();
    this.dim();
  }

  showMeasure() {
    if (!this.data) return;
    const { blocks, heads, measures } = this.data;
    const measure = measures.find(({ name }) => name === this.get("measure")) ?? measures[0];
    this.measures.value = measure.name;
    const values = this.values.get(measure.name);
    const cells = blocks.map((_, row) => Array.from({ length: heads }, (__, head) => {
      const value = values[row * heads + head];
      return Number.isFinite(value) ? value : null;
    }));
    this.heads.update({
      name: "heads", title: "every head", values: cells, x: { title: "head", values: [...Array(heads).keys()] },
      y: { title: "block", values: blocks },
      value: { title: measure.label, unit: measure.unit, range: measure.range, scale: "linear", signed: measure.signed },
    });
  }

  /** The chosen head and block. */
  chosen() {
    return this.get("selected").heads ?? [0, this.data.blocks[0]];
  }

  choose(head, block) {
    this.set("selected", { ...this.get("selected"), heads: [head, block] });
  }

  showSelected() {
    if (!this.data) return;
    this.heads.showSelected();
    this.showHead();
    this.text.reveal(this.text.chosen);
  }

  /** What only one head has: of the chosen one in a notebook, of all heads of the block in a page without a kernel. */
  detailOf(head, block) {
    return [this.get("detail"), ...this.get("details")].find((one) => one.block === block && one.head === head) ?? null;
  }

  /** Draws what is here of the chosen head; what is not keeps the old picture, dimmed. */
  showHead() {
    if (!this.data) return;
    const [head, block] = this.chosen();
    const all = this.get("block");
    const detail = this.detailOf(head, block);
    const found = this.read(head, block, all, detail);
    this.root.classList.toggle("lens-heads-waiting", !found);
    this.scree.element.classList.toggle("lens-heads-old", !detail);
    const offline = this.get("details").length > 0;
    say(this.absent, offline && !found ? `This page holds the heads of block ${all.block} only.` : "");
    if (found && found !== this.shown) {
      this.shown = found;
      this.pattern.update(found);
    }
    if (found) this.text.show();
    if (detail) this.showScree(detail);
    this.thumbs.update(all);
  }

  /** The pattern of a head from what Python has sent, or null while it is on its way. */
  read(head, block, all, detail) {
    const whole = all.block === block && all.weights ? all.weights : detail?.weights;
    const parts = [whole, detail?.tiles, detail?.logits];
    const key = [head, block];
    const same = this.shown && String(this.shown.key) === String(key) && this.shown.parts.every((one, n) => one === parts[n]);
    if (same) return this.shown;
    if (!whole && !detail?.tiles) return null;
    if (whole && whole !== this.whole) [this.whole, this.wholeValues] = [whole, decode(whole)];
    const size = this.data.tokens.length;
    return whole
      ? new Pattern({ key, parts, size, values: this.wholeValues, head: whole.shape[0] > 1 ? head : 0, detail })
      : new TiledPattern({ key, parts, size, detail });
  }

  showScree(detail) {
    const values = decode(detail.scree.values);
    const [count, ranks] = detail.scree.values.shape;
    const series = Array.from({ length: count }, (_, n) => ({
      name: detail.scree.names[n], colour: detail.scree.colours[n], marker: detail.scree.markers[n],
      values: [...values.subarray(n * ranks, (n + 1) * ranks)].map((value) => (value > 0 ? value : null)) }));
    const { unit = "", range } = detail.scree;
    this.scree.update({
      kind: "lines", name: "scree", title: "its singular values", series, rules: [], marks: false,
      x: { title: "rank", unit: "", scale: "linear", range: [1, Math.max(2, ranks)], values: Array.from({ length: ranks }, (_, n) => n + 1) },
      y: { title: "singular value", unit, scale: "log", range },
    });
  }

  // ── Colours ──

  /** The shade of an attention weight: a square root, or weights of a hundredth could not be told from none. */
  shade(weight) {
    return this.steps[0][Math.round(Math.sqrt(Math.min(1, Math.max(0, weight))) * (STEPS - 1))];
  }

  repaint() {
    super.repaint();
    if (!this.data) return;
    this.thumbs.update(this.get("block"));
    this.text.show();
    this.text.reveal(this.text.chosen);
  }

  dim() {
    this.showBusy(this.body, "lens-heads-busy");
  }

  onKey(event) {
    if (event.key === "Escape" && this.get("pinned")) {
      event.stopPropagation();
      this.set("pinned", false);
    } else super.onKey(event);
  }
}

const render = rendering(HeadGrid);

/** Shows an atlas in a page without a kernel, with `details` of one block. Returns a function that takes it away again. */
export const mount = (el, state) => render({ model: plainModel({ ...state }), el });

export default { render };
