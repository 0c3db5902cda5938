/**
 * The ledger of claims: one table whose rows Python chooses. Cells are HTML that Python made and escaped; they are built
 * once, and another choice only hides and shows them, so that the place in the list and the focus stay.
 */

const part = maker("lens-claims");

class Claims extends View {
  constructor(model, el) {
    super(model, el, "lens-claims");
    this.scroller = part("div.scroller", { tabindex: "0", role: "region", "aria-label": "claims" });
    this.placeholder = part("p.placeholder", {}, "No claim fits.");
    this.root.append(this.scroller, this.placeholder);
    this.root.addEventListener("click", (event) => this.onClick(event));
    this.follow({
      spec: () => this.build(), selected: () => this.choose(), busy: () => this.showBusy(this.scroller, "lens-claims-busy"),
    });
    this.retheme();
    this.build();
  }

  build() {
    const { columns = [], rows = [] } = this.get("spec");
    const table = document.createElement("table");
    table.className = "lens-claims-table";
    const head = table.createTHead().insertRow();
    head.append(...columns.map((title) => Object.assign(document.createElement("th"), { textContent: title, scope: "col" })));
    const body = table.createTBody();
    this.rows = rows.map((cells) => {
      const row = body.insertRow();
      cells.forEach((cell, n) => {
        const place = row.insertCell();
        place.innerHTML = cell;
        place.dataset.column = columns[n];
      });
      return row;
    });
    this.scroller.replaceChildren(table);
    this.choose();
  }

  choose() {
    const shown = new Set(this.get("selected").claims ?? []);
    this.rows.forEach((row, place) => { row.hidden = !shown.has(place); });
    this.placeholder.hidden = shown.size > 0;
    this.scroller.hidden = !shown.size;
    this.scroller.scrollTop = 0;
  }

  async onClick(event) {
    const button = event.target.closest("button[data-text]");
    if (!button) return;
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(button.dataset.text);
      button.textContent = "copied";
    } catch { // a page that may not write there, such as one that is no secure context: then it shows what to copy
      button.textContent = button.dataset.text;
      getSelection().selectAllChildren(button);
      return;
    }
    setTimeout(() => { button.textContent = label; }, 1200);
  }
}

const render = rendering(Claims);

/** Shows the ledger in a page without a kernel. Returns a function that takes it away again. */
export const mount = (el, state) => render({ model: plainModel({ ...state }), el });

export default { render };
