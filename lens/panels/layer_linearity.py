"""The linearity panel: how much of a block is one matrix, and how much of that is the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets
import xarray as xr

from lens.base.errors import InputError
from lens.collect import MomentParts, collect_moments
from lens.corpora import Corpus
from lens.figures.layer_linearity import linearity_chart
from lens.models.model import Model
from lens.moments import Moments
from lens.panels.fitted import TOKENS, MomentPanel
from lens.panels.panel import Job
from lens.probes.linearity import linearity
from lens.probes.procrustes import procrustes
from lens.probes.shortcuts import noise_floor

_MASKS = {"without massive states": "robust", "without first tokens": "first", "all tokens, as published": "none"}
_SCORED = ("held out", "in sample")


@dataclass(frozen=True)
class _Result:
    train: Moments
    test: Moments
    linearity: xr.Dataset
    floor: xr.Dataset
    ladders: dict[int, xr.Dataset] = field(default_factory=dict)


class LayerLinearity(MomentPanel):
    """The linearity score of every block, held out and in sample, of the stream and of the block's own update.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        corpus: a `lens.Corpus`, or anything `lens.corpus` takes.
        tokens: how many to fit on.
        mask: which tokens count, as in `collect_moments`; `none` is the published practice.
        scored: `held out`, or `in sample` as published.
        block: whose ladder of maps is shown first; by default the middle one.

    `set(mask=…)` gathers anew the first time, `set(scored=…)` and `set(block=…)` do not; a click in the profile chooses
    a block. `summary()` gives what is shown as plain data, `linearity` the scores of all blocks.
    """

    COMPUTED = (*MomentPanel.COMPUTED, "mask")
    VIEW = ("scored", "block")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        corpus: Corpus | str = "wikipedia",
        *,
        tokens: int = TOKENS,
        mask: str = "robust",
        scored: str = "held out",
        block: int | None = None,
    ):
        narrow = widgets.Layout(width="auto")
        controls = {
            "mask": widgets.Dropdown(options=list(_MASKS.items()), layout=narrow, tooltip="which tokens count"),
            "scored": widgets.ToggleButtons(options=list(_SCORED), style={"button_width": "auto"}),
            "block": widgets.SelectionSlider(
                options=[0], description="block", layout=widgets.Layout(width="20em"), style={"description_width": "auto"}
            ),
        }
        self._of_masks: dict[tuple[Any, ...], _Result] = {}
        super().__init__(model, corpus, tokens, {"mask": mask, "scored": scored, "block": block}, controls)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def linearity(self) -> xr.Dataset:
        """Scores of all blocks, from `lens.linearity`."""
        return self._shown().linearity

    # -- steps ------------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        """Results for the other masks are kept as long as model, text and size stay, for going to and fro."""
        settings = tuple(job.settings[name] for name in MomentPanel.COMPUTED)
        kept = {key: result for key, result in self._of_masks.items() if key[:-1] == settings}
        key = (*settings, job.settings["mask"])
        if key not in kept:
            job.say("moments")
            self._dim("moments", 0.0)
            kept[key] = super()._compute(job)
        self._of_masks = kept
        return kept[key]

    def _moments(self, job: Job, model: Model, found: Corpus) -> MomentParts:
        mask = job.settings["mask"]
        if mask not in _MASKS.values():
            raise InputError(f"The mask is {mask!r}", f"one of {', '.join(_MASKS.values())}", "mask='robust'")
        if mask == self.MASK:
            return super()._moments(job, model, found)
        return collect_moments(
            model, found, tokens=job.settings["tokens"], pairs="adjacent", mask=mask,
            progress=job.progress, check=job.token.check, window=min(256, model.context or 256),
        )  # fmt: skip

    def _fit(self, job: Job, model: Model, moments: MomentParts) -> _Result:
        train, test = moments.train, moments.test
        job.say("solving")
        return _Result(train, test, linearity(train, test), noise_floor(train, test))

    def _prepare(self, job: Job, result: _Result | None) -> Mapping[str, Any]:
        shown = self._result if result is None else result
        if shown is not None:
            self._add_ladder(job, shown, self._checked(shown, {**self._view, **job.view})["block"])
        return super()._prepare(job, result)

    def _add_ladder(self, job: Job, result: _Result, block: int) -> None:
        if block in result.ladders:
            return
        job.say(f"ladder of block {block}")
        self._dim(f"ladder of block {block}", 0.0)
        result.ladders[block] = procrustes(result.train, result.test, pairs=[(block, block + 1)], subspaces=(None,))

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        blocks = result.linearity.block.values.tolist()
        block = blocks[len(blocks) // 2] if view["block"] is None else view["block"]
        if block not in blocks:
            raise InputError(
                f"The block is {block!r}", f"one of {blocks[0]} to {blocks[-1]}", f"block={blocks[len(blocks) // 2]}"
            )
        if view["scored"] not in _SCORED:
            raise InputError(f"The score is {view['scored']!r}", f"one of {', '.join(_SCORED)}", "scored='held out'")
        return {"scored": view["scored"], "block": block}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return linearity_chart(result.linearity, result.floor, result.ladders[view["block"]], view["scored"])

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        scores, ladder = result.linearity, result.ladders[view["block"]]
        medians = {name: round(float(scores[name].median()), 3) for name in _MEDIANS}
        row = scores.sel(block=view["block"])
        of_block = {name: round(float(row[name]), 3) for name in (*_MEDIANS, "update_norm")}
        floor = {name: round(float(result.floor[name].max()), 3) for name in ("shuffled_r2", "shuffled_r2_in_sample")}
        return {
            "mask": str(result.train.source["mask"]),
            **view,
            "tokens_fitted": result.train.count,
            "median": medians,
            "of_block": of_block,
            "ladder": {str(step): round(float(r2), 3) for step, r2 in zip(ladder.step.values, ladder.r2.values[0], strict=True)},
            **floor,
            "says": _sentence(medians, of_block, view["block"], str(result.train.source["mask"])),
        }

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {"block": view["block"]}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        block = selected.get("block")
        return {} if block is None else {"block": int(block)}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        self._controls["block"].options = self._result.linearity.block.values.tolist()
        for name in self.VIEW:
            self._controls[name].value = view[name]

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        super()._mirror(settings)
        self._controls["mask"].value = settings["mask"]


_MEDIANS = ("score", "score_update", "score_in_sample", "score_update_in_sample", "update_energy")


def _sentence(medians: Mapping[str, float], of_block: Mapping[str, float], block: int, mask: str) -> str:
    shares = {name: _percent(value) for name, value in medians.items()}
    text = (
        f"One matrix explains {shares['score']} of what leaves a block and {shares['score_update']} of what it adds itself "
        f"(medians, held out); the state as it came, shifted to the right mean, already explains "
        f"{_percent(1 - medians['update_energy'])}. In sample the two read {shares['score_in_sample']} and "
        f"{shares['score_update_in_sample']}. Block {block} adds {of_block['update_norm']:.2f} times the size of its output, "
        f"and a matrix explains {_percent(of_block['score_update'])} of that."
    )
    return text if mask == "robust" else f"{text} Massive states are among the tokens."


def _percent(r2: float) -> str:
    if r2 <= 0:
        return "nothing"
    return f"{100 * r2:.0f} %" if r2 < 0.995 else f"{100 * r2:.1f} %"
