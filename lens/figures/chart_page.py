"""One self-contained HTML page with a live chart: no kernel, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lens.base.text import html_safe
from lens.figures.chart import SCRIPTS, STYLES
from lens.figures.page import PAGE, widget_source


def chart_page(spec: Mapping[str, Any], title: str, says: str, source: str, selected: Mapping[str, Any] | None = None) -> str:
    """A chart as an HTML page.

    Args:
        spec: from `lens.figures.chart.chart`.
        title: of the page.
        says: one line above the chart: what it shows, with the number.
        source: one line below it: model, data, versions, date.
        selected: what is selected at first, by the plots' names.
    """
    state = json.dumps({"spec": spec, "selected": dict(selected or {})}, allow_nan=False)
    return PAGE.format(
        title=html_safe(title),
        css=widget_source(*STYLES),
        prompt=html_safe(says),
        footer=html_safe(source),
        state=state.replace("<", "\\u003c"),  # so the text cannot close its own element
        script=widget_source(*SCRIPTS),
    )
