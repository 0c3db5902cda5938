"""The attention atlas: every head by every measure, one head's pattern and spectrum, and the text that it reads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import html_safe, visible
from lens.figures.export import export_table
from lens.figures.head_grid import VALUES, block_spec, detail_spec, overview_spec, sends_block, short_name
from lens.figures.head_grid_page import head_grid_page, picture, require_suffix, write
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.models.tokens import encode, pieces
from lens.panels.atlas_words import estimate, left_out, sentence
from lens.panels.fitted import ChartPanel
from lens.panels.head_grid import HeadGrid
from lens.panels.head_lanes import EXAMPLE
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.probes.attention_battery import MEASURES, attention_battery, battery_cost
from lens.probes.seen_patterns import seen_detail, seen_pattern
from lens.probes.singular_values import EXACT, RANKS

LENGTHS = (32, 64, 128, 256, 512, 1024)
FEWEST = 4  # tokens of a text, of which the first may be left out
DIRECTIONS = ("to", "by")
_SPECTRAL = {*RANKS, "largest_singular_value", "leading_share", "contraction"}  # of all heads, too slow for long texts
_SAID = ("effective_rank", "first_token", "previous_token", "self_attention")
_KEPT = (2, 64)  # heads whose details are kept, the least and the most; walking back is then free
_KEPT_BYTES = 64e6  # of their patterns and logits


@dataclass(frozen=True)
class _Result:
    """One text's heads and what was measured of all of them.

    Attributes:
        states: by block, of those with attention that can be read.
        heads: from `attention_battery`.
        cut: tokens of the text that were left out at its end.
    """

    model: Model
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    states: Mapping[int, HeadStates]
    heads: xr.Dataset
    drop_sink: bool
    cut: int
    _kept: dict[Any, Any] = field(default_factory=dict)
    _lock: Any = field(default_factory=threading.RLock)

    @property
    def size(self) -> tuple[int, int]:
        """Heads of a block, and positions."""
        return self.heads.sizes["head"], len(self.tokens)

    @property
    def _heads_kept(self) -> int:
        return int(np.clip(_KEPT_BYTES // (16 * len(self.tokens) ** 2), *_KEPT))

    def block(self, block: int) -> dict[str, Any]:
        """What is sent of a block, from its queries and keys alone."""
        heads, positions = self.size
        patterns = (seen_pattern(self.states[block], head, drop_sink=self.drop_sink) for head in range(heads))
        return self._once(("block", block), 4, lambda: block_spec(block, patterns, heads, positions))

    def detail(self, block: int, head: int) -> xr.Dataset:
        """One head's pattern, logits and spectrum."""
        return self._once(
            ("detail", block, head), self._heads_kept, lambda: seen_detail(self.states[block], head, drop_sink=self.drop_sink)
        )

    def sent(self, block: int, head: int) -> dict[str, Any]:
        """What is sent of one head."""
        whole = sends_block(*self.size)
        return self._once(
            ("sent", block, head), _KEPT[1], lambda: detail_spec(self.detail(block, head), block, head, whole=whole)
        )

    def _once(self, key: tuple[Any, ...], most: int, make: Callable[[], Any]) -> Any:
        """What was made for a key before, of as many keys of its kind as are kept."""
        with self._lock:
            if key not in self._kept:
                same = [other for other in self._kept if other[0] == key[0]]
                if len(same) >= most:
                    del self._kept[same[0]]
                self._kept[key] = make()
            return self._kept[key]


