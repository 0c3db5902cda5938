"""The frozen-map panel: which tokens of a prompt make the next one, as a sum that is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ipywidgets as widgets
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.frozen_map import BESIDE, PICTURES, frozen_chart, token_labels, vector_labels
from lens.models.frozen import FrozenModel, freeze
from lens.models.model import Model
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.probes.frozen_map import frozen_contributions
from lens.probes.frozen_spectrum import frozen_map_spectrum
from lens.probes.token_ablations import token_ablations

EXAMPLE = "The capital of France is"
SHORTEST, LONGEST = 2, 24  # tokens
VECTORS = 6
_PICTURES = {
    "layers": "layers",
    "blocks": "blocks",
    "singular vectors": "vectors",
    "where they read": "reading",
    "singular values": "values",
}


@dataclass(frozen=True)
class _Result:
    frozen: FrozenModel
    contributions: xr.Dataset
    spectrum: xr.Dataset
    ablations: xr.Dataset


class FrozenMap(TextPanel):
    """What each token of a prompt gives to a logit, with attention weights, norm scales and gates as the prompt has them.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: 2 to 24 tokens.
        target: the token whose logit is taken apart, as text; empty for the one that the model puts first.
        rival: a token whose logit is taken from it; empty for none.
        centred: without a rival, whether the mean logit over the vocabulary is taken from it, which no probability sees.
        picture: `layers`, `blocks`, `vectors`, `reading` or `values`, see `frozen_chart`.
        beside: what stands beside each contribution: what the logit really loses without the token (`removed`), with an `average`
            embedding in its place, the plain `gradient` times the embedding, or `nothing`.

    `summary()` gives what is shown as plain data; `contributions`, `spectrum` and `ablations` are the Datasets.
    """

    COMPUTED = ("model", "text", "target", "rival", "centred")
    VIEW = ("picture", "beside")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = EXAMPLE,
        *,
        target: str = "",
        rival: str = "",
        centred: bool = True,
        picture: str = "layers",
        beside: str = "removed",
    ):
        narrow = widgets.Layout(width="auto")
        short = widgets.Layout(width="8.5em")
        buttons = {"style": {"button_width": "auto"}, "layout": narrow}
        top = {
            "target": widgets.Text(target, placeholder="next token", continuous_update=False, layout=short,
                                   tooltip="token whose logit is taken apart; words start with a space"),
            "rival": widgets.Text(rival, placeholder="no rival", continuous_update=False, layout=short,
                                  tooltip="token whose logit is taken from it"),
            "centred": widgets.Dropdown(options=[("above the mean", True), ("bare logit", False)], value=centred, layout=narrow,
                                        tooltip="whether the mean logit over the vocabulary is taken away"),
        }  # fmt: skip
        controls = {
            "picture": widgets.ToggleButtons(options=list(_PICTURES.items()), **buttons),
            "beside": widgets.Dropdown(options=[(words or "nothing beside", name) for name, words in BESIDE.items()],
                                       layout=narrow, tooltip="what stands beside the contributions"),
        }  # fmt: skip
        view = {"picture": picture, "beside": beside}
        self._known: tuple[tuple[str, ...], FrozenModel, xr.Dataset] | None = None
        super().__init__(
            model, text, view, controls, settings={"target": target, "rival": rival, "centred": centred}, top=top,
            placeholder="Type the start of a sentence and press Enter",
        )  # fmt: skip
        self._open(view)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def contributions(self) -> xr.Dataset:
        """From `frozen_contributions`."""
        return self._shown().contributions

    @property
    def spectrum(self) -> xr.Dataset:
        """From `frozen_map_spectrum`, of the whole map."""
        return self._shown().spectrum

    @property
    def ablations(self) -> xr.Dataset:
        """From `token_ablations`."""
        return self._shown().ablations

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        model = self._model(job)
        ids = self._token_ids(job, model, SHORTEST, LONGEST, "the start of a sentence")
        settings = job.settings
        with job.holding(model.lock, "freezing a prompt"):
            frozen, spectrum = self._frozen(job, model, ids)
            target, rival = _token(settings["target"]), _token(settings["rival"])
            contributions, ablations = (
                probe(model, frozen, target=target, rival=rival, centred=settings["centred"], check=job.token.check)
                for probe in (frozen_contributions, token_ablations)
            )
        return _Result(frozen, contributions, spectrum, ablations)

    def _frozen(self, job: Job, model: Model, ids: list[int]) -> tuple[FrozenModel, xr.Dataset]:
        """The map and its spectrum, which another target does not change."""
        key = (model.fingerprint, *map(str, ids))
        if self._known is None or self._known[0] != key:
            check = job.check_blocks(8 * model.n_layers, "freezing the prompt")
            frozen = freeze(model, ids, check=check)
            spectrum = frozen_map_spectrum(model, frozen, vectors=min(VECTORS, model.d_model), whole=False, check=check)
            self._known = key, frozen, spectrum
        return self._known[1:]

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        for name, known in (("picture", PICTURES), ("beside", tuple(BESIDE))):
            if view[name] not in known:
                raise InputError(f"The {name} is {view[name]!r}", f"one of {', '.join(known)}", f"{name}={known[0]!r}")
        return dict(view)

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        return frozen_chart(result.contributions, result.spectrum, result.ablations, **view)

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        found, spectrum = result.contributions, result.spectrum
        lost = result.ablations.effect.sel(ablation="removed")
        facts = {
            **view,
            "target": found.attrs["target"],
            "rival": found.attrs["rival"],
            "probability": _digits(found.attrs["probability"]),
            "logit": round(float(found.logit), 3),
            "contributions": dict(zip(token_labels(found), found.contribution.to_numpy().round(3).tolist(), strict=True)),
            "lost": dict(zip(token_labels(found), lost.to_numpy().round(3).tolist(), strict=True)),
            "bias": round(float(found.bias), 3),
            "off_by": _digits(abs(float(found.error))),
            "singular_values": [_digits(value) for value in spectrum.singular_value.to_numpy().tolist()],
            "stable_rank": _digits(float(spectrum.stable_rank)),
            "vectors": dict(zip(vector_labels(spectrum), spectrum.contribution.to_numpy().round(3).tolist(), strict=True)),
        }
        return {**facts, "says": _sentence(found, spectrum, result.ablations)}


def _token(text: Any) -> str | None:
    if not isinstance(text, str):
        raise InputError(f"The token is a {type(text).__name__}", "a text", "target=' Paris', or '' for the next token")
    return text or None


def _digits(value: float) -> float:
    return float(f"{value:.2g}")


def _rounding(error: float) -> str:
    """In words that are the same on every machine."""
    return "less than 0.001" if error < 1e-3 else f"{error:.2g}"


def _sentence(found: xr.Dataset, spectrum: xr.Dataset, ablations: xr.Dataset) -> str:
    values, labels = found.contribution.to_numpy(), token_labels(found)
    lost = ablations.effect.sel(ablation="removed").to_numpy()
    most, needed = int(values.argmax()), int(lost.argmax())
    what = f"The logit of “{visible(found.attrs['target'])}”"
    if found.attrs["rival_id"] >= 0:
        what += f" less that of “{visible(found.attrs['rival'])}”"
    elif found.attrs["centred"]:
        what += " above the vocabulary’s mean"
    added = "" if float(found.bias) == 0 else f" and {float(found.bias):.2f} of biases"
    without = "it" if most == needed else f"“{labels[needed]}”, which gives {values[needed]:+.2f}"
    best = int(abs(spectrum.contribution.to_numpy()).argmax())
    vector = vector_labels(spectrum)[best].replace(": ", " (", 1)
    return (
        f"{what}, {float(found.logit):.2f}, is the sum of {len(values)} contributions{added}, off by "
        f"{_rounding(abs(float(found.error)))}: “{labels[most]}” gives most, {values[most]:+.2f}, and the model really loses "
        f"most, {lost[needed]:.2f}, without {without}. The map has a stable rank of {float(spectrum.stable_rank):.1f}, and its "
        f"singular vector {vector}) gives “{visible(spectrum.attrs['target'])}” {float(spectrum.contribution[best]):.2f} of the "
        f"{spectrum.attrs['above_mean']:.2f} that it is above the mean."
    )
