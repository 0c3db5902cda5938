"""The lane panel: what a head does with its frequencies, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.head_lanes import DETAILS, SCORES, SIDE, VALUES, head_lanes_chart, signed, wavelength
from lens.models.frequencies import RopeTable, rope_table
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.models.rotary import rotaries
from lens.models.tokens import pieces
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.probes.lanes import lane_logits, lane_offsets, lane_usage
from lens.probes.positional_kernel import counterfactual, positional_kernel, positional_scores, previous_token_score

EXAMPLE = (
    "The keeper of the lighthouse climbed the stairs, lit the lamp and wrote in his book that the keeper of the lighthouse "
    "before him had climbed the same stairs every night for thirty years."
)
LONGEST = 512  # tokens
_STEPS = np.arange(2, 8.01, 0.125)  # of log10 of the base
_DETAILS = {"one cell": "cell", "all distances": "offsets", "kernel": "kernel"}
_SHORT = {"fast lanes": "fast_share", "slow lanes": "slow_share", "previous token": "previous_token"}


@dataclass(frozen=True)
class _Result:
    """One text's queries and keys, what is known of all heads, and the tables that turn them.

    Attributes:
        states: by block, of those that rotate.
        heads: from `lane_usage` and `positional_scores`.
        tables: as configured, by block.
    """

    model: Model
    tokens: tuple[str, ...]
    states: Mapping[int, HeadStates]
    heads: xr.Dataset
    tables: Mapping[int, RopeTable]

    @property
    def context(self) -> int:
        return self.model.context or len(self.tokens)

    def turn(self, block: int, base: float) -> dict[str, Any]:
        """The table of a block under another base, or as it stands in the model."""
        live = self.tables[block]
        if base == live.base:
            return {"theta": self.states[block].theta, "attention_factor": self.states[block].attention_factor}
        table = rope_table(live.kind, base, live.width, **live.parameters)
        return {"theta": table.theta, "attention_factor": table.attention_factor}


class HeadLanes(TextPanel):
    """All heads by their use of fast lanes, one head's attention, and the frequencies that make a cell of it.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: at most 512 tokens; the attention map shows 100 of them at a time.
        block, head: which head; by default the one that attends most to the token before.
        cell: query and key position; by default the strongest of the head.
        score: of the map of heads: `fast_share`, `slow_share` or `previous_token`.
        values: `attention` or `logit`.
        picture: `cell` (lanes of one cell), `offsets` (mean contribution of each lane by distance) or `kernel`.
        base: another rotary base in the chosen block alone, from its stored queries and keys; None for the live one.
        start: first token of the map, where the text is longer than it.

    `set(block=…, head=…, cell=…)` chooses as clicks do; `summary()` gives what is shown as plain data, `usage` the Dataset
    of all heads.
    """

    COMPUTED = ("model", "text")
    VIEW = ("block", "head", "cell", "score", "values", "picture", "base", "start")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        block: int | None = None,
        head: int | None = None,
        cell: Sequence[int] | None = None,
        score: str = "fast_share",
        values: str = "attention",
        picture: str = "cell",
        base: float | None = None,
        start: int | None = None,
    ):
        narrow, style = widgets.Layout(width="auto"), {"description_width": "auto"}
        buttons = {"style": {"button_width": "auto"}, "layout": narrow}
        controls = {
            "score": widgets.Dropdown(options=list(_SHORT.items()), layout=narrow, tooltip="what the map of heads shows"),
            "values": widgets.ToggleButtons(options=list(VALUES), **buttons),
            "picture": widgets.ToggleButtons(options=list(_DETAILS.items()), **buttons),
            "base": widgets.SelectionSlider(
                options=[("live", 0.0)], description="base, this block alone", style=style, layout=widgets.Layout(width="31em")
            ),
            "start": widgets.IntSlider(
                description="from token", style=style, layout=widgets.Layout(width="16em", display="none")
            ),
        }
        view = {"block": block, "head": head, "cell": cell, "score": score, "values": values, "picture": picture, "base": base,
                "start": start}  # fmt: skip
        super().__init__(model, text, view, controls)
        self._open(view)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def usage(self) -> xr.Dataset:
        """Lane usage and positional scores of every head, from `lane_usage` and `positional_scores`."""
        return self._shown().heads

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        model = self._model(job)
        ids = self._token_ids(job, model, 3, LONGEST, "a sentence, or one of its parts")
        with job.holding(model.lock, "running for its heads"):
            tables = {block: found.table for found in rotaries(model) for block in found.blocks}
            provenance = model.provenance()
            states = head_states(model, ids, check=job.check_blocks(model.n_layers, "running"))
        rotating = {one.block: one for one in states if len(one.theta)}
        usage = lane_usage(list(rotating.values()), context=model.context or len(ids))
        scores = positional_scores(list(rotating.values()), check=job.check_blocks(len(rotating), "looking at heads"))
        heads = xr.merge([usage, scores], combine_attrs="override").assign_attrs(provenance)
        return _Result(model, tuple(pieces(model.tokenizer, ids)), rotating, heads, tables)

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        for name, known in (("score", SCORES), ("values", VALUES), ("picture", DETAILS)):
            if view[name] not in known:
                raise InputError(f"The {name} is {view[name]!r}", f"one of {', '.join(known)}", f"{name}={next(iter(known))!r}")
        block, head = self._head(result, view)
        base, cell = self._base(result, block, view), self._cell(result, block, head, view)
        return {**view, "block": block, "head": head, "cell": cell, "base": base, "start": self._start(result, cell, view)}

    def _head(self, result: _Result, view: Mapping[str, Any]) -> tuple[int, int]:
        blocks, heads = result.heads.block.to_numpy().tolist(), result.heads.sizes["head"]
        block, head = view["block"], view["head"]
        if block is None and head is None:
            scores = result.heads.previous_token.to_numpy()
            row, column = np.unravel_index(int(scores.argmax()), scores.shape)
            return blocks[row], int(column)
        block, head = (blocks[0] if block is None else block), (0 if head is None else head)
        if block not in blocks or head not in range(heads):
            if self._replaces(result) and view["block"] == self._view["block"] and view["head"] == self._view["head"]:
                return self._head(result, {**view, "block": None, "head": None})  # of another model
            needed = f"blocks {blocks[0]} to {blocks[-1]} that rotate, heads 0 to {heads - 1}"
            raise InputError(f"Block {block!r}, head {head!r}", needed, f"block={blocks[0]}, head=0")
        return int(block), int(head)

    def _base(self, result: _Result, block: int, view: Mapping[str, Any]) -> float:
        base, table = view["base"], result.tables[block]
        if base is None or (base == self._view["base"] and self._is_live(result)):
            return table.base
        if not isinstance(base, (int, float)) or not np.isfinite(base) or base <= 1:
            raise InputError(f"The base is {base!r}", "a number above 1, or None for the live one", "base=10_000")
        if table.kind == "explicit" and base != table.base:
            raise InputError(f"The table of block {block} has no base", "a kind that follows from one", "base=None")
        return float(base)

    def _is_live(self, result: _Result) -> bool:
        """Whether the picture shows the live base, which another block or model may have another of."""
        block, base = self._view["block"], self._view["base"]
        return self._replaces(result) or (block in result.tables and base == result.tables[block].base)

    def _replaces(self, result: _Result) -> bool:
        """Whether another text or model was shown before, whose choices need not fit."""
        return self._result is not None and result is not self._result

    def _cell(self, result: _Result, block: int, head: int, view: Mapping[str, Any]) -> tuple[int, int]:
        length, cell = len(result.tokens), view["cell"]
        if cell is None or (self._replaces(result) and cell == self._view["cell"]):
            pattern = np.array(result.states[block].pattern(head))
            pattern[:2], pattern[:, 0] = 0, 0  # the first key is a sink as a rule
            query, key = np.unravel_index(int(pattern.argmax()), pattern.shape)
            return int(query), int(key)
        if not (isinstance(cell, Sequence) and len(cell) == 2 and 0 <= cell[1] <= cell[0] < length):
            raise InputError(f"The cell is {cell!r}", f"(query, key), 0 ≤ key ≤ query ≤ {length - 1}", "cell=(5, 4)")
        return int(cell[0]), int(cell[1])

    def _start(self, result: _Result, cell: tuple[int, int], view: Mapping[str, Any]) -> int:
        last, start = max(0, len(result.tokens) - SIDE), view["start"]
        moved = cell != self._view["cell"] and start == self._view["start"]
        if start is None or moved or self._replaces(result):
            start = 0 if start is None else start
            return min(last, start if start <= cell[1] and cell[0] < start + SIDE else max(0, cell[0] - SIDE + 1))
        if not isinstance(start, int) or not 0 <= start <= last:
            raise InputError(f"The first token shown is {start!r}", f"0 to {last}", "start=0")
        return start

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        states, head, turn = result.states[view["block"]], view["head"], result.turn(view["block"], view["base"])
        before = None
        if view["picture"] == "cell":
            detail = lane_logits(states, head, [view["cell"]], context=result.context, **turn)
        elif view["picture"] == "offsets":
            detail = lane_offsets(states, head, **turn)
        else:
            detail = positional_kernel(states, head, **turn)
            before = None if view["base"] == result.tables[view["block"]].base else positional_kernel(states, head)
        return head_lanes_chart(
            result.heads, counterfactual(states, head, **turn), detail, tokens=result.tokens, start=view["start"],
            score=view["score"], values=view["values"], picture=view["picture"], before=before,
        )  # fmt: skip

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        block, head, (query, key) = view["block"], view["head"], view["cell"]
        states, turn = result.states[block], result.turn(block, view["base"])
        cells = counterfactual(states, head, **turn)
        lanes = lane_logits(states, head, [view["cell"]], context=result.context, **turn).isel(cell=0)
        parts = {band: round(float(lanes.contribution.where(lanes.band == band).sum()), 3) for band in ("fast", "middle", "slow")}
        strongest = lanes.isel(lane=np.argsort(-np.abs(lanes.contribution.to_numpy()))[:3])
        here = result.heads.sel(block=block, head=head)
        kernel = positional_kernel(states, head, **turn)
        facts = {
            **view,
            "live_base": result.tables[block].base,
            "tokens": len(result.tokens),
            "query": visible(result.tokens[query]),
            "key": visible(result.tokens[key]),
            **{name: round(float(here[name]), 3) for name in ("fast_share", "slow_share")},
            "fast_rank": 1 + int((result.heads.fast_share > here.fast_share).sum()),
            "heads": int(result.heads.fast_share.size),
            "previous_token": round(previous_token_score(cells.attention.to_numpy()), 3),
            "previous_token_live": round(float(here.previous_token), 3),
            "attention": round(float(cells.attention[query, key]), 3),
            "logit": round(float(lanes.logit), 3),
            "logit_by_band": parts,
            "strongest_lanes": [
                (wavelength(length), round(part, 3))
                for length, part in zip(strongest.wavelength.to_numpy(), strongest.contribution.to_numpy().tolist(), strict=True)
            ],
            "kernel_share": round(float(kernel.kernel_share), 3),
            "offset_share": round(float(kernel.offset_share), 3),
        }
        return {**facts, "says": _sentence(facts)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        query, key = view["cell"]
        inside = view["start"] <= key and query < view["start"] + SIDE
        return {"heads": [view["head"], view["block"]], **({"cells": [key, query]} if inside else {})}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A click in the map of heads chooses a head, one in the attention map a cell."""
        found: dict[str, Any] = {}
        if "heads" in selected:
            found |= {"head": int(selected["heads"][0]), "block": int(selected["heads"][1])}
        if "cells" in selected:
            found["cell"] = (int(selected["cells"][1]), int(selected["cells"][0]))
        return found

    def _show_view(self, view: Mapping[str, Any]) -> None:
        base, start = self._controls["base"], self._controls["start"]
        base.options = self._bases(self._result.tables[view["block"]], view["base"])
        start.max = max(0, len(self._result.tokens) - SIDE)
        start.layout.display = "" if start.max else "none"
        super()._show_view(view)

    @staticmethod
    def _bases(table: RopeTable, shown: float) -> list[tuple[str, float]]:
        """Steps of an eighth of a decade, with the live base and the one that is shown in their places."""
        steps = {float(f"{10.0**power:.3g}") for power in _STEPS} if table.kind != "explicit" else set()
        return [(f"{base:,.0f}{' (live)' * (base == table.base)}", base) for base in sorted({*steps, table.base, shown})]


def _sentence(facts: Mapping[str, Any]) -> str:
    parts = facts["logit_by_band"]
    text = (
        f"Block {facts['block']}, head {facts['head']} puts {100 * facts['fast_share']:.1f} % of its queries and keys into lanes "
        f"that turn within 32 tokens, number {facts['fast_rank']} of {facts['heads']} heads; on average "
        f"{100 * facts['previous_token_live']:.0f} % of its attention goes to the token before. From “{facts['query']}” to "
        f"“{facts['key']}” the logit is {signed(facts['logit'])}: {signed(parts['fast'])} from fast lanes, "
        f"{signed(parts['middle'])} from middle and {signed(parts['slow'])} from slow ones; the key gets "
        f"{100 * facts['attention']:.0f} % of the query's attention."
    )
    if facts["base"] != facts["live_base"]:
        text += (
            f" With base {facts['base']:,.0f} instead of {facts['live_base']:,.0f} in this block alone, its inputs unchanged and "
            f"no forward pass, {100 * facts['previous_token']:.0f} % goes to the token before."
        )
    if facts["tokens"] > SIDE:
        text += f" The map shows {SIDE} of {facts['tokens']} tokens, from token {facts['start']}."
    return text
