"""Small linked charts as a Jupyter widget: a slider's answer costs kilobytes, not megabytes."""

from __future__ import annotations

import io
from typing import Any

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

    def __repr__(self) -> str:
        return f"Chart({', '.join(plot['name'] for plot in self.spec.get('plots', []))})"

    def snapshot(self) -> bytes:
        """The chart as PNG, for places that show notebooks without a kernel."""
        from lens.figures.static_chart import static_figure

        stream = io.BytesIO()
        static_figure(self.spec, self.selected).savefig(stream, format="png", dpi=72)
        return stream.getvalue()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live chart, and its picture."""
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        data = bundle[0] if isinstance(bundle, tuple) else bundle
        if data is not None and self.spec:
            data["image/png"] = self.snapshot()
        return bundle
