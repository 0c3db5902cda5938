"""The depth laboratory: remove, swap, flatten or replace blocks of a running model, and see what a text costs then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.corpora import corpus
from lens.figures.depth_lab import DONE, depth_lab_chart
from lens.models.model import Model
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.probes.depth_edits import KINDS, DepthEdit, EditedTexts
from lens.probes.depth_text import TextOutcome, adjacent_maps, text_outcome, text_sweep, underrated_block

EXAMPLE = (
    "The keeper of the lighthouse climbed the stairs, lit the lamp and wrote in his book that the sea was calm. In the morning a "
    "ship came from the north with letters, flour and"
)
SHORTEST, LONGEST = 3, 200  # tokens
_EDITS = {"remove": "removed", "swap": "swapped", "in parallel": "parallel", "replace by a map": "replaced"}
_ALONE = ("removed", "replaced")  # edits that need one block only
_WORDS = 4  # of each of the two models
_SAMPLE = 240  # characters of a held-out article


@dataclass(frozen=True)
class _Result:
    """One text, and what was done to the model on it so far.

    Attributes:
        sweeps: by kind, every block edited by itself: the outcome, and its measures by block.
        others: by kind and span, edits that are no part of a sweep.
    """

    model: Model
    read: EditedTexts
    sweeps: dict[str, tuple[TextOutcome, xr.Dataset]] = field(default_factory=dict)
    others: dict[tuple[str, int, int], TextOutcome] = field(default_factory=dict)

    def outcome(self, kind: str, blocks: tuple[int, int]) -> tuple[TextOutcome, int] | None:
        """Where the edit was made, and as which one there; None where it has to be made yet."""
        first, last = blocks
        if last - first == (0 if kind in _ALONE else 1) and kind in self.sweeps:
            return self.sweeps[kind][0], first
        found = self.others.get((kind, first, last))
        return None if found is None else (found, 0)


class DepthLab(TextPanel):
    """Edit the depth of a running model: one block or a span of them, on a text.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: 3 to 200 tokens.
        edit: `removed`, `swapped` (the first and the last block of the span), `parallel` (all of the span on one input) or
            `replaced` (each block of the span by a map fitted on 20,000 tokens, which are read once and kept).
        blocks: first and last of the span; by default the block that its influence underrates most.

    A click on a block chooses it. `set(edit=…, blocks=(3, 5))` does the same from a cell, `set(sample=2)` takes the beginning of
    the second held-out article as the text, `summary()` gives what is shown as plain data, `blocks` the Dataset of all blocks.
    """

    COMPUTED = ("model", "text", "sample")
    VIEW = ("edit", "blocks")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        edit: str = "removed",
        blocks: tuple[int, int] | None = None,
    ):
        narrow, style = widgets.Layout(width="auto"), {"description_width": "auto"}
        controls = {
            "edit": widgets.ToggleButtons(options=list(_EDITS.items()), style={"button_width": "auto"}, layout=narrow),
            "blocks": widgets.IntRangeSlider(
                description="blocks", value=(0, 0), min=0, max=1, style=style, layout=widgets.Layout(width="24em")
            ),
        }
        super().__init__(model, text, {"edit": edit, "blocks": blocks}, controls, settings={"sample": 0})
        self._taken = 0
        self._button = widgets.Button(description="A held-out text", layout=narrow)
        self._button.on_click(lambda _: self._next_sample())
        top = self.children[0]
        assert isinstance(top, widgets.HBox)
        top.children = (*top.children[:1], self._button, *top.children[1:])
        self._open({"edit": edit, "blocks": blocks})

    # -- for cells --------------------------------------------------------------------------------

    @property
    def blocks(self) -> xr.Dataset:
        """Every block edited by itself as shown, with its block influence on this text."""
        return self._shown().sweeps[self._view["edit"]][1]

    # -- computation ------------------------------------------------------------------------------

    def _next_sample(self) -> None:
        self._taken += 1
        self.post(sample=self._taken)

    def _compute(self, job: Job) -> _Result:
        model = self._model(job)
        if job.settings["sample"]:
            job.settings.update(text=_held_out(job), sample=0)
        ids = self._token_ids(job, model, SHORTEST, LONGEST, "a sentence or two")
        with job.holding(model.lock, "running on a text"):
            read = EditedTexts(model, [ids], check=job.check_blocks(model.n_layers, "running"))
        return _Result(model, read)

    def _prepare(self, job: Job, result: _Result | None) -> Mapping[str, Any]:
        shown = self._result if result is None else result
        if shown is None:
            return job.view
        view = {**self._view, **job.view}
        if view["edit"] not in KINDS:
            raise InputError(f"The edit is {view['edit']!r}", f"one of {', '.join(KINDS)}", "edit='removed'")
        self._sweep(job, shown, view["edit"])
        view = self._checked(shown, view)
        if shown.outcome(view["edit"], view["blocks"]) is None:
            self._make(job, shown, view["edit"], view["blocks"])
        return {"view": view, "spec": self._spec(shown, view), "says": self._facts(shown, view)["says"]}

    def _sweep(self, job: Job, shown: _Result, kind: str) -> None:
        """Every block edited by itself, the first time that this kind is looked at on a text."""
        if kind in shown.sweeps:
            return
        if kind == "replaced" and not shown.read.stand_ins:
            shown.read.give_maps(adjacent_maps(shown.model, progress=job.progress, check=job.token.check))
        label = f"each block {DONE[kind]}"
        with job.holding(shown.model.lock, label):
            shown.read.check = job.check_blocks(shown.model.n_layers**2, label)
            shown.sweeps[kind] = text_sweep(shown.read, kind)

    def _make(self, job: Job, shown: _Result, kind: str, blocks: tuple[int, int]) -> None:
        label = _edited(kind, blocks)
        with job.holding(shown.model.lock, label):
            shown.read.check = job.check_blocks(shown.model.n_layers, label)
            edit = DepthEdit(kind, tuple(range(blocks[0], blocks[1] + 1)))
            shown.others[kind, *blocks] = text_outcome(shown.read, [edit])

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        kind, last = view["edit"], result.model.n_layers - 1
        blocks = view["blocks"]
        fresh = self._result is not result and blocks == self._view["blocks"]
        if blocks is None or (fresh and blocks[1] > last):  # none was chosen, or some of a deeper model
            block = underrated_block(result.sweeps[kind][1])
            blocks = (block, block)
        first, end = _span(blocks, last)
        if kind not in _ALONE and first == end:
            first, end = (first, first + 1) if first < last else (first - 1, first)
        return {**view, "blocks": (first, end)}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        outcome, place = self._made(result, view)
        words = result.read.next_words(outcome.states[place], _WORDS)
        swept = outcome is result.sweeps[view["edit"]][0]
        kl = None if swept else float(outcome.measures.kl_to_original[place])
        return depth_lab_chart(
            result.sweeps[view["edit"]][1], words, kind=view["edit"], chosen=_edited(view["edit"], view["blocks"]), kl=kl
        )

    def _made(self, result: _Result, view: Mapping[str, Any]) -> tuple[TextOutcome, int]:
        found = result.outcome(view["edit"], view["blocks"])
        assert found is not None  # made before anything is shown
        return found

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        outcome, place = self._made(result, view)
        here, blocks = outcome.measures.isel(made=place), result.sweeps[view["edit"]][1]
        words = result.read.next_words(outcome.states[place], _WORDS)
        facts = {
            "edit": view["edit"],
            "blocks": list(view["blocks"]),
            "tokens": int(result.read.ids.shape[1]),
            "loss": round(float(here.loss), 3),
            "loss_after": round(float(here.loss_after), 3),
            "kl": round(float(here.kl_to_original), 3),
            "agreement": round(float(here.agreement), 3),
            "influence_at_output": round(float(here.influence_at_output), 3),
            "block_influence": [round(float(one), 3) for one in blocks.block_influence],
            "next_word": {str(name): _first_word(words, str(name)) for name in words.read_from.to_numpy()},
        }
        return {**facts, "says": _sentence(facts, blocks)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {"blocks": view["blocks"][0]}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        block = int(selected["blocks"]) if "blocks" in selected else self._view["blocks"][0]
        return {} if block == self._view["blocks"][0] else {"blocks": (block, block)}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        if self._result is not None:
            self._controls["blocks"].max = self._result.model.n_layers - 1
        super()._show_view(view)

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        self._settings.update(text=settings["text"], sample=settings["sample"])  # of a held-out text, now that it was read
        super()._mirror(settings)


def _held_out(job: Job) -> str:
    """The beginning of an article that nothing was fitted on, up to the end of a word."""
    articles = corpus("wikipedia", progress=job.progress).part("test")
    text = articles[(job.settings["sample"] - 1) % len(articles)].text[:_SAMPLE].replace("\n", " ")
    return text[: text.rstrip().rfind(" ")]


def _span(blocks: Any, last: int) -> tuple[int, int]:
    whole = isinstance(blocks, (tuple, list)) and len(blocks) == 2 and all(isinstance(one, int) for one in blocks)
    if not whole or not 0 <= blocks[0] <= blocks[1] <= last:
        raise InputError(f"The blocks are {blocks!r}", f"first and last of 0 to {last}", f"blocks=({last // 2}, {last // 2})")
    return int(blocks[0]), int(blocks[1])


def _edited(kind: str, blocks: tuple[int, int]) -> str:
    first, last = blocks
    span = f"block {first}" if first == last else f"blocks {first} {'and' if last == first + 1 else 'to'} {last}"
    if kind == "swapped":
        return f"blocks {first} and {last} swapped"
    return f"{span} {'in parallel' if kind == 'parallel' else kind}"


def _first_word(words: xr.Dataset, read_from: str) -> tuple[str, float]:
    probability = words.probability.sel(read_from=read_from).to_numpy()
    best = int(probability.argmax())
    return visible(str(words.token.to_numpy()[best])), round(float(probability[best]), 3)


def _sentence(facts: Mapping[str, Any], blocks: xr.Dataset) -> str:
    (before, likely), (after, now) = facts["next_word"]["model"], facts["next_word"]["edited"]
    edit = _edited(facts["edit"], tuple(facts["blocks"]))
    text = f"With {edit}, this text costs {facts['loss_after']:.2f} nats a token instead of {facts['loss']:.2f}"
    if before == after:
        text += f", and its next word is still “{before}” ({100 * now:.0f} %, was {100 * likely:.0f} %)."
    else:
        text += f", and its next word is “{after}” ({100 * now:.0f} %), no longer “{before}” ({100 * likely:.0f} %)."
    return f"{text} {_of_all(facts, blocks)}"


def _of_all(facts: Mapping[str, Any], blocks: xr.Dataset) -> str:
    """What stands out among all blocks: one that its influence misjudges, or the ends of the order."""
    cost, influence = blocks.kl_to_original.to_numpy(), blocks.block_influence.to_numpy()
    first, last = facts["blocks"]
    if first == last:
        dearer, weightier = int((cost > cost[first]).sum()), int((influence > influence[first]).sum())
        if weightier - dearer >= len(cost) // 4:
            return (
                f"By block influence {weightier} of the other {len(cost) - 1} blocks look more important than block {first}; "
                f"by what it costs, {dearer} are."
            )
    low, high = int(np.nanargmin(cost)), int(np.nanargmax(cost))
    return f"Edited one by one, block {low} costs least (KL {cost[low]:.2g}) and block {high} most (KL {cost[high]:.2g})."