class AttentionAtlas(TextPanel):
    """All heads of a model by any measure of their attention, linked to one head's pattern, scree plot and text.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: what the heads read.
        length: tokens of it that are used, from its start.
        drop_sink: leave the first token out of patterns and measures, and give each query its share back.
        measure: of the map of heads, one of `lens.probes.attention_battery.MEASURES`.
        block, head: which head; by default the one where the measure is largest.
        token: position of the token whose attention is shown; by default the query with the strongest tie to another token.
        values: `attention` or `logit`, of the map of the pattern.
        direction: `to`, what the token attends to, or `by`, what attends to it.

    `set(block=…, head=…, token=…)` chooses as clicks do; `summary()` gives what is shown as plain data, `heads` the Dataset of
    all measures; `export("atlas.html")` writes the live picture of the chosen block (`.png`, `.svg`, `.pdf`: a drawing of it,
    `.csv`, `.nc`: the measures).

    The browser gets patterns whole up to 256 tokens, of a longer text tiles and the strongest keys of each query.
    """

    COMPUTED = ("model", "text", "length", "drop_sink")
    VIEW = ("block", "head", "token", "measure", "values", "direction")
    PICTURE = HeadGrid

    chart: HeadGrid

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        length: int = 128,
        drop_sink: bool = False,
        measure: str = "effective_rank",
        block: int | None = None,
        head: int | None = None,
        token: int | None = None,
        values: str = "attention",
        direction: str = "to",
    ):
        self._states: tuple[Any, tuple[HeadStates, ...], dict[str, int]] | None = None
        narrow = widgets.Layout(width="auto")
        top = {
            "length": widgets.Dropdown(options=_lengths(length), value=length, layout=narrow, tooltip="tokens that are read"),
            "drop_sink": widgets.ToggleButton(
                drop_sink, description="without first token", layout=narrow,
                tooltip="leave the first token, to which many heads give nearly everything, out of patterns and measures",
            ),
        }  # fmt: skip
        view = {"block": block, "head": head, "token": token, "measure": measure, "values": values, "direction": direction}
        super().__init__(model, text, view, {}, settings={"length": length, "drop_sink": drop_sink}, top=top)
        for name in ("measure", "values", "direction"):
            self.chart.observe(self._on_control(name), name)
        self._open(view)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def heads(self) -> xr.Dataset:
        """Every measure of every head, from `attention_battery`."""
        return self._shown().heads

    @property
    def detail(self) -> xr.Dataset:
        """The chosen head's pattern, logits and spectrum, from `seen_detail`."""
        return self._shown().detail(self._view["block"], self._view["head"])

    def export(self, path: str | Path) -> Path:
        """Write what is shown; the suffix (`.html`, `.png`, `.svg`, `.pdf`, `.csv`, `.nc`) says how.

        Raises:
            InputError: another suffix.
        """
        suffix, result, view = require_suffix(path), self._shown(), self._view
        if suffix in (".csv", ".nc"):
            return export_table(result.heads, path, list(_measures(result.heads)), ["block", "head"])
        if suffix == ".html":
            details = [result.sent(view["block"], head) for head in range(result.size[0])]  # there is no kernel to ask for them
            state = {**self._spec(result, view), "details": details, "selected": self._selection(view), **_look(view)}
            source = " · ".join(f"{name} {value}" for name, value in result.model.provenance().items())
            title = f"{result.model.name}: attention"
            return write(path, head_grid_page(state, title=title, says=self._facts(result, view)["says"], source=source))
        return write(path, picture(self._drawn(result, view), self._selection(view), suffix[1:], 150))

    def _drawn(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "measures": result.heads,
            "detail": result.detail(view["block"], view["head"]),
            "tokens": result.tokens,
            "measure": view["measure"],
            "limits": MEASURES[view["measure"]].range,
            "values": view["values"],
        }

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, and a picture for places that show notebooks without a kernel."""
        bundle: Any = super(ChartPanel, self)._repr_mimebundle_(**kwargs)
        if bundle is not None and self._result is not None:
            bundle["image/png"] = picture(self._drawn(self._result, self._view), self._selection(self._view))
        return bundle

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        settings = job.settings
        model = self._model(job)
        ids, cut = _ids(model, self._text(job), settings["length"])
        states, cost = self._read(job, model, ids)
        check = job.check_blocks(cost["heads"], estimate(cost))
        names = None if len(ids) <= EXACT else [name for name in MEASURES if name not in _SPECTRAL]
        heads = attention_battery(states, drop_sink=bool(settings["drop_sink"]), measures=names, check=check)
        heads = heads.assign_attrs(model.provenance())
        tokens = tuple(pieces(model.tokenizer, ids))
        return _Result(model, tuple(ids), tokens, {one.block: one for one in states}, heads, bool(settings["drop_sink"]), cut)

    def _read(self, job: Job, model: Model, ids: Sequence[int]) -> tuple[tuple[HeadStates, ...], dict[str, int]]:
        """Queries and keys of a text, and what the battery takes.

        Those of the last text are still there, as long as nothing in the model has changed.
        """
        key = (model, tuple(ids), tuple(model.edits))
        if self._states is None or self._states[0] != key:
            with job.holding(model.lock, "running for its heads"):
                cost = battery_cost(model, len(ids))
                job.say(estimate(cost))
                found = head_states(model, ids, check=job.check_blocks(model.n_layers, "running"))
            self._states = (key, found, cost)
        return self._states[1:]

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        known_measures = tuple(_measures(result.heads))
        if view["measure"] in MEASURES and view["measure"] not in known_measures:
            view = {**view, "measure": "mean_entropy"}  # long texts and short ones have fewer
        for name, known in (("measure", known_measures), ("values", VALUES), ("direction", DIRECTIONS)):
            if view[name] not in known:
                raise InputError(f"The {name} is {view[name]!r}", f"one of {', '.join(known)}", f"{name}={known[0]!r}")
        block, head = self._head(result, view)
        return {**view, "block": block, "head": head, "token": self._token(result, block, head, view)}

    def _head(self, result: _Result, view: Mapping[str, Any]) -> tuple[int, int]:
        blocks, heads = result.heads.block.to_numpy().tolist(), result.heads.sizes["head"]
        block, head = view["block"], view["head"]
        if block is None and head is None:
            return _largest(result.heads[view["measure"]])
        block, head = (blocks[0] if block is None else block), (0 if head is None else head)
        if block not in blocks or head not in range(heads):
            if self._replaces(result) and (view["block"], view["head"]) == (self._view["block"], self._view["head"]):
                return self._head(result, {**view, "block": None, "head": None})  # of another model
            needed = f"blocks {blocks[0]} to {blocks[-1]}, heads 0 to {heads - 1}"
            raise InputError(f"Block {block!r}, head {head!r}", needed, f"block={blocks[0]}, head=0")
        return int(block), int(head)

    def _token(self, result: _Result, block: int, head: int, view: Mapping[str, Any]) -> int:
        token, last = view["token"], len(result.tokens) - 1
        other_text = self._replaces(result) and self._result.ids != result.ids
        if token is None or (other_text and token == self._view["token"]):
            weights = np.nan_to_num(result.detail(block, head).attention.to_numpy())
            ties = np.tril(weights, -1)
            ties[:, 0] = 0  # the first key is a sink as a rule
            return int(ties.max(1).argmax()) if ties.any() else last
        if not isinstance(token, int) or not 0 <= token <= last:
            raise InputError(f"The token is {token!r}", f"a position from 0 to {last}", "token=0")
        return token

    def _replaces(self, result: _Result) -> bool:
        """Whether another text or model was shown before, whose choices need not fit."""
        return self._result is not None and result is not self._result

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        """What is sent; parts that are sent already are the same objects."""
        block, head = view["block"], view["head"]
        return {
            "spec": result._once(("overview",), 1, partial(_overview, result)),
            "block": result.block(block),
            "detail": result.sent(block, head),
        }

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        block, head, token = view["block"], view["head"], view["token"]
        here = result.heads.sel(block=block, head=head)
        detail = result.detail(block, head)
        measure = result.heads[view["measure"]]
        facts = {
            **view,
            "model": result.model.name,
            "tokens": len(result.tokens),
            "left_out": result.cut,
            "drop_sink": result.drop_sink,
            "heads": int(measure.size),
            "value": _rounded(here[view["measure"]]),
            "rank": 1 + int((measure > here[view["measure"]]).sum()),
            "measured": short_name(measure),
            "unit": measure.attrs["units"],
            **{name: _rounded(here.get(name, np.nan)) for name in _SAID},
            "uniform_effective_rank": _rounded(detail.attrs["uniform_effective_rank"]),
            "positions": len(result.tokens) - result.drop_sink,
            "sinks": int((result.heads.first_token > 0.5).sum()),
            "token_text": visible(result.tokens[token]),
            "strongest": _strongest(detail.attention.to_numpy(), token, view["direction"], result.tokens),
        }
        return {**facts, "says": sentence(facts)}

    def _show(self, result: _Result, seconds: float) -> None:
        if self._replaces(result):
            self.chart.pinned = False
        super()._show(result, seconds)

    def _apply(self, view: Mapping[str, Any]) -> None:
        if self._result is None:
            return
        self._view = dict(view["view"])
        with self.chart.hold_sync(), self._mute():
            for name, value in view["spec"].items():
                if getattr(self.chart, name) is not value:
                    self.chart.set_trait(name, value)
            self.chart.selected = {**self.chart.selected, **self._selection(self._view)}
            for name, value in _look(self._view).items():
                self.chart.set_trait(name, value)
        self._says.value = f'<p class="lens-says">{html_safe(view["says"])}</p>'

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {"heads": [view["head"], view["block"]], "token": view["token"]}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if "heads" in selected:
            found |= {"head": int(selected["heads"][0]), "block": int(selected["heads"][1])}
        if "token" in selected:
            found["token"] = int(selected["token"])
        return found

    def _show_view(self, view: Mapping[str, Any]) -> None:
        """The controls of the view are the widget's own."""

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        self._top["length"].options = _lengths(settings["length"])
        super()._mirror(settings)


