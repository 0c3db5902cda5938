"""The explorer of rotary positions: lanes on a clock, their wavelengths, and the kernel they add up to; no model is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.figures.export import export_table
from lens.figures.rope_explorer import explorer_chart, tokens
from lens.models.frequencies import KINDS
from lens.models.frequency_kinds import FORMULAS, ORIGINAL_LENGTH
from lens.models.locks import ModelLock
from lens.panels.fitted import ChartPanel
from lens.panels.panel import Job
from lens.panels.value_slider import geometric_steps, offer, value_slider
from lens.probes.rope_compare import compare_rope, phases
from lens.probes.rope_practice import rope_practice, table_of_model

_OWN = "own settings"
_WIDTHS = (16, 32, 64, 80, 96, 128, 192, 256)
_SLIDING = ("factor", ORIGINAL_LENGTH, "partial_rotary_factor")  # parameters that have a control of their own
_WORDS = {"default": "Unscaled", "linear": "Linear interpolation", "ntk": "NTK", "dynamic": "Dynamic NTK", "yarn": "YaRN",
          "llama3": "Llama 3's rule", "longrope": "LongRoPE", "proportional": "Proportional rotation",
          "explicit": "A table as given"}  # fmt: skip


@dataclass(frozen=True)
class _Result:
    """What a setting leads to, and the released models that have it, the chosen one first."""

    compared: xr.Dataset
    models: tuple[str, ...]


class RopeExplorer(ChartPanel):
    """Frequencies of rotary positions: what each lane of a head tells apart, over which distances, with which scaling.

    Args:
        kind: one of `lens.models.frequencies.KINDS`.
        base, width, context: of the table, as in `lens.probes.rope_compare.compare_rope`.
        factor, original_max_position_embeddings, partial_rotary_factor: for the kinds that have them.
        parameters: others of the kind, by transformers' names.
        model: a released model of `lens.probes.rope_practice`, whose settings come first.
        position: at which the clock is read.
        lane: which lane is selected.

    `set(kind=…, base=…)` changes what is shown, `set(model=…)` takes the settings of a released model. `table` is the
    Dataset behind the picture, `export(path)` writes its lanes as `.csv`, or all of it as `.nc`.
    """

    COMPUTED = ("model", "kind", "base", "width", "context", *_SLIDING, "parameters")
    VIEW = ("position", "lane")

    def __init__(
        self,
        kind: str = "default",
        *,
        base: float | int = 10_000.0,
        width: int = 128,
        context: int = 4096,
        factor: float | int = 8.0,
        original_max_position_embeddings: int = 4096,
        partial_rotary_factor: float | int = 0.75,
        parameters: Mapping[str, Any] | None = None,
        model: str | None = None,
        position: int = 100,
        lane: int | None = None,
    ):
        settings = {
            "kind": kind, "base": base, "width": width, "context": context, "factor": factor,
            ORIGINAL_LENGTH: original_max_position_embeddings, "partial_rotary_factor": partial_rotary_factor,
            "parameters": dict(parameters or {}),
        }  # fmt: skip
        settings |= {"model": None} if model is None else settings_of(model)
        view = {"position": position, "lane": lane}
        super().__init__(settings, view, _top(settings), {"position": value_slider("position", _POSITIONS, position)})
        self._show_only_parameters_of(kind)
        self._open(view)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self._settings[name]!r}" for name in ("kind", "base", "width", "context"))
        return f"RopeExplorer({shown})"

    # -- for cells --------------------------------------------------------------------------------

    @property
    def table(self) -> xr.Dataset:
        """The table and the default beside it, from `compare_rope`."""
        return self._shown().compared

    def export(self, path: str | Path) -> Path:
        """Write the lanes as `.csv`, one line for each table and lane, or all that is shown as `.nc`.

        Raises:
            InputError: another suffix.
        """
        return export_table(self.table, path, ("theta", "wavelength", "turns", "band"), ("table", "lane"))

    def set(self, *, model: str | None = None, **changes: Any) -> None:
        """Change settings, as `Panel.set`; `model` stands for all settings of a released model."""
        super().set(**({} if model is None else settings_of(model)), **changes)

    # -- steps ------------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        chosen = {name: job.settings[name] for name in ("kind", "base", "width", "context")}
        compared = compare_rope(**chosen, **_parameters(job.settings))
        return _Result(compared, _models_with(job.settings))

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        lanes = result.compared.sizes["lane"]
        lane = None if view["lane"] is None else int(view["lane"])
        if lane is not None and not 0 <= lane < lanes:
            if view["lane"] != self._view["lane"]:
                raise InputError(f"The lane is {lane}", f"0 to {lanes - 1}", "lane=0")
            lane = lanes - 1  # the head became narrower
        return {"position": round(view["position"]), "lane": lane}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return explorer_chart(result.compared, _pointing(result, view))

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        compared = result.compared
        shown = compared.isel(table=-1)
        bands, turns = shown.band.to_numpy(), shown.turns.to_numpy()
        lanes = {band: int((bands == band).sum()) for band in ("fast", "middle", "slow")}
        slowest, plain = float(shown.slowest_wavelength), float(compared.slowest_wavelength[0])
        negative = [None if np.isnan(first) else int(first) for first in compared.first_negative.to_numpy()]
        facts = {
            **{name: compared.attrs[name] for name in ("kind", "base", "width", "context")},
            "models": list(result.models),
            **view,
            "lanes": lanes,
            "still": int(np.isinf(shown.wavelength).sum()),
            "slowest_wavelength": _figures(slowest),
            "slowest_wavelength_default": _figures(plain),
            "slowest_turns": _figures(float(turns[turns > 0].min(initial=np.inf))),
            "first_negative": negative[-1],
            "first_negative_default": negative[0],
            "mean_cosine": _figures(float(_pointing(result, view).mean_real)),
            "attention_factor": _figures(float(shown.attention_factor)),
            "stand_ins": compared.attrs["stand_ins"],
        }
        return {**facts, "says": _sentence(facts)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        offsets, last = (self._result.compared[name].to_numpy() for name in ("offset", "last"))
        run = int(np.searchsorted(last, view["position"]))
        offset = {"offset": int(offsets[run])} if run < len(offsets) else {}
        return offset | ({} if view["lane"] is None else {"lane": view["lane"]})

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A click on another run of offsets is a position; the run that is marked holds the position already."""
        marked = self._selection(self._view).get("offset")
        position = {"position": int(selected["offset"])} if selected.get("offset", marked) != marked else {}
        return position | ({"lane": int(selected["lane"])} if "lane" in selected else {})

    def _lock(self) -> ModelLock | None:
        return None

    # -- controls ---------------------------------------------------------------------------------

    def _on_control(self, name: str) -> Callable[[Any], None]:
        def changed(change: Any) -> None:
            if self._is_muted:
                return
            if name == "model":
                self.post(**({"model": None} if change["new"] == _OWN else settings_of(change["new"])))
            elif name == "kind":
                self.post(kind=change["new"], parameters=_usual(change["new"]))
            else:
                self.post(**{name: change["new"]})

        return changed

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        widths = sorted({*_WIDTHS, settings["width"]})
        if widths != list(self._top["width"].options):
            self._top["width"].options = widths
        for name, control in self._top.items():
            if isinstance(control, widgets.SelectionSlider):
                offer(control, settings[name])
        super()._mirror({**settings, "model": _shown_model(settings)})
        self._show_only_parameters_of(settings["kind"])

    def _show_view(self, view: Mapping[str, Any]) -> None:
        offer(self._controls["position"], view["position"])

    def _show_only_parameters_of(self, kind: str) -> None:
        for name in _SLIDING:
            self._top[name].layout.display = "" if name in _names(kind) else "none"


