"""The circuit panel: what heads would copy by their weights, and what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.base.text import visible
from lens.figures.head_circuits import INDUCTION, MEASURES, PICTURES, SCORES, head_circuits_chart, label_of
from lens.models.head_weights import HeadWeights, head_weights
from lens.models.model import Model
from lens.models.vocabulary_maps import VocabularyMaps, vocabulary_maps
from lens.panels.panel import Job
from lens.panels.text_panel import TextPanel
from lens.probes.copying_behaviour import copying_behaviour, rank_correlation
from lens.probes.ov_circuit import arriving_states, ov_circuit
from lens.probes.ov_directions import ov_directions
from lens.probes.qk_circuit import qk_circuit
from lens.probes.random_tokens import repeated_tokens

LONGEST = 512  # tokens
FARTHEST = 64  # tokens from key to query
VECTORS = 3
_ARRIVING = 256  # tokens; the ranks of heads are nearly those from four times as many
_DRAWS, _LENGTH = 2, 48  # of repeated random tokens


@dataclass(frozen=True, eq=False)
class _Weights:
    """What does not depend on the text; details of heads are kept once they were looked at."""

    model: Model
    fingerprint: str
    weights: tuple[HeadWeights, ...]
    vocabulary: VocabularyMaps
    spectrum: xr.Dataset
    matching: xr.DataArray
    repeated: xr.Dataset
    words: dict[tuple[int, int], xr.Dataset] = field(default_factory=dict)
    distances: dict[tuple[int, int], xr.Dataset] = field(default_factory=dict)

    def words_of(self, block: int, head: int) -> xr.Dataset:
        if (block, head) not in self.words:
            top = min(8, len(self.vocabulary.head))
            found = ov_directions(self.model, self._block(block), head, self.vocabulary, vectors=VECTORS, top_k=top)
            self.words[block, head] = found
        return self.words[block, head]

    def distances_of(self, block: int, head: int) -> xr.Dataset:
        if (block, head) not in self.distances:
            self.distances[block, head] = qk_circuit([self._block(block)], np.arange(FARTHEST + 1), heads=[head])
        return self.distances[block, head]

    def _block(self, block: int) -> HeadWeights:
        return next(one for one in self.weights if one.block == block)


@dataclass(frozen=True, eq=False)
class _Result:
    """Scores of all heads, and what they do in one text: `heads` has each of `MEASURES` over block and head."""

    known: _Weights
    text: str
    heads: xr.Dataset


class HeadCircuits(TextPanel):
    """All heads by what their weights say that they copy, what they copy in fact, and one head's circuits in detail.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        text: in which copying is measured; empty for random tokens that are repeated.
        block, head: which head; by default the one whose score errs most about what it does.
        measure: of the map of heads, one of `lens.figures.head_circuits.MEASURES`.
        circuit: `vocabulary`, `arriving` or `residual`, whose score and spectrum are shown.
        picture: `eigenvalues`, `singular values`, `words` or `distance`.
        vector: `1 +` to `3 −`, the pole of the singular vector whose words are shown.
        offset: tokens from key to query, 0 to 64, for `distance`.

    `set(block=…, head=…)` chooses as clicks do; `summary()` gives what is shown as plain data, `circuits` and `heads` the
    Datasets of all heads.
    """

    COMPUTED = ("model", "text")
    VIEW = ("block", "head", "measure", "circuit", "picture", "vector", "offset")

    def __init__(
        self,
        model: Model | str = "smollm2-135m",
        text: str = "",
        *,
        block: int | None = None,
        head: int | None = None,
        measure: str = "vocabulary",
        circuit: str = "vocabulary",
        picture: str = "eigenvalues",
        vector: str = "1 +",
        offset: int = 1,
    ):
        self._known: _Weights | None = None
        narrow, hidden = widgets.Layout(width="auto"), widgets.Layout(width="auto", display="none")
        style = {"description_width": "auto"}
        controls = {
            "measure": widgets.Dropdown(options=_options(MEASURES), description="map", style=style, layout=narrow),
            "circuit": widgets.Dropdown(options=_options(SCORES), description="circuit", style=style, layout=narrow),
            "picture": widgets.ToggleButtons(options=list(PICTURES), style={"button_width": "auto"}, layout=narrow),
            "vector": widgets.Dropdown(options=_poles(), description="singular vector", style=style, layout=hidden),
            "offset": widgets.IntSlider(
                description="distance", min=0, max=FARTHEST, style=style, layout=widgets.Layout(width="20em", display="none")
            ),
        }
        view = {"block": block, "head": head, "measure": measure, "circuit": circuit, "picture": picture, "vector": vector,
                "offset": offset}  # fmt: skip
        placeholder = "A sentence to measure in; empty for repeated random tokens"
        super().__init__(model, text, view, controls, placeholder=placeholder)
        self._open(view)

    # -- for cells --------------------------------------------------------------------------------

    @property
    def circuits(self) -> xr.Dataset:
        """Spectra and scores of all heads, from `ov_circuit`."""
        return self._shown().known.spectrum

    @property
    def heads(self) -> xr.Dataset:
        """Each measure of the map, `[block, head]`."""
        return self._shown().heads

    # -- computation ------------------------------------------------------------------------------

    def _compute(self, job: Job) -> _Result:
        model, text = self._model(job), self._text(job)
        ids = model.encode(text) if text else []
        if len(ids) > LONGEST:
            raise InputError(f"The text has {len(ids)} tokens", f"at most {LONGEST}", "a sentence, or one of its parts")
        with job.holding(model.lock, "reading heads"):
            known = self._of(job, model)
            measured = known.repeated
            if ids:
                check = job.check_blocks(2 * model.n_layers, "running")
                measured = copying_behaviour(model, [ids], known.weights, known.vocabulary, check=check).mean("document")
        scores = {name: known.spectrum.copying_score.sel(circuit=name, drop=True) for name in SCORES}
        heads = xr.Dataset(
            {
                **scores,
                "copying": measured.copying,
                "rise": measured.rise,
                "attended": measured.attended,
                "induction": known.repeated.induction,
                "matching": known.matching,
                "departure": known.spectrum.departure.sel(circuit="vocabulary", drop=True),
            }
        )
        return _Result(known, text, heads)

    def _of(self, job: Job, model: Model) -> _Weights:
        """Read once for each model, as long as nothing in it changes."""
        fingerprint = model.fingerprint
        if self._known is None or self._known.model is not model or self._known.fingerprint != fingerprint:
            weights = head_weights(model)
            steps = model.vocab_size // 4096 + 3 * len(weights)
            vocabulary = vocabulary_maps(model, check=job.check_blocks(steps, "reading the vocabulary"))
            tokens = min(_ARRIVING, model.vocab_size // 2)
            check = job.check_blocks(model.n_layers * (1 + tokens // 128), "running single tokens")
            arriving = arriving_states(model, weights, vocabulary, tokens=tokens, check=check)
            spectrum = ov_circuit(weights, vocabulary, arriving, check=job.check_blocks(len(weights), "taking spectra"))
            matching = qk_circuit(weights, [0], check=job.token.check).matching_score.isel(offset=0, drop=True)
            length = min(_LENGTH, (model.context or 2 * _LENGTH) // 2, tokens)
            drawn = [repeated_tokens(model, length, seed=draw) for draw in range(_DRAWS)]
            check = job.check_blocks(2 * _DRAWS * model.n_layers, "running repeated tokens")
            repeated = copying_behaviour(model, drawn, weights, vocabulary, check=check).mean("document", keep_attrs=True)
            self._known = _Weights(model, fingerprint, weights, vocabulary, spectrum, matching, repeated)
        return self._known

    # -- view -------------------------------------------------------------------------------------

    def _checked(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        poles = [value for _, value in _poles()]
        for name, known in (("measure", MEASURES), ("circuit", SCORES), ("picture", PICTURES), ("vector", poles)):
            if view[name] not in known:
                raise InputError(f"The {name} is {view[name]!r}", f"one of {', '.join(known)}", f"{name}={next(iter(known))!r}")
        offset = view["offset"]
        if not isinstance(offset, int) or not 0 <= offset <= FARTHEST:
            raise InputError(f"The distance is {offset!r}", f"0 to {FARTHEST} tokens", "offset=1")
        block, head = self._head(result, view)
        return {**view, "block": block, "head": head}

    def _head(self, result: _Result, view: Mapping[str, Any]) -> tuple[int, int]:
        blocks, count = result.heads.block.to_numpy().tolist(), result.heads.sizes["head"]
        block, head = view["block"], view["head"]
        if block is None and head is None:
            return _most_mistaken(result.heads)
        block, head = (blocks[0] if block is None else block), (0 if head is None else head)
        if block not in blocks or head not in range(count):
            if self._result is not None and result.known is not self._result.known:
                return _most_mistaken(result.heads)  # it was chosen in another model
            needed = f"blocks {blocks[0]} to {blocks[-1]}, heads 0 to {count - 1}"
            raise InputError(f"Block {block!r}, head {head!r}", needed, f"block={blocks[0]}, head=0")
        return int(block), int(head)

    def _spec(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        place = view["block"], view["head"]
        vector, pole = view["vector"].split()
        return head_circuits_chart(
            result.heads, result.known.spectrum, block=place[0], head=place[1], measure=view["measure"], circuit=view["circuit"],
            picture=view["picture"], words=result.known.words_of(*place) if view["picture"] == "words" else None,
            vector=int(vector), pole=pole,
            distances=result.known.distances_of(*place) if view["picture"] == "distance" else None, offset=view["offset"],
        )  # fmt: skip

    def _facts(self, result: _Result, view: Mapping[str, Any]) -> dict[str, Any]:
        block, head = view["block"], view["head"]
        here, spectrum = result.heads.sel(block=block, head=head), result.known.spectrum.sel(block=block, head=head)
        facts: dict[str, Any] = {
            **view,
            "model": result.known.model.name,
            "text": result.text or "repeated random tokens",
            **{name: round(float(here[name]), 3) for name in (*MEASURES, "rise", "attended")},
            "seen": round(float(spectrum.seen.sel(circuit=view["circuit"])), 3),
            "rank_correlation": {name: round(rank_correlation(result.heads[name], result.heads.copying), 3) for name in SCORES},
        }
        if view["picture"] == "words":
            vector, pole = view["vector"].split()
            words = result.known.words_of(block, head).sel(vector=int(vector), pole=pole)
            facts["words"] = {
                end: [visible(str(token)) for token in words.token.sel(end=end).to_numpy()] for end in ("attended", "raised")
            }
        if view["picture"] == "distance":
            found = result.known.distances_of(block, head).isel(block=0, head=0)
            facts["qk"] = {
                name: round(float(found[name].sel(offset=view["offset"])), 3)
                for name in ("matching_score", "symmetric_share", "positive_share", "trace", "trace_of_square")
            }
        return {**facts, "says": _sentence(facts)}

    def _selection(self, view: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"heads": [view["head"], view["block"]]}
        if view["picture"] == "distance":
            return {**found, "distance": view["offset"]}
        return found if view["picture"] == "words" else {**found, "behaviour": label_of(view["block"], view["head"])}

    def _chosen(self, selected: Mapping[str, Any]) -> dict[str, Any]:
        """A click in the map or on a dot chooses a head, one on the curves a distance."""
        if selected.get("distance") not in (None, self._view["offset"]):
            return {"offset": int(selected["distance"])}
        current = self._selection(self._view)
        if "behaviour" in current and selected.get("behaviour", current["behaviour"]) != current["behaviour"]:
            block, head = str(selected["behaviour"]).split(".")
            return {"block": int(block), "head": int(head)}
        if "heads" in selected:
            return {"head": int(selected["heads"][0]), "block": int(selected["heads"][1])}
        return {}

    def _show_view(self, view: Mapping[str, Any]) -> None:
        for name, picture in (("vector", "words"), ("offset", "distance")):
            self._controls[name].layout.display = "" if view["picture"] == picture else "none"
        super()._show_view(view)


def _options(words: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(text, name) for name, text in words.items()]


def _poles() -> list[tuple[str, str]]:
    return [(f"{vector}, pole {pole}", f"{vector} {pole}") for vector in range(1, VECTORS + 1) for pole in "+−"]


def _most_mistaken(heads: xr.Dataset) -> tuple[int, int]:
    """The head that moves its tokens most against the sign of its score, or most of all where none does."""
    copying, score = heads.copying.fillna(0).to_numpy(), heads.vocabulary.to_numpy()
    against = np.where(copying * score < 0, np.abs(copying), 0) * np.abs(score)
    row, column = np.unravel_index(int((against if against.any() else np.abs(copying)).argmax()), copying.shape)
    return int(heads.block[row]), int(column)


def _sentence(facts: Mapping[str, Any]) -> str:
    """One sentence on the head, one on all."""
    place, copying, score = f"Block {facts['block']}, head {facts['head']}", facts["copying"], facts["vocabulary"]
    does = "raises" if copying > 0 else "lowers"
    agrees = "as its score says" if copying * score > 0 else "against its score"
    kind = ", an induction head," if facts["induction"] > INDUCTION else ""
    text = (
        f"{place}{kind} {does} the logit of what it attends to by {abs(copying):.2f} standard deviations, {agrees} of "
        f"{_signed(score)} from embeddings ({_signed(facts['arriving'])} from the states that arrive there). Over all heads that "
        f"score has a rank correlation of {_signed(facts['rank_correlation']['vocabulary'])} with what heads do in "
        f"{'this text' if facts['text'] != 'repeated random tokens' else facts['text']}; the one from arriving states has "
        f"{_signed(facts['rank_correlation']['arriving'])}."
    )
    if facts["picture"] in ("eigenvalues", "singular values"):
        text += f" Eigenvalues see {100 * facts['seen']:.0f} % of this circuit's squares."
    if "words" in facts:
        text += f" This pole: attending to {_listed(facts['words']['attended'])} raises {_listed(facts['words']['raised'])}."
    if "qk" in facts:
        apart = f"{facts['offset']} token{'s' * (facts['offset'] != 1)} apart"
        text += (
            f" {apart} its queries and keys match with {_signed(facts['qk']['matching_score'])}: "
            f"{100 * facts['qk']['positive_share']:.0f} % of the eigenvalues lie to the right."
        )
    return text


def _listed(words: Sequence[str]) -> str:
    return ", ".join(f"“{word}”" for word in words[:3])


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")
