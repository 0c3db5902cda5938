"""How faithful a lens is to its model, on text that it was not fitted on.

Source: Din, Karidi, Choshen and Geva, "Jump to Conclusions: Short-Cutting Transformers With Linear
Transformations" (arXiv 2303.09435), section 4.2: precision@k asks whether the word that a lens puts first is
among the model's own k most probable, surprisal how improbable the model finds it. Both compare with
the model, not with the text. The paper calls the plain lens `id` and the shortcut lens `mat`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens.base.errors import InputError
from lens.base.progress import Progress, Step, terminal_progress
from lens.collect.windows import draw_documents
from lens.corpora import Corpus, Part
from lens.models.model import Model
from lens.probes.dataset import texts, variable
from lens.probes.translator import Translator, carry, readable_layers
from lens.probes.verdict import document_interval
from lens.probes.vocabulary import vocabulary_statistics

SOURCE = "arXiv 2303.09435, section 4.2 (precision@k, surprisal)"
PRECISIONS = (1, 5, 10)
_DEEPEST = max(PRECISIONS)
_MEASURES = ("rank", "surprisal", "kl_to_final", "margin")


@dataclass(frozen=True)
class _Token:
    """Where a scored token comes from."""

    document: int
    position: int


def compare_lenses(
    model: Model,
    corpus: Corpus,
    lenses: Mapping[str, Translator | None],
    *,
    tokens: int = 1200,
    layers: Iterable[int] | None = None,
    part: Part = "test",
    window: int = 256,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Read held-out text through several lenses and compare each with what the model itself says.

    Args:
        model: the model.
        corpus: the texts, of which only one part is read.
        lenses: name to translator; None is the plain lens. `{"plain": None, "shortcut": shortcuts, "tuned": tuned}`.
        tokens: how many to read; position 0 of each window, which no fit has seen, is not scored.
        layers: which layers; by default all that any of the lenses can read.
        part: `test`, or another part for comparison.
        window: tokens of context.
        progress: callback in tokens; by default a bar in a terminal.
        check: called before every block; raising from it stops.

    Returns:
        Dataset over `lens`, `layer` (NaN where a lens cannot read a layer) with

        - `precision` over `[lens, layer, k]`, k of 1, 5 and 10: share of tokens for which the lens's first word is
          among the model's k most probable;
        - `surprisal`, `kl_to_final` over `[lens, layer]`, nats: mean of −log p_model(the lens's first word), and of
          KL(model‖lens);
        - `precision_low`, `precision_high`, `kl_low`, `kl_high`: 95 % intervals over documents;
        - over `[lens, layer, token]`: `token_rank` (the model's rank of the lens's first word; 0 beyond 10),
          `token_surprisal`, `token_kl_to_final`, `token_margin` (probability of the lens's first word less that of
          its second), with coordinates `document` and `position`, which `lens.early_exit` uses.

    Cost: one forward pass, and for each lens the product `layers · tokens · d · vocab`. Memory: one window's logits.

    Raises:
        InputError: fewer than two documents, a layer that a lens cannot read, or a translator of another model.
    """
    for translator in lenses.values():
        if translator is not None:
            translator.require_model(model)
    last = model.n_layers
    wanted = {name: _layers_of(translator, last, layers) for name, translator in lenses.items()}
    shown = sorted(set().union(*wanted.values())) if wanted else []
    windows = draw_documents(model, corpus, part, tokens, min(window, model.context or window))
    if len({document for _, document in windows}) < 2 or not lenses:
        found = f"{len(lenses)} lenses and {len(windows)} windows in the {part} part of {corpus.name}"
        raise InputError(found, "one lens at least, and two documents", "more texts")
    where: list[_Token] = []
    readings: dict[str, list[dict[str, Tensor]]] = {name: [] for name in lenses}
    total = sum(len(ids) for ids, _ in windows)
    with terminal_progress() as bar:
        for ids, document in windows:
            where += [_Token(document, position) for position in range(1, len(ids))]
            for name, reading in _read(model, ids, lenses, wanted, check).items():
                readings[name].append(reading)
            (progress or bar)(Step(len(where) + len(windows), total, "tokens", f"{corpus.name}, lenses"))
    arrays = {measure: _stack(readings, wanted, shown, measure) for measure in _MEASURES}
    documents = np.array([token.document for token in where])
    facts = {"source": SOURCE, "probe": "compare_lenses", "corpus": corpus.name, "corpus_hash": corpus.digest, "part": part}
    return xr.Dataset(
        {**_means(arrays, documents), **_per_token(arrays)},
        coords={
            "lens": texts(("lens",), list(lenses), "how states are read"),
            "layer": variable(("layer",), np.array(shown), "residual state (0 is the embedding)"),
            "k": variable(("k",), np.array(PRECISIONS), "how many of the model's words count as agreement"),
            "document": variable(("token",), documents, "document of the part, in hash order"),
            "position": variable(("token",), np.array([token.position for token in where]), "position in its window"),
        },
        attrs={**facts, "tokens": len(where), "documents": len(set(documents.tolist())), "window": window, **model.provenance()},
    )