def settings_of(model: str) -> dict[str, Any]:
    """Settings of the explorer that give a released model's table.

    Raises:
        InputError: a model that is not in `rope_practice`.
    """
    known = _released()
    if model not in known:
        raise InputError(f"The model is {model!r}", f"one of {', '.join(known)}", f"model={next(iter(known))!r}")
    return {"model": model, **known[model]}


@cache
def _released() -> dict[str, dict[str, Any]]:
    found = {}
    for model, context in rope_practice().context.to_series().items():
        table = table_of_model(str(model))
        parameters = dict(table.parameters)
        own = {name: parameters.pop(name) for name in _SLIDING if name in parameters}
        given = {"kind": table.kind, "base": table.base, "width": table.width, "context": int(context)}
        found[str(model)] = {**given, **own, "parameters": parameters}
    return found


def _models_with(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The released models that have these settings; the chosen one first, if it still has them."""
    found = [name for name, wanted in _released().items() if all(settings[key] == value for key, value in wanted.items())]
    return tuple(sorted(found, key=lambda name: name != settings["model"]))


def _shown_model(settings: Mapping[str, Any]) -> str:
    return next(iter(_models_with(settings)), _OWN)


def _names(kind: str) -> tuple[str, ...]:
    """Parameters of a kind that the panel gives; a scaled proportional table is left to cells."""
    if kind not in FORMULAS:
        raise InputError(f"The kind of rotary table is {kind!r}", f"one of {', '.join(KINDS)}", "kind='default'")
    _, needed, optional = FORMULAS[kind]
    return tuple(name for name in (*needed, *optional) if (kind, name) != ("proportional", "factor"))


def _parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the kind: of those with a control the ones that it has, and all that a cell gave."""
    known = _names(settings["kind"])
    running = {"length": settings["context"]} if "length" in known else {}
    return {**running, **{name: settings[name] for name in _SLIDING if name in known}, **settings["parameters"]}


def _usual(kind: str) -> dict[str, Any]:
    """What a kind needs and no control gives: Llama 3.1's own limits."""
    return {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}


def _pointing(result: _Result, view: Mapping[str, Any]) -> xr.Dataset:
    return phases(result.compared.theta.isel(table=-1).to_numpy(), view["position"])


def _whole(values: Sequence[float]) -> list[int]:
    return sorted({round(value) for value in values})


_POSITIONS = [0, *_whole(geometric_steps(2.0, 0, 20, 20))]
_LENGTHS = _whole(geometric_steps(2.0, 8, 20, 4))
_SHARES = [n / 50 for n in range(1, 51)]


def _top(settings: Mapping[str, Any]) -> dict[str, Any]:
    narrow = widgets.Layout(width="auto")
    models = [(_OWN, _OWN), *((name, name) for name in _released())]
    return {
        "model": widgets.Dropdown(options=models, value=_shown_model(settings), layout=narrow, tooltip="a model's settings"),
        "kind": widgets.Dropdown(options=KINDS, value=settings["kind"], layout=narrow, tooltip="kind of frequency table"),
        "width": widgets.Dropdown(
            options=sorted({*_WIDTHS, settings["width"]}), value=settings["width"], description="dimensions", layout=narrow,
            style={"description_width": "auto"}, tooltip="rotary dimensions of a head",
        ),
        "base": value_slider("base", geometric_steps(10.0, 2, 10, 50), settings["base"], "24em"),
        "context": value_slider("context", _LENGTHS, settings["context"]),
        "factor": value_slider("factor", geometric_steps(2.0, 0, 7, 10), settings["factor"]),
        ORIGINAL_LENGTH: value_slider("L₀", _LENGTHS, settings[ORIGINAL_LENGTH]),
        "partial_rotary_factor": value_slider("share that turns", _SHARES, settings["partial_rotary_factor"]),
    }  # fmt: skip


def _figures(value: float) -> float | None:
    return float(f"{value:.4g}") if np.isfinite(value) else None


def _sentence(facts: Mapping[str, Any]) -> str:
    lanes, slowest, plain = facts["lanes"], facts["slowest_wavelength"], facts["slowest_wavelength_default"]
    scaled = facts["kind"] != "default"
    still = f"; {facts['still']} stand still" if facts["still"] else ""
    text = (
        f"{_WORDS[facts['kind']]} at base {facts['base']:,.0f}{_whose(facts['models'])}: of {sum(lanes.values())} lanes "
        f"{lanes['fast']} fast (a turn within 32 tokens), {lanes['middle']} middle, {lanes['slow']} slow (no full turn in "
        f"{facts['context']:,} tokens{still}). {_turn(slowest, plain)} The lanes' sum {_below(facts['first_negative'])}"
    )
    if scaled and facts["first_negative"] != facts["first_negative_default"]:
        text += f"; unscaled it {_below(facts['first_negative_default'])}"
    if facts["stand_ins"]:
        text += f". Nobody gave {facts['stand_ins']}, so stand-ins are shown"
    return f"{text}."


def _whose(models: Sequence[str]) -> str:
    if not models:
        return ""
    others = f" and {len(models) - 1} more" if len(models) > 1 else ""
    return f", as in {models[0]}{others}"


def _turn(slowest: float | None, plain: float | None) -> str:
    if slowest is None:
        return "No lane turns."
    beside = "" if plain is None or plain == slowest else f", unscaled in {tokens(plain)}"
    return f"The slowest turns once in {tokens(slowest)} tokens{beside}."


def _below(first: int | None) -> str:
    return "stays above zero within the context" if first is None else f"first falls below zero at offset {first:,}"
