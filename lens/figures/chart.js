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

class Chart {
  constructor(model, el) {
    this.model = model;
    this.undo = [];
    this.plots = [];
    this.row = make("div.row");
    this.placeholder = make("p.placeholder", {}, "Nothing computed yet.");
    this.root = make("div", { class: "lens-look lens-chart", "data-lm-suppress-shortcuts": "true" },
      this.row, this.placeholder);
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
    this.ramps = [palette(surface), palette(surface, isDark(surface) ? ORANGE.dark : ORANGE.light)].map((ramp) => (
      ramp.map(({ background, ink }) => ({ fill: css(background), ink: css(ink) }))));
    this.seen = remember((hex) => seenOn(surface, hex));
    this.measure = remember(ruler(fontFamily));
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
