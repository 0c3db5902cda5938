"""One self-contained HTML page with a live token grid: no kernel, no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

import xarray as xr

from lens.base.text import html_safe
from lens.figures.logit_lens import grid_spec
from lens.figures.measures import chosen_measure, shown_layers

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 1.5rem auto; max-width: 78rem; padding: 0 1rem; font-family: system-ui, sans-serif; }}
footer {{ margin-top: 1.5rem; font-size: 0.8rem; opacity: 0.7; }}
{css}
</style>
<p>{prompt}</p>
<div id="grid"></div>
<footer>{footer}</footer>
<script type="application/json" id="state">{state}</script>
<script type="module">
{script}
mount(document.getElementById("grid"), JSON.parse(document.getElementById("state").textContent));
</script>
</html>
"""


def widget_source(*names: str) -> str:
    """Text of a widget's own files, one after the other, as they are shipped."""
    folder = resources.files("lens.figures")
    return "\n".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def logit_lens_page(
    dataset: xr.Dataset, colour: str = "probability", stride: int = 1, selected: tuple[int, int] | None = None
) -> str:
    """The grid of a logit-lens Dataset as an HTML page, with its provenance below it.

    Args:
        dataset: from `lens.logit_lens`.
        colour, stride, selected: what the page shows first; the reader can change all three.
    """
    chosen_measure(dataset, colour)
    shown_layers(dataset, stride)
    chosen = selected or (int(dataset.layer[-1]), dataset.sizes["position"] - 1)
    state = {
        "spec": _with_text(grid_spec(dataset)),
        "colour": colour,
        "stride": stride,
        "strides": sorted({1, 2, 5, stride}),
        "selected": list(chosen),
    }
    facts = " · ".join(f"{name} {value}" for name, value in dataset.attrs.items() if name != "prompt")
    return PAGE.format(
        title=html_safe(f"{dataset.attrs['model']}: logit lens"),
        css=widget_source("theme.css", "token_grid.css"),
        prompt=html_safe(str(dataset.attrs["prompt"])),
        footer=html_safe(facts),
        # "<" never appears, so the text cannot close its own element.
        state=json.dumps(state).replace("<", "\\u003c"),
        script=widget_source("theme.js", "token_grid.js"),
    )


def _with_text(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The same description with arrays in base64."""

    def encode(value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("data"), bytes):
            return {**value, "data": base64.b64encode(value["data"]).decode("ascii")}
        return value

    return {name: encode(value) for name, value in spec.items()}
