"""The attention atlas as a Jupyter widget. Everything that a reader does with the eyes alone happens in the browser."""

from __future__ import annotations

import anywidget
import traitlets

from lens.figures.head_grid import SCRIPTS, STYLES
from lens.figures.page import widget_source
from lens.panels.token_grid import PANEL_CSS


class HeadGrid(anywidget.AnyWidget):
    """Heads by a measure, one head's pattern and spectrum, and the text it reads; see `lens/figures/head_grid.js`.

    `spec`, `block` and `detail` come from `lens.figures.head_grid`. `selected` holds `heads`, `[head, block]`, and `token`;
    it, `measure`, `values` (`attention` or `logit`), `direction` (`to` or `by`) and `pinned` are the reader's. `busy` dims the
    picture while a newer one is computed.
    """

    _esm = widget_source(*SCRIPTS)
    _css = widget_source(*STYLES) + PANEL_CSS

    spec = traitlets.Dict().tag(sync=True)
    block = traitlets.Dict().tag(sync=True)
    detail = traitlets.Dict().tag(sync=True)
    selected = traitlets.Dict().tag(sync=True)
    measure = traitlets.Unicode("").tag(sync=True)
    values = traitlets.Unicode("attention").tag(sync=True)
    direction = traitlets.Unicode("to").tag(sync=True)
    pinned = traitlets.Bool(False).tag(sync=True)
    busy = traitlets.Dict().tag(sync=True)

    def __repr__(self) -> str:
        head, block = self.selected.get("heads", (None, None))
        return f"HeadGrid(block={block}, head={head})"
