/**
 * Small linked charts: curves, bars, heat maps, dots and dials in one row, drawn as SVG.
 *
 * Python owns the numbers (`spec`); a gesture sets `selected`, its change event repaints. Every drawing sets attributes
 * on elements that are already there, so that a slider's values arrive without a rebuilt tree, a lost focus or a jump.
 * Labels are data: they reach the page through textContent and attributes alone. Colours and the page's theme come
 * from theme.js, which stands before this text in the finished module.
 */

const KINDS = { lines: Lines, bars: Bars, heat_map: HeatMap, scatter: Scatter, clock: Clock };

// ── The view ────────────────────────────────────────────────────────────────────────────────────────────────────

class Chart extends View {
  constructor(model, el) {
    super(model, el, "lens-chart");
    this.row = make("div.row");
    this.placeholder = make("p.placeholder", {}, "Nothing computed yet.");
    this.root.append(this.row, this.placeholder);
    this.follow({
      spec: () => this.update(), busy: () => this.showBusy(this.row, "lens-chart-busy"),
      selected: () => this.plots.forEach((plot) => plot.showSelected()),
    });
    this.retheme();
    this.update();
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
    this.showBusy(this.row, "lens-chart-busy");
  }

  place() {
    this.row.replaceChildren(...this.plots.map(({ element }) => element));
    this.sizes.disconnect();
    [this.root, ...this.plots.map(({ element }) => element)].forEach((element) => this.sizes.observe(element));
  }
}

const render = rendering(Chart);

/** Shows a chart in a page without a kernel. Returns a function that takes it away again. */
export const mount = (el, state) => render({ model: plainModel({ ...state }), el });

export default { render };
