"""The depth panel: do the states of all positions become one, and what keeps them apart?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.rank_collapse import MEASURES, PICTURES, VARIANTS, collapse_chart
from lens.models.model import Model
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.probes.layer_spectrum import layer_spectrum
from lens.probes.low_pass import attention_response, low_pass
from lens.probes.rank_collapse import FIRST_TOKEN, rank_collapse
from lens.probes.token_spectrum import token_spectrum

EXAMPLE = (
    "The keeper of the lighthouse climbed the stairs, lit the lamp and wrote in his book that the sea was calm. In the morning a "
    "ship came from the north with letters, flour and oil, and its captain told him that the old king was dead and that his "
    "daughter, who had never seen the coast, would be crowned before the first snow."
)
SHORTEST, LONGEST = 10, 512  # tokens
COLLAPSED = 0.01
_PICTURES = {
    "slow and fast": "bands",
    "parts of a block": "parts",
    "patterns as filters": "patterns",
    "over layers": "over layers",
}
_MEASURES = {"ρ, Frobenius norm": "residual_ratio", "ρ, composite norm": "composite_ratio", "ln(HC/DC)": "high_to_low",
             "mean cosine": "mean_cosine", "effective rank": "effective_rank"}  # fmt: skip


@dataclass(frozen=True)
class _Result:
    """One text's depth: from `rank_collapse`, and by picture what stands beside it.

    Attributes:
        first_size: by layer, norm of the first token's state over the median of the others'.
    """

    model: Model
    tokens: int
    collapse: xr.Dataset
    details: Mapping[str, xr.Dataset]
    first_size: np.ndarray

    @property
    def last(self) -> int:
        return self.collapse.sizes["layer"] - 1


class DepthCollapse(TextPanel):
    """How much of the states differs between positions, at every layer: whole, without skips, without MLPs, without both.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: 10 to 512 tokens.
        measure: `residual_ratio`, `composite_ratio`, `high_to_low`, `mean_cosine` or `effective_rank`, see `rank_collapse`.
        first_token: `without` it or `with` it.
        picture: `bands` (slow and fast changes over positions), `parts` (what attention, MLP and block do), `patterns` (what
            attention passes of every frequency) or `over layers` (exploratory).
        layer: which one is selected, and whose block's patterns are shown; by default the middle one.

    `set(layer=…)` does what a click does; `summary()` gives what is shown as plain data, `collapse` the Dataset.
    """

    COMPUTED = ("model", "text")
    VIEW = ("measure", "first_token", "picture", "layer")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        measure: str = "residual_ratio",
        first_token: str = "without",
        picture: str = "bands",
        layer: int | None = None,
    ):
        narrow = widgets.Layout(width="auto")
        buttons = {"style": {"button_width": "auto"}, "layout": narrow}
        controls = {
            "measure": widgets.Dropdown(options=list(_MEASURES.items()), layout=narrow, tooltip="how alike positions are"),
            "first_token": widgets.ToggleButtons(
                options=[(f"{name} first token", name) for name in reversed(FIRST_TOKEN)], **buttons
            ),
            "picture": widgets.ToggleButtons(options=list(_PICTURES.items()), **buttons),
        }
        view = {"measure": measure, "first_token": first_token, "picture": picture, "layer": layer}
        super().__init__(model, text, view, controls, placeholder="Type ten words or more and press Enter")
        self._open(view)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def collapse(self) -> xr.Dataset:
        """All measures of all variants, from `rank_collapse`."""
        return self._shown().collapse

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        model = self._model(job)
        ids = self._token_ids(job, model, SHORTEST, LONGEST, "a few sentences")
        with job.holding(model.lock, "running without its skips and MLPs"):
            steps = 6 * model.n_layers + 8 * (model.n_layers + 1)  # of the passes, and of the measures of four of them
            check = job.check_blocks(steps, "running without skips and MLPs")
            collapse = rank_collapse(model, ids, check=check)
            parts = low_pass(model, ids, check=check)
            run = model.run(ids, attention=True, logits=False, check=check)
        details = {"bands": token_spectrum(run), "parts": parts, "patterns": attention_response(run)}
        if model.n_layers >= 4:
            details["over layers"] = layer_spectrum(run)
        norms = run.residual.double().norm(dim=-1).cpu().numpy()
        return _Result(model, len(ids), collapse, details, norms[:, 0] / np.median(norms[:, 1:], axis=1))

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        known = {"measure": MEASURES, "first_token": FIRST_TOKEN, "picture": PICTURES}
        for name, values in known.items():
            if view[name] not in values:
                raise InputError(f"The {name} is {view[name]!r}", f"one of {', '.join(values)}", f"{name}={next(iter(values))!r}")
        if view["picture"] not in result.details:
            found = f"{result.model.name} has {result.last} blocks"
            raise InputError(found, "four or more for a spectrum over layers", "picture='bands'")
        layer = view["layer"]
        if layer is None or (layer == self._view["layer"] and layer not in range(result.last + 1)):
            layer = (result.last + 1) // 2  # none was chosen, or one of a deeper model
        if layer not in range(result.last + 1):
            raise InputError(f"The layer is {layer!r}", f"0 to {result.last}", f"layer={result.last}")
        return {**view, "layer": int(layer)}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return collapse_chart(result.collapse, result.details[view["picture"]], **view)

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        shown = result.collapse.sel(first_token=view["first_token"])
        ratio = shown.residual_ratio
        facts = {
            **view,
            "tokens": result.tokens,
            "last_layer": {name: _digits(float(ratio.sel(variant=name)[-1])) for name in VARIANTS},
            "collapsed_from": {name: _collapsed_from(ratio.sel(variant=name).to_numpy()) for name in VARIANTS},
            "here": {name: _digits(float(shown[view["measure"]].sel(variant=name, layer=view["layer"]))) for name in VARIANTS},
            "first_token_size": _digits(float(result.first_size.max())),
            "first_token_layer": int(result.first_size.argmax()),
        }
        return {**facts, **_beside(result, view), "says": _sentence(facts, _beside(result, view))}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        block = {"parts": view["layer"] - 1} if view["picture"] == "parts" and view["layer"] else {}
        return {"layers": view["layer"], **block}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A click on a layer chooses it, one on a block the layer behind it."""
        if "parts" in selected and selected["parts"] + 1 != self._view["layer"]:
            return {"layer": int(selected["parts"]) + 1}
        return {"layer": int(selected["layers"])} if "layers" in selected else {}


