"""The token grid as a Jupyter widget. Everything that a reader does with the eyes alone happens in the browser."""

from __future__ import annotations

from importlib import resources

import anywidget
import traitlets

from lens.figures.page import widget_source

# The standard controls of a panel have no widget of their own that could bring their style.
PANEL_CSS = resources.files("lens.panels").joinpath("panel.css").read_text(encoding="utf-8")


class TokenGrid(anywidget.AnyWidget):
    """Layers up, positions right; see `lens/figures/token_grid.js` for what is drawn.

    `spec` comes from `lens.figures.logit_lens.grid_spec`; `colour`, `stride`, `selected` and `pinned`
    are the reader's and answered without Python; `follow` asks for a word's probability through the
    layers and `trajectory` answers it; `busy` dims the picture while a newer one is computed.
    """

    _esm = widget_source("theme.js", "token_grid.js")
    _css = widget_source("theme.css", "token_grid.css") + PANEL_CSS

    spec = traitlets.Dict().tag(sync=True)
    colour = traitlets.Unicode("probability").tag(sync=True)
    stride = traitlets.Int(1, min=1).tag(sync=True)
    strides = traitlets.List(traitlets.Int(), [1, 2, 5]).tag(sync=True)
    selected = traitlets.List(traitlets.Int(), [0, 0]).tag(sync=True)
    pinned = traitlets.Bool(False).tag(sync=True)
    follow = traitlets.Dict().tag(sync=True)
    trajectory = traitlets.Dict().tag(sync=True)
    busy = traitlets.Dict().tag(sync=True)
    choices = traitlets.List().tag(sync=True)
