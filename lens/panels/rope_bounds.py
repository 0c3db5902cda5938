"""The panel of theories about the rotary base: what each asks for, and which released models do without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import xarray as xr

from lens.base.errors import InputError
from lens.figures.export import export_table
from lens.figures.rope_bounds import WEDGE, bounds_chart, hypotheses, hypotheses_html, in_words
from lens.models.locks import ModelLock
from lens.models.model import Model
from lens.panels.fitted import ChartPanel
from lens.panels.panel import Job
from lens.panels.toggles import Toggles
from lens.panels.value_slider import geometric_steps, offer, value_slider
from lens.probes.rope_bounds import DTYPES, LANES, THEORIES, rope_bounds
from lens.probes.rope_minimum import WIDTHS
from lens.probes.rope_practice import RotarySettings, rope_practice, rotary_settings
from lens.probes.rope_problems import rope_problems

_CONTEXTS = tuple(2**k for k in range(8, 21))
_PLACE = ("context", "layers", "width", "base")  # what a model stands for; moving one of them leaves the model
_OWN = "a setting of my own"  # in the list of models, which would show None as nothing
_DRAWN = {name: theory.name for name, theory in THEORIES.items() if name != "similar_beats_random_safe"}


@dataclass(frozen=True)
class _Result:
    """Everything that a setting leads to."""

    model: str | None
    setting: xr.Dataset
    lines: xr.Dataset
    practice: xr.Dataset
    problems: xr.Dataset


class RopeBounds(ChartPanel):
    """How large must the base of rotary positions be? Every theory's answer, with released models among the lines.

    Args:
        model: a released model of `lens.probes.rope_practice` by its name, or a `lens.Model`, which becomes a dot too; its
            context, layers, rotary width and base come first, a scaled table at its effective base. None for a setting of
            one's own.
        context, layers, width, base: that setting; `width` is one of `lens.probes.rope_minimum.WIDTHS`.
        epsilon, dtype, lane: as in `lens.probes.rope_bounds.rope_bounds`.
        theories: which to show, by the names of their variables there.

    `set(model=…)` or a click on a dot takes a model's setting, `set(context=…, base=…)` leaves it. `bounds`, `practice` and
    `problems` are the Datasets behind the picture, `export(path)` writes the models.
    """

    COMPUTED = ("model", *_PLACE, "epsilon", "dtype", "lane")
    VIEW = ("theories",)

    def __init__(
        self,
        model: Model | str | None = "Llama-2 7B",
        *,
        context: int = 4096,
        layers: int = 32,
        width: int = 128,
        base: float = 10_000.0,
        epsilon: float = 0.95,
        dtype: str = "float32",
        lane: str = "stated",
        theories: Sequence[str] = tuple(_DRAWN),
    ):
        own = list(rotary_settings(model)) if isinstance(model, Model) else []
        name = own[-1].facts["model"] if isinstance(model, Model) else model
        self._own = tuple(own)
        place = {"context": context, "layers": layers, "width": width, "base": float(base)}
        chosen = {"epsilon": epsilon, "dtype": dtype, "lane": lane}
        self._table = widgets.HTML()
        view = {"theories": tuple(theories)}
        controls = {"theories": Toggles({label: name for name, label in _DRAWN.items()}, theories, _tooltips())}
        start = {"model": name, **place, **self._place_of(name, lane), **chosen}
        super().__init__(start, view, _top(self._names()), controls)
        self.children = (*self.children, self._table)
        self._open(view)

    def __repr__(self) -> str:
        return (
            f"RopeBounds(model={self._settings['model']!r}, context={self._settings['context']}, base={self._settings['base']:g})"
        )

    # -- for cells --------------------------------------------------------------------------------

    @property
    def bounds(self) -> xr.Dataset:
        """Of the one setting, from `rope_bounds`."""
        return self._shown().setting

    @property
    def practice(self) -> xr.Dataset:
        """The released models, from `rope_practice`."""
        return self._shown().practice

    @property
    def problems(self) -> xr.Dataset:
        """What speaks against each theory, from `rope_problems`."""
        return self._shown().problems

    def export(self, path: str | Path) -> Path:
        """Write the released models as `.csv`, one line for each model and theory, or as `.nc`, all of `practice`.

        Raises:
            InputError: another suffix.
        """
        return export_table(self.practice, path, [str(name) for name in self.practice.data_vars], ("model", "theory"))

    # -- steps ------------------------------------------------------------------------------------

    def _new_job(self, changes: Mapping[str, Any]) -> Job:
        """A model stands for its setting; another setting is no longer that model's."""
        changed: dict[str, Any] = {name: None if value == _OWN else value for name, value in changes.items()}
        model = changed.get("model", self._settings["model"])
        if changed.get("model") or ("lane" in changed and model):
            changed = {**self._place_of(model, changed.get("lane", self._settings["lane"])), **changed}
        elif "model" not in changed and any(name in changed for name in _PLACE):
            changed["model"] = None
        return super()._new_job(changed)

    def _compute(self, job: Job) -> _Result:
        settings = job.settings
        self._require(settings)
        chosen = {name: settings[name] for name in ("epsilon", "dtype", "lane")}
        practice = _practice(self._own, **chosen)
        setting = rope_bounds(*(settings[name] for name in _PLACE), **chosen)
        lines = rope_bounds(_CONTEXTS, settings["layers"], settings["width"], **chosen)
        return _Result(settings["model"], setting, lines, practice, rope_problems(setting, practice))

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(view["theories"]) - set(THEORIES))
        if unknown:
            raise InputError(f"No theory is named {unknown[0]!r}", f"some of {', '.join(THEORIES)}", "theories=('depth',)")
        return {"theories": tuple(name for name in THEORIES if name in view["theories"])}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        drawn = [name for name in view["theories"] if name in _DRAWN]
        return bounds_chart(result.lines, result.practice, drawn, result.setting, result.model)

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        setting, model = result.setting, result.model
        rows = _rows(result, view)
        lanes = setting if model is None else result.practice.sel(model=model)
        negative = float(lanes.first_negative)
        return {
            "model": model,
            **{name: setting.attrs[name] for name in (*_PLACE, "epsilon", "dtype", "lane")},
            **view,
            "required": {row["name"]: float(f"{row['required']:.3g}") for row in rows},
            "met": {row["name"]: row["met"] for row in rows},
            "lanes": int(lanes.lanes),
            "slow_lanes": int(lanes.slow_lanes),
            "constant_lanes": int(lanes.constant_lanes),
            "first_negative": None if negative != negative else int(negative),
            "says": _sentence(result, rows),
        }

    def _prepare(self, job: Job, result: Any) -> Mapping[str, Any]:
        prepared = super()._prepare(job, result)
        shown = self._result if result is None else result
        return {**prepared, "table": hypotheses_html(_rows(shown, prepared["view"]))} if "spec" in prepared else prepared

    def _apply(self, view: Mapping[str, Any]) -> None:
        super()._apply(view)
        if "table" in view:
            self._table.value = view["table"]

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {} if self._result.model is None else {WEDGE: self._result.model}

    def _on_select(self, change: Any) -> None:
        chosen = change["new"].get(WEDGE)
        if not self._is_muted and chosen and chosen != self._settings["model"]:
            self.post(model=chosen)

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        for name in ("context", "base"):
            offer(self._top[name], settings[name])
        super()._mirror({**settings, "model": settings["model"] or _OWN})

    def _lock(self) -> ModelLock | None:
        return None

    # -- models -----------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return _practice(self._own, 0.95, "float32", LANES[0]).model.to_numpy().tolist()

    def _place_of(self, model: str | None, lane: str) -> dict[str, Any]:
        """The setting of a model; nothing for none and for a name that there is not."""
        practice = _practice(self._own, 0.95, "float32", lane if lane in LANES else LANES[0])
        if model is None or model not in self._names():
            return {}
        found = practice.sel(model=model)
        whole = {name: int(found[name]) for name in ("context", "layers", "width")}
        return {**whole, "base": float(found.effective_base)}

    def _require(self, settings: Mapping[str, Any]) -> None:
        if settings["width"] not in WIDTHS:
            what = f"The rotary width is {settings['width']}"
            raise InputError(what, f"one of {', '.join(map(str, WIDTHS))}", "lens.rope_bounds(width=…), which takes longer")
        names = self._names()
        if settings["model"] is not None and settings["model"] not in names:
            raise InputError(f"The model is {settings['model']!r}", f"one of {'; '.join(names)}, or None", f"model={names[0]!r}")