def _digits(value: float) -> float:
    return float(f"{value:.3g}")


def _collapsed_from(ratio: np.ndarray) -> int | None:
    """First layer from which on ρ stays under `COLLAPSED`."""
    above = np.flatnonzero(ratio >= COLLAPSED)
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(ratio) else None


def _beside(result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
    """What the second picture says, as numbers."""
    detail, layer = result.details[view["picture"]], view["layer"]
    if view["picture"] == "bands":
        share = (detail.neuron_share / detail.white_share).isel(band=0)
        return {"slow_over_white": {"first": _digits(float(share[0])), "largest": _digits(float(share.max())),
                                    "layer": int(share.argmax("layer"))}}  # fmt: skip
    if view["picture"] == "parts":
        change = detail.change
        smoother = {stage: int((change.sel(stage=stage) < 0).sum()) for stage in change.stage.to_numpy().tolist()}
        return {"smoother_blocks": smoother, "blocks": change.sizes["block"]}
    if view["picture"] == "patterns":
        waves = detail.response.mean("head").isel(frequency=slice(1, None)).sel(block=max(layer - 1, 0))
        quarter = waves.sizes["frequency"] // 4
        ends = {"slow": waves[:quarter], "fast": waves[-quarter:]}
        return {"block": max(layer - 1, 0), "passed": {name: _digits(float(part.mean())) for name, part in ends.items()}}
    peak = int((detail.share / detail.white_share)[1:].argmax("frequency")) + 1
    return {
        "peak": _digits(float(detail.frequency[peak])),
        "peak_over_white": _digits(float((detail.share / detail.white_share)[peak])),
    }


def _sentence(facts: Mapping[str, Any], beside: Mapping[str, Any]) -> str:
    last, depth = facts["last_layer"], facts["collapsed_from"]
    text = (
        f"At the last layer {_percent(last['whole'])} of the size of the states differs between positions. Without skips "
        f"{_fate(last['no_skips'], depth['no_skips'])}, without skips and MLPs {_fate(last['neither'], depth['neither'])}, "
        f"without MLPs {_fate(last['no_mlp'], depth['no_mlp'])}."
    )
    if facts["first_token"] == "with":
        text += (
            f" The first token counts here: its state is up to {facts['first_token_size']:.0f} times as large as the others "
            f"(layer {facts['first_token_layer']}), and one large row looks like difference."
        )
    return f"{text} {_second(beside)}"


def _fate(last: float, depth: int | None) -> str:
    return _percent(last) if depth is None else f"under 1 % from layer {depth} on"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"


def _second(beside: Mapping[str, Any]) -> str:
    if "slow_over_white" in beside:
        slow = beside["slow_over_white"]
        return (
            f"Changes slower than half the text have {slow['first']:.1f} times the power that white noise would have in the "
            f"embedding, and {slow['largest']:.1f} times at layer {slow['layer']}."
        )
    if "smoother_blocks" in beside:
        smoother, blocks = beside["smoother_blocks"], beside["blocks"]
        return (
            f"Attention gives smoother states than it takes in {smoother['attention']} of {blocks} blocks, the MLP in "
            f"{smoother['mlp']}, whole blocks in {smoother['block']}."
        )
    if "passed" in beside:
        passed = beside["passed"]
        return (
            f"The patterns of block {beside['block']} pass {100 * passed['slow']:.0f} % of the slowest quarter of waves and "
            f"{100 * passed['fast']:.0f} % of the fastest."
        )
    return (
        f"Over layers, directions have {beside['peak_over_white']:.1f} times the share of white noise at {beside['peak']:.2g} "
        "cycles/layer, their largest excess: slow drift, as a rule, and no frequency of the model."
    )
