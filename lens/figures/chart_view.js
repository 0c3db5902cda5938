/**
 * What the views of a model have in common: traits in and out, the page's theme, sizes, keys that stay inside, and an
 * end without a trace. A view has a `root`, and `plots` that are drawn again when their width or the theme changes.
 * Python puts this text between the kinds of plot and the view itself.
 */

class View {
  constructor(model, el, look) {
    this.model = model;
    this.undo = [];
    this.plots = [];
    this.root = make("div", { class: `lens-look ${look}`, "data-lm-suppress-shortcuts": "true" });
    el.append(this.root);
    this.root.addEventListener("keydown", (event) => this.onKey(event));
    this.undo.push(watchTheme(() => this.retheme()));
    // Notebooks attach the element after render() returns; the first size it gets is the moment to look at the page.
    this.sizes = new ResizeObserver(() => {
      this.retheme();
      this.resize();
    });
    this.sizes.observe(this.root);
    this.undo.push(() => this.sizes.disconnect());
  }

  get(name) {
    return this.model.get(name) ?? EMPTY[name];
  }

  /** Saved at once: the widget layer throttles, and the kernel's echo of an older value must find nothing unsaved. */
  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
  }

  /** Calls what belongs to a trait whenever that changes. */
  follow(traits) {
    for (const [name, handler] of Object.entries(traits)) {
      this.model.on(`change:${name}`, handler);
      this.undo.push(() => this.model.off(`change:${name}`, handler));
    }
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
    this.steps = [palette(surface), palette(surface, isDark(surface) ? ORANGE.dark : ORANGE.light)];
    this.ramps = this.steps.map((ramp) => ramp.map(({ background, ink }) => ({ fill: css(background), ink: css(ink) })));
    this.seen = remember((hex) => seenOn(surface, hex));
    this.measure = remember(ruler(fontFamily));
    this.root.dataset.theme = isDark(surface) ? "dark" : "light";
    this.root.style.setProperty("--lens-surface", css(surface));
    this.repaint();
  }

  /** Everything in the colours of a new theme. */
  repaint() {
    this.plots.forEach((plot) => plot.draw());
  }

  resize() {
    this.plots.filter((plot) => plot.element.clientWidth !== plot.width).forEach((plot) => plot.draw());
  }

  /** Notebook shortcuts such as `d d` must not fire from inside; only Tab travels on. */
  onKey(event) {
    if (event.key !== "Tab") event.stopPropagation();
    if (event.key === "Escape") letGo(this.root);
  }

  /** Dims what is out of date while something newer is computed. */
  showBusy(part, name) {
    const busy = Object.keys(this.get("busy")).length > 0;
    this.root.classList.toggle(name, busy);
    part.setAttribute("aria-busy", String(busy));
  }
}

/** What a notebook calls to show a view; the result takes it away again. */
const rendering = (Kind) => ({ model, el }) => {
  const view = new Kind(model, el);
  return () => view.destroy();
};
