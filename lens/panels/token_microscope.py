"""The token microscope: which tokens a block treats as one matrix would, and which tell what stood before them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.collect import collect_moments
from lens.corpora import Corpus, corpus
from lens.figures.token_microscope import MEASURES, class_means, first_compared, microscope_chart
from lens.models.model import Model
from lens.moments import Moments
from lens.panels.fitted import TOKENS
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.probes.contextualisation import contextualisation, shipped_prefix_decoder
from lens.probes.prefix_decoder import PrefixDecoder
from lens.probes.shortcuts import Shortcuts, fit_shortcuts
from lens.probes.token_nonlinearity import token_nonlinearity

EXAMPLE = (
    "The keeper of the lighthouse climbed the stairs, lit the lamp and wrote in his book that the sea was calm. In the morning a "
    "ship came from the north with letters, flour and oil."
)
SHORTEST, LONGEST = 3, 200  # tokens
_CONTEXT = ("recovered", "prefix_loss")
_LABELS = {
    "error of one matrix": "nonlinearity",
    "error over the token’s size": "relative",
    "what it tells of its prefix": "recovered",
    "loss of its prefix": "prefix_loss",
}


@dataclass(frozen=True)
class _Fitted:
    """What is fitted once for a model: maps, what the states' size is compared with, and a decoder if there is one."""

    shortcuts: Shortcuts
    spread: Moments
    decoder: PrefixDecoder | None


@dataclass(frozen=True)
class _Result:
    model: Model
    tokens: xr.Dataset


