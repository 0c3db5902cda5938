"""The relation panel: what a linear map says instead of the model, and an answer changed through its inverse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.relations import relations_chart
from lens.models.model import Model
from lens.panels.model_panel import ModelPanel
from lens.panels.panel import Job
from lens.probes.relation_claims import relation_shares
from lens.probes.relation_edit import edited_words
from lens.probes.relation_layers import study_relation
from lens.probes.relation_map import RelationMap
from lens.probes.relation_record import shipped_relation
from lens.probes.relations import Answer, answer, named_relation, relation_task, relations

FIRST = "country: capital"
_PRODUCTS = 32  # of a fit while the reader waits


@dataclass(frozen=True, eq=False)
class _Study:
    """A relation on one model: its scores and the map that edits."""

    model: Model
    found: xr.Dataset
    shares: xr.Dataset
    editing: RelationMap
    shipped: bool

    @property
    def subjects(self) -> list[str]:
        return self.found.subject_text.to_numpy().tolist()


@dataclass(frozen=True, eq=False)
class _Result:
    """One edit of one relation."""

    study: _Study
    relation: str
    subject: str
    target: str
    prompt: str
    words: xr.Dataset


class Relations(ModelPanel):
    """A relation's linear map at every layer beside the model, and one subject's answer changed into another's.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes. Of SmolLM2-135M-Instruct the fits are shipped; of other models
            three layers are fitted when the panel opens.
        relation: one of `lens.probes.relations.relations()`.
        subject: one that the model answers rightly; by default the first.
        target: another one, whose answer the edited model should give.
        layer: whose map's words are shown; by default the one that the examples chose.

    `set(layer=…)` does what a click does; `summary()` gives what is shown as plain data, `study` the Dataset.
    """

    COMPUTED = ("model", "relation", "subject", "target")
    VIEW = ("layer",)

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        relation: str = FIRST,
        *,
        subject: str | None = None,
        target: str | None = None,
        layer: int | None = None,
    ):
        self._studies: dict[tuple[str, str], _Study] = {}
        self._answers: dict[tuple[str, str, str], Answer] = {}
        narrow, style = widgets.Layout(width="auto"), {"description_width": "auto"}
        top = {
            "relation": widgets.Dropdown(options=list(relations()), layout=narrow, tooltip="relation"),
            "subject": widgets.Dropdown(options=[None], description="of", layout=narrow, style=style),
            "target": widgets.Dropdown(options=[None], description="edited towards", layout=narrow, style=style),
        }
        controls = {
            "layer": widgets.SelectionSlider(options=[("0", 0)], description="layer of the map", style=style,
                                             layout=widgets.Layout(width="28em")),
        }  # fmt: skip
        settings = {"relation": relation, "subject": subject, "target": target}
        super().__init__(model, settings, {"layer": layer}, top, controls)
        self._open({"layer": layer})

    def __repr__(self) -> str:
        return f"Relations(model={self._chosen_name!r}, relation={self._settings['relation']!r})"

    # -- for cells --------------------------------------------------------------------------------

    @property
    def study(self) -> xr.Dataset:
        """What was measured of the relation at all layers, from `lens.relation_layers`."""
        return self._shown().study.found

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        settings = job.settings
        relation = named_relation(settings["relation"])
        model = self._model(job)
        with job.holding(model.lock, "asked for a relation"):
            study = self._study(job, model, relation.name)
            subject, target = self._pair(study, relation.name, settings)
            one, other = (self._answer(model, study, relation.name, name) for name in (subject, target))
            words = edited_words(model, study.editing, study.found, one, other, check=job.token.check)
        template = relation.templates[0]
        return _Result(study, relation.name, subject, target, template.format(subject), words)

    def _study(self, job: Job, model: Model, name: str) -> _Study:
        key = (model.fingerprint, name)
        if key not in self._studies:
            shipped = shipped_relation(model, name)
            if shipped is None:
                prompts = len(relations()[name].pairs)
                task = relation_task(model, name, check=job.check_blocks(2 * prompts, "asking for pairs"))
                n = model.n_layers
                layers = sorted({max(1, n // 4), max(1, n // 2), max(1, 3 * n // 4)})
                check = job.check_blocks(40 * len(task.examples) * len(layers), "fitting maps")
                found = study_relation(model, task, layers=layers, edit_layers=layers, products=_PRODUCTS, check=check)
            else:
                found = shipped
            self._studies[key] = _Study(model, found[0], relation_shares(found[0]), found[1], shipped is not None)
        return self._studies[key]

    def _pair(self, study: _Study, relation: str, settings: Mapping[str, Any]) -> tuple[str, str]:
        """Subject and target, with those of another relation or model forgotten."""
        known, objects = study.subjects, study.found.object_text.to_numpy().tolist()
        replaced = self._result is None or self._result.study is not study
        subject, target = settings["subject"], settings["target"]
        for name, value in (("subject", subject), ("target", target)):
            if value is not None and value not in known and not (replaced and value == self._shown_pair(name)):
                raise InputError(f"The {name} is {value!r}", f"one of {', '.join(known)}", f"{name}={known[0]!r}")
        subject = subject if subject in known else known[0]
        place = known.index(subject)
        if target not in known:
            turned = [*range(place + 1, len(known)), *range(place)]
            target = known[next((i for i in turned if objects[i] != objects[place]), place)]
        return subject, target

    def _shown_pair(self, name: str) -> str | None:
        return None if self._result is None else getattr(self._result, name)

    def _answer(self, model: Model, study: _Study, relation: str, subject: str) -> Answer:
        key = (model.fingerprint, relation, subject)
        if key not in self._answers:
            pairs = dict(relations()[relation].pairs)
            shown = [(name, pairs[name]) for name in study.found.attrs["shown_subjects"].split(", ")]
            self._answers[key] = answer(model, relations()[relation], (subject, pairs[subject]), shown)
        return self._answers[key]

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        known, layer = result.study.found.layer.to_numpy().tolist(), view["layer"]
        replaced = self._result is None or self._result.study is not result.study
        if layer is None or (layer not in known and replaced and layer == self._view["layer"]):
            layer = int(result.study.found.chosen_layer)
        if layer not in known:
            raise InputError(f"The layer is {layer!r}", f"one of {known}", f"layer={known[len(known) // 2]}")
        return {"layer": int(layer)}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return relations_chart(result.study.shares, result.words, layer=view["layer"])

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        found, shares, words = result.study.found, result.study.shares, result.words
        here = found.sel(layer=view["layer"])
        number = result.study.subjects.index(result.subject)
        agreement = shares.agreement.sel(layer=view["layer"])
        edit = shares.sel(edit_layer=result.study.editing.layer)
        facts = {
            "relation": result.relation,
            "subject": result.subject,
            "target": result.target,
            **view,
            "known": int(found.attrs["known"]),
            "asked": int(found.attrs["asked"]),
            "chosen_layer": int(found.chosen_layer),
            "beta": round(float(here.beta), 2),
            "faithfulness": round(float(agreement.sel(predictor="map")), 3),
            "constant": round(float(agreement.sel(predictor="constant")), 3),
            "map_says": visible(str(here.word[number].item())),
            "model_says": visible(str(words.said.item())),
            "edited_says": visible(str(words.says.item())),
            "target_says": visible(str(found.model_word[result.study.subjects.index(result.target)].item())),
            "edit_layer": result.study.editing.layer,
            "edit_rank": result.study.editing.rank,
            "edit_size": round(float(words.edit_size), 2),
            "causality": round(float(edit.reached.sel(edit_method="inverse")), 3),
            "record": _label(found) if result.study.shipped else "fitted here",
        }
        return {**facts, "says": _sentence(facts, result.prompt)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {"layers": view["layer"]}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        return {"layer": int(selected["layers"])} if "layers" in selected else {}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        slider = self._controls["layer"]
        options = [(str(layer), layer) for layer in self._result.study.found.layer.to_numpy().tolist()]
        if tuple(slider.options) != tuple(options):
            slider.options = options
        super()._show_view(view)

    def _show(self, result: _Result, seconds: float) -> None:
        super()._show(result, seconds)
        self._chip_at_rest = f"{_label(result.study.found)} · {seconds:.1f} s" if result.study.shipped else f"{seconds:.1f} s"

    def _mirror(self, settings: Mapping[str, Any]) -> None:
        if self._result is not None:
            for name in ("subject", "target"):
                if list(self._top[name].options) != self._result.study.subjects:
                    self._top[name].options = self._result.study.subjects
            settings = {**settings, "subject": self._result.subject, "target": self._result.target}
        super()._mirror(settings)


def _label(found: xr.Dataset) -> str:
    return f"maps: shipped record, {found.attrs['device']}, {found.attrs['date']}"


def _sentence(facts: Mapping[str, Any], prompt: str) -> str:
    share, constant, causal = (f"{100 * facts[name]:.0f} %" for name in ("faithfulness", "constant", "causality"))
    reached = "which is" if facts["edited_says"] == facts["target_says"] else "not"
    return (
        f"The map of layer {facts['layer']} says the model's word for {share} of {facts['known']} subjects, one answer for all "
        f"for {constant}; here “{facts['map_says']}” against the model's “{facts['model_says']}”. "
        f"With “{prompt}” edited towards {facts['target']} at layer {facts['edit_layer']}, the model says "
        f"“{facts['edited_says']}”, {reached} the answer for {facts['target']} ({causal} of edits reach theirs)."
    )