def _layers_of(translator: Translator | None, last: int, layers: Iterable[int] | None) -> tuple[int, ...]:
    """Of the wanted layers those that this lens can read; a layer that does not exist is refused for all."""
    if layers is None:
        return readable_layers(translator, last)
    chosen = readable_layers(None, last, layers)
    return chosen if translator is None else readable_layers(translator, last, set(chosen) & {*translator.layers, last})


def _read(
    model: Model,
    ids: list[int],
    lenses: Mapping[str, Translator | None],
    wanted: Mapping[str, tuple[int, ...]],
    check: Callable[[], None] | None,
) -> dict[str, dict[str, Tensor]]:
    """One window through all lenses: each measure `[layer, token]`, position 0 left out."""
    with torch.no_grad(), model.lock.hold("comparing lenses", check):
        run = model.run(ids, check=check)
        assert run.logits is not None  # asked for
        logits, residual = run.logits[1:].float(), run.residual[:, 1:]
        logprob = logits.log_softmax(-1)
        best = logits.topk(min(_DEEPEST, logits.shape[-1])).indices
        following = run.token_ids.roll(-1)[1:]
        found = {}
        for name, translator in lenses.items():
            _, states = carry(translator, residual, wanted[name])
            said = vocabulary_statistics(model.readout, states, following, 2, logits)
            first = said.token_id[..., 0]
            hits = first[..., None] == best
            found[name] = {
                "rank": torch.where(hits.any(-1), hits.int().argmax(-1) + 1, 0).cpu(),
                "surprisal": -logprob.gather(1, first.T).T.cpu(),
                "kl_to_final": said.kl_to_final.cpu(),
                "margin": (said.logprob[..., 0].exp() - said.logprob[..., 1].exp()).cpu(),
            }
    return found


def _stack(
    readings: Mapping[str, list[dict[str, Tensor]]], wanted: Mapping[str, tuple[int, ...]], shown: list[int], measure: str
) -> np.ndarray:
    """`[lens, layer, token]`; NaN where a lens cannot read a layer."""
    rows = []
    for name, parts in readings.items():
        values = torch.cat([part[measure] for part in parts], dim=1).double().numpy()
        row = np.full((len(shown), values.shape[1]), np.nan)
        row[[shown.index(layer) for layer in wanted[name]]] = values
        rows.append(row)
    return np.stack(rows)


def _means(arrays: Mapping[str, np.ndarray], documents: np.ndarray) -> dict[str, xr.Variable]:
    cell = ("lens", "layer")
    hits = np.stack([_within(arrays["rank"], k) for k in PRECISIONS], axis=-2)  # [lens, layer, k, token]
    low, high = _intervals(hits, documents)
    kl_low, kl_high = _intervals(arrays["kl_to_final"], documents)
    return {
        "precision": variable((*cell, "k"), hits.mean(-1), "share of tokens whose first word is among the model's first k"),
        "precision_low": variable((*cell, "k"), low, "lower end of its 95 % interval over documents"),
        "precision_high": variable((*cell, "k"), high, "upper end of its 95 % interval over documents"),
        "surprisal": variable(cell, arrays["surprisal"].mean(-1), "surprisal of the lens's first word to the model", "nats"),
        "kl_to_final": variable(cell, arrays["kl_to_final"].mean(-1), "KL(model‖lens)", "nats"),
        "kl_low": variable(cell, kl_low, "lower end of its 95 % interval over documents", "nats"),
        "kl_high": variable(cell, kl_high, "upper end of its 95 % interval over documents", "nats"),
    }


def _within(rank: np.ndarray, k: int) -> np.ndarray:
    """1 where a rank is 1 to k, 0 where it is not, NaN where there is none."""
    return np.where(np.isnan(rank), np.nan, (rank >= 1) & (rank <= k))


def _intervals(values: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % intervals of the mean over tokens, by leaving out whole documents."""
    groups = [values[..., documents == document] for document in np.unique(documents)]
    sums, counts = np.stack([group.sum(-1) for group in groups]), np.array([group.shape[-1] for group in groups])
    shape = sums.shape[1:]
    ends = np.array([_interval(column, counts) for column in sums.reshape(len(groups), -1).T])
    return ends[:, 0].reshape(shape), ends[:, 1].reshape(shape)


def _interval(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    if np.isnan(sums).any():
        return np.nan, np.nan
    return document_interval(list(zip(sums, counts, strict=True)), lambda d: sum(s for s, _ in d) / sum(n for _, n in d))


def _per_token(arrays: Mapping[str, np.ndarray]) -> dict[str, xr.Variable]:
    labels = {
        "rank": ("the model's rank of the lens's first word; 0 beyond 10", "1"),
        "surprisal": ("surprisal of the lens's first word to the model", "nats"),
        "kl_to_final": ("KL(model‖lens)", "nats"),
        "margin": ("probability of the lens's first word less that of its second", "1"),
    }
    return {f"token_{name}": variable(("lens", "layer", "token"), arrays[name], *labels[name]) for name in _MEASURES}