class TokenMicroscope(TextPanel):
    """Every token of a text at every depth: what one matrix misses of a block, and what can be read of the tokens before.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: 3 to 200 tokens.
        corpus: a `lens.Corpus`, or anything `lens.corpus` takes: what the maps are fitted on, the first time.
        tokens: how many to fit on.
        decoder: reads prefixes; by default the shipped one, if there is one for the model.
        measure: `nonlinearity` or `relative`, see `token_nonlinearity`; `recovered` or `prefix_loss`, see `contextualisation`.
        position: of the selected token; by default the one with the largest mean.
        layer: the selected depth; by default where that token has its largest value. Block b leads from layer b to b+1.

    `set(position=…)` does what a click does; `summary()` gives what is shown as plain data, `tokens` the Dataset.
    """

    COMPUTED = ("model", "text")
    VIEW = ("measure", "position", "layer")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        corpus: Corpus | str = "wikipedia",
        tokens: int = TOKENS,
        decoder: PrefixDecoder | None = None,
        measure: str = "nonlinearity",
        position: int | None = None,
        layer: int | None = None,
    ):
        self._corpus, self._tokens, self._decoder = corpus, tokens, decoder
        self._fitted: dict[str, _Fitted] = {}
        menu = widgets.Dropdown(options=list(_LABELS.items()), layout=widgets.Layout(width="auto"), tooltip="what is shown")
        view = {"measure": measure, "position": position, "layer": layer}
        super().__init__(model, text, view, {"measure": menu})
        self._open(view)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def tokens(self) -> xr.Dataset:
        """Everything that can be shown, from `token_nonlinearity` and `contextualisation`."""
        return self._shown().tokens

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        model = self._model(job)
        ids = self._token_ids(job, model, SHORTEST, LONGEST, "a sentence or two")
        fitted = self._fit(job, model)
        with job.holding(model.lock, "running for the microscope"):
            run = model.run(ids, logits=False, check=job.check_blocks(model.n_layers, "running"))
        found = token_nonlinearity(run, fitted.shortcuts, fitted.spread)
        if fitted.decoder is None:
            return _Result(model, found)
        read = contextualisation(run, fitted.decoder)
        return _Result(model, xr.merge([found, read], combine_attrs="override", compat="override", join="exact"))

    def _fit(self, job: Job, model: Model) -> _Fitted:
        """Maps and decoder of a model, kept as long as the panel."""
        key = model.fingerprint
        if key not in self._fitted:
            text = self._corpus if isinstance(self._corpus, Corpus) else corpus(self._corpus, progress=job.progress)
            moments = collect_moments(
                model, text, tokens=self._tokens, pairs="overview", progress=job.progress, check=job.token.check,
                window=min(256, model.context or 256),
            )  # fmt: skip
            job.say("solving")
            train = moments.train
            pairs = [(i, j) for i, j in train.pairs if j == i + 1]
            shortcuts = fit_shortcuts(train, validation=moments.validation, pairs=pairs)
            self._fitted[key] = _Fitted(shortcuts, train, self._decoder or shipped_prefix_decoder(model))
        return self._fitted[key]

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        measure, tokens = view["measure"], result.tokens
        if measure not in MEASURES:
            raise InputError(f"The measure is {measure!r}", f"one of {', '.join(MEASURES)}", "measure='nonlinearity'")
        if measure not in tokens:
            found = f"No prefix decoder is shipped for {result.model.name}"
            raise InputError(found, "one of your own", "TokenMicroscope(model, decoder=lens.fit_prefix_decoder(…))")
        shown = tokens[measure]
        depths = shown[shown.dims[0]].to_numpy()
        position, layer = view["position"], view["layer"]
        if position is None or (position == self._view["position"] and position not in range(shown.sizes["position"])):
            first = first_compared(tokens, measure)
            position = first + int(np.argmax(shown[:, first:].mean(shown.dims[0]).to_numpy()))
        if position not in range(shown.sizes["position"]):
            last = shown.sizes["position"] - 1
            raise InputError(f"The position is {position!r}", f"0 to {last}", f"position={last}")
        if layer is None or (layer == self._view["layer"] and layer not in range(result.model.n_layers + 1)):
            layer = int(depths[np.argmax(np.nan_to_num(shown.sel(position=position).to_numpy()))])
        if layer not in range(result.model.n_layers + 1):
            raise InputError(f"The layer is {layer!r}", f"0 to {result.model.n_layers}", "layer=0")
        return {"measure": measure, "position": int(position), "layer": int(depths[np.abs(depths - layer).argmin()])}

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return microscope_chart(result.tokens, measure=view["measure"], position=view["position"])

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        tokens, measure, position = result.tokens, view["measure"], view["position"]
        shown = tokens[measure]
        depth = str(shown.dims[0])
        means = shown.mean(depth).to_numpy()
        first = first_compared(tokens, measure)
        rank = np.argsort(means[first:]) + first
        facts = {
            "measure": measure,
            "tokens": len(means),
            "selected": {
                "position": position,
                "token": _named(tokens, position),
                "class": str(tokens.class_name[int(tokens.token_class[position])].item()),
                depth: view["layer"],
                "value": _digits(float(shown.sel({depth: view["layer"], "position": position}))),
                "mean": _digits(float(means[position])),
            },
            "largest": {**_end(tokens, means, int(rank[-1])), **_peak(shown, int(rank[-1]))},
            "smallest": _end(tokens, means, int(rank[0])),
            "first_token": _digits(float(means[0])),
            "by_class": {name: _digits(float(values.mean())) for name, values in class_means(tokens, measure).items()},
        }
        if measure in _CONTEXT:
            deepest = shown[:, first:].mean("position")
            best = int(np.argmax(deepest.to_numpy()) if measure == "recovered" else np.argmin(deepest.to_numpy()))
            facts["best"] = {"layer": int(shown.layer[best]), "mean": _digits(float(deepest[best]))}
            facts["embedding"] = _digits(float(deepest[0]))
        return {**facts, "says": _sentence(facts)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        return {"tokens": [view["position"], view["layer"]], "depth": view["layer"]}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        if self._controls["measure"].value != view["measure"]:
            self._controls["measure"].value = view["measure"]

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A click in the map chooses token and depth, one on a curve the depth."""
        here = [self._view["position"], self._view["layer"]]
        position, layer = selected.get("tokens", here)
        if [position, layer] != here:
            return {"position": int(position), "layer": int(layer)}
        return {"layer": int(selected["depth"])} if "depth" in selected else {}


def _end(tokens: xr.Dataset, means: np.ndarray, position: int) -> dict[str, Any]:
    return {"token": _named(tokens, position), "mean": _digits(float(means[position]))}


def _peak(shown: xr.DataArray, position: int) -> dict[str, Any]:
    """Where a token has its largest value."""
    course = shown.sel(position=position).to_numpy()
    at = int(np.argmax(course))
    return {"peak": _digits(float(course[at])), "peak_at": int(shown[shown.dims[0]][at])}


def _named(tokens: xr.Dataset, position: int) -> str:
    return visible(str(tokens.input_token[position].item()), 14)


def _digits(value: float) -> float | None:
    return float(f"{value:.3g}") if np.isfinite(value) else None


def _sentence(facts: Mapping[str, Any]) -> str:
    return _of_context(facts) if facts["measure"] in _CONTEXT else _of_linearity(facts)


def _of_context(facts: Mapping[str, Any]) -> str:
    recovered = facts["measure"] == "recovered"
    most, least = (facts["largest"], facts["smallest"]) if recovered else (facts["smallest"], facts["largest"])
    what, best = "read" if recovered else "lost", facts["best"]
    return (
        f"“{most['token']}” tells most of what stood before it, “{least['token']}” least: {_number(most['mean'])} and "
        f"{_number(least['mean'])} nats {what} of each token before, mean over layers. The text as a whole is read best at layer "
        f"{best['layer']}: {_number(best['mean'])} nats {what}, against {_number(facts['embedding'])} from the tokens alone."
    )


def _of_linearity(facts: Mapping[str, Any]) -> str:
    largest, smallest, first = facts["largest"], facts["smallest"], facts["first_token"]
    size = "" if facts["measure"] == "nonlinearity" else " of their own size"
    text = (
        f"One matrix in each block’s place errs most on “{largest['token']}” and least on “{smallest['token']}”: by "
        f"{_number(largest['mean'])} and {_number(smallest['mean'])}{size}, mean over blocks"
    )
    text += f"; at block {largest['peak_at']} it is {_number(largest['peak'])} on “{largest['token']}”."
    if first > 3 * largest["mean"]:
        return f"{text} The first token is beyond the scale ({_number(first)}): no map is fitted on it."
    order = sorted(facts["by_class"].items(), key=lambda one: one[1])
    if len(order) < 2:
        return text
    (least, low), (most, high) = order[0], order[-1]
    return f"{text} By class it errs most on {_plural(most)} ({_number(high)}) and least on {_plural(least)} ({_number(low)})."


def _plural(name: str) -> str:
    return name if name == "punctuation" else f"{name}s"


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "−") if abs(value) < 10 else f"{value:.0f}".replace("-", "−")
