"""Small linked charts as a Jupyter widget: a slider's answer costs kilobytes, not megabytes."""

from __future__ import annotations

import anywidget
import traitlets

from lens.figures.chart import SCRIPTS, STYLES
from lens.figures.page import widget_source
from lens.panels.token_grid import PANEL_CSS


class Chart(anywidget.AnyWidget):
    """A row of plots; see `lens/figures/chart.js` for what is drawn.

    `spec` comes from `lens.figures.chart.chart`. `selected` holds, for each plot's name, the x (curves) or `[x, y]` (heat map)
    that the reader chose, or that Python sets; names without a choice are absent. `busy` dims the picture while a newer
    one is computed.
    """

    _esm = widget_source(*SCRIPTS)
    _css = widget_source(*STYLES) + PANEL_CSS

    spec = traitlets.Dict().tag(sync=True)
    selected = traitlets.Dict().tag(sync=True)
    busy = traitlets.Dict().tag(sync=True)