def _lengths(chosen: int) -> list[tuple[str, int]]:
    return [(f"first {length:,} tokens", length) for length in sorted({*LENGTHS, chosen})]


def _ids(model: Model, text: str, length: Any) -> tuple[list[int], int]:
    """Token ids that are read, and how many of the text are not."""
    if not isinstance(length, int) or not FEWEST <= length <= LENGTHS[-1]:
        raise InputError(f"The length is {length!r}", f"{FEWEST} to {LENGTHS[-1]:,} tokens", "length=128")
    if model.tokenizer is None:
        raise InputError(f"{model.name} has no tokenizer", "one to read a text", "lens.load(model, tokenizer)")
    whole = encode(model.tokenizer, text)
    ids = model.encode(whole[: min(length, model.context or length)])
    if len(ids) < FEWEST:
        raise InputError(f"The text has {len(ids)} tokens", f"{FEWEST} or more", "a sentence")
    return ids, len(whole) - len(ids)


def _overview(result: _Result) -> dict[str, Any]:
    ranges = {name: MEASURES[name].range for name in _measures(result.heads)}
    return overview_spec(
        result.heads, result.tokens, ranges=ranges, note=left_out(len(result.tokens), result.cut, result.drop_sink)
    )


def _measures(heads: xr.Dataset) -> list[str]:
    """Names of the measures that some head has a value of."""
    return [name for name in MEASURES if name in heads and bool(np.isfinite(heads[name]).any())]


def _largest(values: xr.DataArray) -> tuple[int, int]:
    row, column = np.unravel_index(int(np.nan_to_num(values.to_numpy(), nan=-np.inf).argmax()), values.shape)
    return int(values.block[row]), int(column)


def _look(view: Mapping[str, Any]) -> dict[str, Any]:
    return {name: view[name] for name in ("measure", "values", "direction")}


def _rounded(value: Any) -> float | None:
    return round(float(value), 3) if np.isfinite(value) else None


def _strongest(
    attention: np.ndarray, token: int, direction: str, tokens: Sequence[str], most: int = 5
) -> list[tuple[int, str, float]]:
    """Position, text and share of the strongest keys of a query, or queries of a key."""
    line = np.nan_to_num(attention[token] if direction == "to" else attention[:, token])
    order = np.argsort(-line, kind="stable")[:5]
    return [(int(place), visible(str(tokens[place])), round(float(line[place]), 3)) for place in order if line[place] > 0]
