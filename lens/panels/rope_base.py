"""The rotary-base panel: turn the base of a running model, and see what it still knows and where its heads still look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.logit_lens import grid_spec
from lens.figures.rope_base import BESIDE, head_chart, loss_chart, token_loss
from lens.models import edits
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.models.rotary import rotaries
from lens.models.run import Run
from lens.panels.chart import Chart
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.panels.token_grid import TokenGrid
from lens.probes.logit_lens import follow_token, logit_lens
from lens.probes.rope_turn import SETTINGS, striking_head, turned_head

EXAMPLE = "Dr. Elspeth Quarnby met Tomas Vrell in Oslo. Later, Dr. Elspeth Quarnby wrote to Tomas Vrell in Oslo."
LONGEST = 96  # tokens; a head's map has as many rows and columns
ROWS = 6  # of the lens grid, about: reading every layer would take four times as long as the run
DECADES, STEPS = (2, 9), 10  # of the slider, and its steps in each
_BESIDE = {"whole model turned": "turned", "this layer alone": "alone", "difference": "difference"}
_SHOWN = ("turned", "trained")
_LOOKS = {
    "moved": "elsewhere",
    "prefix_matching": "what followed the same word before",
    "previous_token": "the token before",
    "first_token": "the first token",
}
_NOTABLE = {"prefix_matching": 0.2, "previous_token": 0.3, "first_token": 0.8}
"""Shares of attention from which on a head of the trained model is described by what it looks at; the first one that applies."""


@dataclass(frozen=True)
class _Trained:
    """One text through the model as it is, and the mean loss of every base that was tried on it."""

    model: Model
    base: float
    run: Run
    lens: xr.Dataset
    states: tuple[HeadStates, ...]
    visited: dict[float, float]

    @cached_property
    def loss(self) -> float:
        return float(token_loss(self.lens).mean())


@dataclass(frozen=True)
class _Result:
    """The same text with the base turned; `tables` holds the frequencies and the factor under which each block ran."""

    trained: _Trained
    base: float
    run: Run
    lens: xr.Dataset
    tables: Mapping[int, tuple[np.ndarray, float]]

    @cached_property
    def striking(self) -> tuple[int, int]:
        return striking_head(self.trained.run, self.run)

    def head(self, block: int, head: int) -> xr.Dataset:
        theta, factor = self.tables.get(block, (np.zeros(0), 1.0))
        return turned_head(self.trained.run, self.run, self.trained.states[block], head, theta, factor)


class RopeBase(TextPanel):
    """A running model whose rotary base is turned: loss, one head's attention and the lens grid, beside the model as trained.

    The model has never seen another base: what is shown is how far it bears the change, not what a model trained at that
    base could do.

    Args:
        model: a `lens.Model` with rotary position embeddings, or anything `lens.load` takes.
        text: the sentence shown first, of 2 to 96 tokens.
        base: the rotary base to turn to; by default a thousandth of the trained one, and at least 10.
        block, head: the head whose attention is shown; by default the one that follows repeated words most.
        beside: what stands beside its attention in the trained model: `turned` (the whole model turned), `alone` (this
            layer alone: computed from the trained model's queries and keys without a forward pass, and exact for this
            layer only), or `difference` (turned less trained).
        shown: whose words the grid shows, `turned` or `trained`.

    `set(base=…, text=…, head=…)` changes settings from a cell, `summary()` gives what is shown as plain data, `panel.grid` is
    the lens grid (of some layers, so that the slider is answered within a second). A click on a token chooses its
    position in all pictures, one on a base goes back to it.
    """

    COMPUTED = ("model", "text", "base")
    VIEW = ("block", "head", "beside", "shown", "position", "follow")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        base: float | None = None,
        block: int | None = None,
        head: int | None = None,
        beside: str = "turned",
        shown: str = "turned",
    ):
        self._trained: _Trained | None = None
        self.heads, self.grid = Chart(), TokenGrid(strides=[1])
        narrow, wide = widgets.Layout(width="auto"), widgets.Layout(flex="1 1 22em", width="auto")
        top = {"base": _slider("rotary base", wide)}
        controls = {
            "block": _slider("block", widgets.Layout(width="14em")),
            "head": _slider("head", widgets.Layout(width="14em")),
            "beside": widgets.ToggleButtons(options=list(_BESIDE.items()), style={"button_width": "auto"}),
        }
        view = {"block": block, "head": head, "beside": beside, "shown": shown, "position": None}
        super().__init__(model, text, view, controls, settings={"base": base}, top=top)
        self._back = widgets.Button(description="As trained", layout=narrow)
        self._back.on_click(lambda _: self.post(base=self._shown().trained.base))
        self.children = (*self._rows(), self._line, self._says, self.chart, self.heads, self.grid)
        self.heads.observe(self._on_select, "selected")
        self.grid.observe(self._on_cell, "selected")
        self.grid.observe(self._on_follow, "follow")
        self.grid.on_msg(self._on_message)
        self._open(view)

    def _rows(self) -> list[widgets.HBox]:
        text, model, base = self._top.values()
        rows = [[text, model, self._bar, self._cancel, self._chip], [base, self._back], list(self._controls.values())]
        boxes = [widgets.HBox(row) for row in rows]
        for box in boxes:
            box.add_class("lens-top")
        return boxes

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        model = self._model(job)
        rotaries(model)  # refuses models without
        ids = self._token_ids(job, model, 2, LONGEST, "lens.rope_sweep for more")
        with job.holding(model.lock, "running at its trained rotary base and at another"):
            trained = self._as_trained(job, model, ids)
            base = max(trained.base / 1000, 10.0) if job.settings["base"] is None else job.settings["base"]
            with edits.rope_base(model, base):
                run, lens = self._read(job, model, ids, f"base {base:,.0f}")
                tables = {block: (one.theta, one.attention_factor) for one in rotaries(model) for block in one.blocks}
            trained.visited[float(base)] = float(token_loss(lens).mean())
        return _Result(trained, float(base), run, lens, tables)

    def _as_trained(self, job: Job, model: Model, ids: list[int]) -> _Trained:
        """Run once for each text."""
        known = self._trained
        if known is None or known.model is not model or known.run.token_ids.tolist() != ids:
            run, lens = self._read(job, model, ids, "as trained")
            states = head_states(model, ids, check=job.token.check)
            known = self._trained = _Trained(model, float(rotaries(model)[0].table.base), run, lens, states, {})
        return known

    def _read(self, job: Job, model: Model, ids: list[int], label: str) -> tuple[Run, xr.Dataset]:
        run = model.run(ids, attention=True, check=job.check_blocks(model.n_layers, label))
        job.token.check()
        layers = range(0, model.n_layers + 1, max(1, model.n_layers // ROWS))
        return run, logit_lens(run, top_k=min(5, model.vocab_size), layers=layers)

    # -- what is shown of it ----------------------------------------------------------------------

    def _prepare(self, job: Job, result: _Result | None) -> Mapping[str, Any]:
        wish = job.view.pop("follow", None)
        prepared = dict(super()._prepare(job, result))
        shown = self._result if result is None else result
        if shown is None:
            return prepared
        view = prepared["view"]
        if wish is not None and result is None:
            prepared["trajectory"] = self._followed(job, shown, view["shown"], wish) if wish else {}
        prepared["heads"] = head_chart(shown.head(view["block"], view["head"]), view["beside"])
        if result is not None or "shown" in job.view:
            prepared["grid"] = grid_spec(shown.trained.lens if view["shown"] == "trained" else shown.lens)
        return prepared

    def _followed(self, job: Job, result: _Result, shown: str, wish: Mapping[str, Any]) -> dict[str, Any]:
        """Probability of a word that was clicked in the grid, through the grid's layers."""
        run, lens = (result.trained.run, result.trained.lens) if shown == "trained" else (result.run, result.lens)
        position = int(wish["position"])
        with job.holding(run.model.lock, "following a word"):
            found = follow_token(run, int(wish["token_id"]), position).sel(layer=lens.layer)
        word, probability = visible(str(found.attrs["token"])), np.exp(found.logprob.isel(position=0).to_numpy())
        return {**wish, "position": position, "word": word, "probability": probability.tolist()}

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        for name, known in (("beside", BESIDE), ("shown", _SHOWN)):
            if view[name] not in known:
                raise InputError(f"The setting {name} is {view[name]!r}", f"one of {', '.join(known)}", f"{name}={known[0]!r}")
        patterns = result.run.attention
        assert patterns is not None  # asked for
        found = dict(view)
        for (name, count), good in zip((("block", patterns.shape[0]), ("head", patterns.shape[1])), result.striking, strict=True):
            found[name] = good if view[name] is None else self._within(name, view[name], count)
        if self._result is not None and result.trained is not self._result.trained and view["position"] == self._view["position"]:
            found["position"] = None  # it was chosen in another text
        position = (
            _striking(result) if found["position"] is None else self._within("position", found["position"], len(result.run))
        )
        return {**found, "position": position}

    def _within(self, name: str, value: Any, count: int) -> int:
        """A place that exists; one that was chosen for another model or text gives way."""
        if isinstance(value, int) and 0 <= value < count:
            return value
        if isinstance(value, int) and value == self._view[name] and self._result is not None:
            return count - 1
        raise InputError(f"The {name} is {value!r}", f"0 to {count - 1}", f"{name}=0")

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        trained = result.trained
        return loss_chart(trained.lens, result.lens, trained.visited, trained.base)

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        trained, position = result.trained, view["position"]
        head = result.head(view["block"], view["head"])
        looks = {name: [round(float(value), 3) for value in head[name]] for name in _LOOKS}
        facts = {
            "model": trained.model.name,
            "tokens": len(result.run),
            "base": result.base,
            "trained_base": trained.base,
            "loss": round(float(token_loss(result.lens).mean()), 3),
            "trained_loss": round(trained.loss, 3),
            "selected": {"position": position, "after": visible(result.run.tokens[position])},
            "answer": _answer(result.lens, position),
            "trained_answer": _answer(trained.lens, position),
            "other_first_words": int(_changed(result).sum()),
            "block": view["block"],
            "head": view["head"],
            "beside": view["beside"],
            "attention": {name: dict(zip(SETTINGS, values, strict=True)) for name, values in looks.items()},
            "shown": view["shown"],
        }
        return {**facts, "says": _sentence(facts)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        """The last position has no next token, and so no loss."""
        at = {} if view["position"] == len(self._result.run) - 1 else {"position": view["position"]}
        return {"base": self._result.base, **at}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A token, a row of the head's map, or a base that was tried."""
        if "attention" in selected:
            return {"position": int(selected["attention"][1])}
        old = self._selection(self._view)
        if "base" in selected and selected["base"] != old["base"]:
            known = {*self._result.trained.visited, self._result.trained.base}  # the picture rounds them
            return {"base": min(known, key=lambda base: abs(np.log(base / selected["base"])))}
        return {"position": int(selected["position"])} if "position" in selected else {}

    def _apply(self, view: Mapping[str, Any]) -> None:
        super()._apply(view)
        if self._result is None:
            return
        position = self._view["position"]
        with self.heads.hold_sync(), self._mute():
            self.heads.spec = view["heads"]
            cell = self.heads.selected.get("attention")
            self.heads.selected = {"attention": cell} if cell and cell[1] == position else {}
        with self.grid.hold_sync(), self._mute():
            first = not self.grid.spec
            if "grid" in view:
                self.grid.spec = view["grid"]
                self.grid.trajectory, self.grid.follow = {}, {}
            self.grid.trajectory = view.get("trajectory", self.grid.trajectory)
            layer, layers = self.grid.selected[0], self.grid.spec["layers"]
            self.grid.selected = [layer if layer in layers and not first else layers[-1], position]
            options = [{"value": name, "label": name} for name in _SHOWN]
            self.grid.choices = [{"name": "shown", "label": "Model", "value": self._view["shown"], "options": options}]

    def _show(self, result: _Result, seconds: float) -> None:
        super()._show(result, seconds)
        model = result.trained.model
        self._chip_at_rest = f"{seconds:.2f} s · {model.device.type} · {model.dtype_name}"

    def _show_view(self, view: Mapping[str, Any]) -> None:
        blocks, heads = self._result.run.attention.shape[:2]
        for name, count in (("block", blocks), ("head", heads)):
            if len(self._controls[name].options) != count:
                self._controls[name].options = list(range(count))
        super()._show_view({name: view[name] for name in self._controls})

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        self._settings["base"] = self._result.base
        self._top["base"].options = _bases(self._result.trained.base, self._result.base)
        super()._mirror({**settings, "base": self._result.base})

    # -- events -----------------------------------------------------------------------------------

    def _on_cell(self, change: Any) -> None:
        if not self._is_muted and change["new"][1] != self._view["position"]:
            self.post(position=int(change["new"][1]))

    def _on_follow(self, change: Any) -> None:
        if not self._is_muted:
            self.post(follow=change["new"])

    def _on_message(self, _grid: Any, content: Any, _buffers: Any) -> None:
        """A choice in the grid's own toolbar."""
        if isinstance(content, Mapping) and content.get("type") == "choice" and content.get("name") == "shown":
            self.post(shown=content.get("value"))

    def _dim(self, label: str | None, seconds: float) -> None:
        super()._dim(label, seconds)
        self.heads.busy = self.chart.busy
        self.grid.busy = self.chart.busy


def _slider(description: str, layout: widgets.Layout) -> widgets.SelectionSlider:
    """Its options are known once a model has been looked at."""
    return widgets.SelectionSlider(options=[0], description=description, style={"description_width": "auto"}, layout=layout)


def _bases(trained: float, turned: float) -> list[tuple[str, float]]:
    """Steps of the slider: even in the logarithm, the trained base among them to the last bit, and one that a cell gave."""
    first, last = DECADES
    even = [float(f"{10 ** (first + step / STEPS):.3g}") for step in range((last - first) * STEPS + 1)]
    apart = 10 ** (0.4 / STEPS)  # a step nearer than this to one of the two gives way to it
    kept = [base for base in even if not any(1 / apart < base / known < apart for known in (trained, turned))]
    return [("as trained" if base == trained else f"{base:,.0f}", base) for base in sorted({*kept, trained, turned})]


def _striking(result: _Result) -> int:
    """The position whose next token suffers most from the turn, or the last but one where none does."""
    change = token_loss(result.lens) - token_loss(result.trained.lens)
    return int(change.argmax()) if change.max() > 0 else len(change) - 1


def _answer(lens: xr.Dataset, position: int) -> tuple[str, float]:
    """What the model puts first after a position, and how probable it holds it."""
    here = lens.isel(layer=-1, position=position, rank=0)
    return visible(str(here.token.item())), round(float(np.exp(here.logprob)), 3)


def _changed(result: _Result) -> np.ndarray:
    """Where another word is put first than in the trained model."""
    turned, trained = (one.token_id.isel(layer=-1, rank=0).to_numpy() for one in (result.lens, result.trained.lens))
    return turned != trained


def _sentence(facts: Mapping[str, Any]) -> str:
    trained, base = facts["trained_base"], facts["base"]
    if base == trained and facts["loss"] == facts["trained_loss"]:
        return f"At {base:,.0f}, the base that the model was trained with, the text costs {facts['loss']:.2f} nats a token."
    (word, share), (known, before) = facts["answer"], facts["trained_answer"]
    after = facts["selected"]["after"]
    answer = (
        f"After “{after}” it still answers “{word}”, with probability {share:.2f} instead of {before:.2f}."
        if word == known
        else f"After “{after}” it answers “{word}” ({share:.2f}) instead of “{known}” ({before:.2f})."
    )
    return (
        f"With the base turned from {trained:,.0f} to {base:,.0f} the text costs {facts['loss']:.2f} nats a token instead of "
        f"{facts['trained_loss']:.2f}, and {facts['other_first_words']} of {facts['tokens']} answers are other words. {answer} "
        f"{_head_sentence(facts)}"
    )


def _head_sentence(facts: Mapping[str, Any]) -> str:
    name, looks = f"head {facts['head']} of block {facts['block']}", facts["attention"]
    what = next((name for name, least in _NOTABLE.items() if looks[name]["trained"] >= least), "moved")
    trained, whole, alone = (f"{100 * looks[what][setting]:.0f} %" for setting in SETTINGS)
    if what == "moved":
        return f"{name[0].upper()}{name[1:]} has moved {whole} of its attention; turned in its layer alone it would move {alone}."
    return (
        f"{name[0].upper()}{name[1:]} gives {whole} of its attention to {_LOOKS[what]}, instead of {trained}; "
        f"turned in its layer alone, {alone}."
    )