@lru_cache(maxsize=64)
def _practice(own: tuple[RotarySettings, ...], epsilon: float, dtype: str, lane: str) -> xr.Dataset:
    return rope_practice(epsilon, dtype, lane, own)


def _rows(result: _Result, view: Mapping[str, Any]) -> list[dict[str, Any]]:
    return hypotheses(result.setting, result.practice, result.problems, view["theories"], result.model)


def _sentence(result: _Result, rows: Sequence[Mapping[str, Any]]) -> str:
    facts = result.setting.attrs
    place = f"{facts['context']:,} tokens, {facts['layers']} layers, base {in_words(facts['base'])}"
    if result.model is None:
        start = f"At {place}"
    else:
        offered = "offered" if bool(result.practice.supported.sel(model=result.model)) else "not offered"
        start = f"{result.model} ({place}; {offered} for that context)"
    refused = [f"{row['name']} asks for {row['bound']} {in_words(row['required'])}" for row in rows if not row["met"]]
    if not rows:
        return f"{start}: no hypothesis is shown."
    met = len(rows) - len(refused)
    told = f"; {', '.join(refused)}" if refused else ""
    return f"{start}: {met} of {len(rows)} hypotheses are met{told}. None alone tells what works from what does not."


def _tooltips() -> dict[str, str]:
    return {theory.name: f"{theory.title}. Assumes: {theory.assumptions}." for theory in THEORIES.values()}


def _top(names: Sequence[str]) -> dict[str, Any]:
    """The controls of the setting."""
    style, wide, narrow = {"description_width": "auto"}, widgets.Layout(width="17em"), widgets.Layout(width="auto")
    wider = widgets.Layout(width="21em")
    return {
        "model": widgets.Dropdown(options=[_OWN, *names], layout=narrow),
        "context": value_slider("context", _CONTEXTS, 4096, "17em"),
        "base": value_slider("base", geometric_steps(10.0, 2, 10, 50), 10_000.0, "24em"),
        "layers": widgets.IntSlider(32, 1, 126, description="layers", style=style, layout=wide),
        "width": widgets.SelectionSlider(options=WIDTHS, description="rotary dimensions", style=style, layout=wider),
        "epsilon": widgets.FloatSlider(
            0.95, min=0.5, max=0.999, step=0.001, description="ε", readout_format=".3f", style=style, layout=wide
        ),
        "lane": widgets.ToggleButtons(
            options=[("slowest lane as stated", "stated"), ("exact", "exact")], style={"button_width": "auto"},
            tooltips=["it turns by 1/base a token", "it turns by base^(−(1 − 2/width)) a token"],
        ),
        "dtype": widgets.Dropdown(options=DTYPES, layout=narrow, tooltip="in which angles are held"),
    }  # fmt: skip
