"""What has been said of single tokens under the microscope, measured on a model's texts, beside the claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.model import Model
from lens.moments import Moments, token_norms
from lens.probes.contextualisation import contextualisation
from lens.probes.dataset import variable
from lens.probes.deletion_test import REMOVED, deletion_test
from lens.probes.prefix_decoder import PrefixDecoder
from lens.probes.shortcuts import Shortcuts
from lens.probes.token_classes import CLASSES
from lens.probes.token_nonlinearity import token_nonlinearity
from lens.probes.verdict import judged

MICROSCOPE, OURS = "Razzhigaev et al., arXiv 2502.15007", "ours"
SOURCE = f"{MICROSCOPE} (LLM-Microscope), sections 3 to 5"
PUBLISHED_CORRELATION = {
    "OPT-6.7B": 0.482, "OPT-1.3B": 0.406, "OPT-2.7B": 0.401, "OPT-13B": 0.359, "Gemma-2-9B": 0.561, "Gemma-2-2B": 0.515,
    "Llama-3.2-3B": 0.367, "Llama-3-8B": 0.050, "Llama-3-8B-Instruct": 0.328, "Llama-2-7B": 0.239, "Phi-3-mini": 0.410,
    "Qwen2.5-1.5B": 0.199, "Mistral-7B": 0.152,
}  # fmt: skip
"""Pearson's r of non-linearity and the loss of the prefix, as published, over tokens."""


def microscope_claims(
    model: Model,
    documents: Sequence[Document],
    shortcuts: Shortcuts,
    spread: Moments,
    decoder: PrefixDecoder,
    *,
    tokens: int = 192,
    removed: Sequence[str] = REMOVED,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Non-linearity and contextualisation of every token of the start of each document, and what deletions cost.

    Args:
        model: the model.
        documents: of text that neither the maps nor the decoder were fitted on; those with fewer tokens are left out.
        shortcuts, spread: as for `token_nonlinearity`.
        decoder: as for `contextualisation`.
        tokens: of each document.
        removed: kinds, as for `deletion_test`.
        seed: of the random deletions.
        check: called before every block of every pass; raising from it stops the work.

    Returns:
        Dataset over `document`, `position`, and over `block`, `layer`, `removed`, `drawn` as the probes have them:

        - `nonlinearity`, `relative` `[document, block, position]`, from `token_nonlinearity`;
        - `prefix_loss`, `recovered` `[document, layer, position]`, from `contextualisation`;
        - `token_class[document, position]`;
        - `kept[document, position]`: 1 for tokens that count: those with the decoder's whole prefix before them whose norm
          exceeds the limits of `spread` at no layer;
        - all of `deletion_test`.

    Cost: two passes a document and two for each kind of deletion.

    Raises:
        InputError: fewer than two documents that are long enough, and see the probes.
    """
    decoder.require_model(model)
    chosen = [one for one in documents if len(model.encode_bare(one.text)) >= tokens]
    if len(chosen) < 2 or tokens <= 2 * max(decoder.lags):
        found = f"{len(chosen)} documents of {tokens} tokens"
        raise InputError(found, f"at least 2, of more than {2 * max(decoder.lags)} tokens", "more documents")
    rows = [_document(model, model.encode_bare(one.text)[:tokens], shortcuts, spread, decoder, check) for one in chosen]
    found = xr.concat(
        rows, "document", combine_attrs="override", data_vars="all", coords="minimal", compat="override", join="exact"
    )
    costs = deletion_test(model, chosen, removed=removed, tokens=tokens, seed=seed, check=check)
    facts = {"tokens": tokens, "seed": seed}
    both = xr.merge([found, costs], combine_attrs="drop", compat="override", join="exact")
    return both.assign_attrs(source=SOURCE, probe="microscope_claims", **facts, **model.provenance())


def _document(
    model: Model,
    ids: Sequence[int],
    shortcuts: Shortcuts,
    spread: Moments,
    decoder: PrefixDecoder,
    check: Callable[[], None] | None,
) -> xr.Dataset:
    run = model.run(ids, logits=False, check=check)
    errors, read = token_nonlinearity(run, shortcuts, spread), contextualisation(run, decoder)
    norms = token_norms(run.residual).cpu().double()
    kept = (norms <= spread.limits[:, None]).all(0).numpy()
    kept[: max(decoder.lags)] = False
    parts = [errors[["nonlinearity", "relative", "token_class"]], read[["prefix_loss", "recovered"]]]
    found = xr.merge(parts, combine_attrs="drop", compat="override", join="exact").drop_vars(["input_id", "input_token"])
    return found.assign(kept=variable(("position",), kept.astype(int), "1 for tokens that count"))


# -- what claims are read from ------------------------------------------------------------------------------------------


def token_scores(claims: xr.Dataset, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the kept tokens of one document, means over blocks or over layers but the embedding, and their classes.

    Args:
        claims: one document of `microscope_claims`.
        measure: `nonlinearity`, `relative`, `prefix_loss` or `recovered`; `context` is what the mean layer recovers beyond
            what the token itself (layer 0) says of its neighbours.
    """
    kept = claims.kept.to_numpy().astype(bool)
    classes = claims.token_class.to_numpy()[kept]
    if measure in ("nonlinearity", "relative"):
        return claims[measure].mean("block").to_numpy()[kept].astype(float), classes
    values = claims["recovered" if measure == "context" else measure]
    deep = values.isel(layer=values.layer.to_numpy() > 0).mean("layer")
    found = deep - values.sel(layer=0) if measure == "context" else deep
    return found.to_numpy()[kept].astype(float), classes


def correlation(claims: xr.Dataset, one: str, other: str, *, within: bool = False) -> float:
    """Pearson's r over the kept tokens of a document; `within` takes the mean of its class from every token first."""
    (first, classes), (second, _) = (token_scores(claims, name) for name in (one, other))
    if within:
        first, second = (_centred(values, classes) for values in (first, second))
    return float(np.corrcoef(first, second)[0, 1])


def class_difference(claims: xr.Dataset, measure: str, one: str, other: str) -> float:
    """Mean of a score over one class less that over another, in one document; NaN where it lacks either."""
    values, classes = token_scores(claims, measure)
    means = [values[classes == CLASSES.index(name)] for name in (one, other)]
    return float(means[0].mean() - means[1].mean()) if all(map(len, means)) else np.nan


def class_means(claims: xr.Dataset, measure: str) -> dict[str, float]:
    """Mean of a score by class, over the kept tokens of all documents; NaN for a class without any."""
    pairs = [token_scores(claims.isel(document=number), measure) for number in range(claims.sizes["document"])]
    values, classes = (np.concatenate(part) for part in zip(*pairs, strict=True))
    return {name: float(values[classes == n].mean()) if (classes == n).any() else np.nan for n, name in enumerate(CLASSES)}


def _centred(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return values - np.array([values[classes == one].mean() for one in classes])


def _rise(claims: xr.Dataset, removed: str, *, against_random: bool, where: str = "rise_after") -> float:
    if removed not in claims["removed"].to_numpy().tolist():
        return np.nan
    found = claims[where].sel(removed=removed)
    chosen = float(found.sel(drawn="chosen"))
    return chosen - float(found.sel(drawn="random")) if against_random else chosen


# -- verdicts -----------------------------------------------------------------------------------------------------------


def microscope_verdicts(claims: xr.Dataset) -> list[dict[str, Any]]:
    """The claims beside what was measured, one row for each, with intervals over documents.

    Args:
        claims: from `microscope_claims`.

    Returns:
        Rows of `claim`, `source`, `measured` (what the number is), `published` (the source's figure, None where it has none),
        `threshold` (from which the claim holds; ours, where the paper gives none), `value` (mean over documents), `low`, `high`
        (95 %) and `verdict` (`holds`, `fails`, `open`, or
        `untested` where a document lacks a class or a deletion was not tried).
    """
    documents = [claims.isel(document=number) for number in range(claims.sizes["document"])]
    return [
        {"claim": claim, "source": source, "measured": measured, "published": _PUBLISHED.get(claim), "threshold": threshold,
         **judged([statistic(document) for document in documents], threshold)}
        for claim, source, measured, threshold, statistic in _CLAIMS
    ]  # fmt: skip


_SORTED = sorted(PUBLISHED_CORRELATION.values())
_RANGE = f"{_SORTED[0]:.2f} to {_SORTED[-1]:.2f}, {len(_SORTED)} models"
_PUBLISHED: dict[str, str] = {
    "Tokens with more context are treated more linearly": _RANGE,
    "The correlation of non-linearity and context is strong": _RANGE,
    "Without stop words a model does worse": "MMLU .398 to .347, Llama-3.2-3B",
    "Without punctuation a model does worse": "MMLU .398 to .391, Llama-3.2-3B",
    "Without articles a model does worse": "MMLU .398 to .386, Llama-3.2-3B",
}
_BOTH = "stop words and punctuation"
_CLAIMS: tuple[tuple[str, str, str, float, Callable[[xr.Dataset], float]], ...] = (
    ("Tokens with more context are treated more linearly", MICROSCOPE, "r of non-linearity E and prefix loss C", 0.05,
     lambda claims: correlation(claims, "nonlinearity", "prefix_loss")),
    ("The correlation of non-linearity and context is strong", MICROSCOPE,
     "r of non-linearity E and prefix loss C; strong from .5", 0.5,
     lambda claims: correlation(claims, "nonlinearity", "prefix_loss")),
    ("Non-linearity and context correlate beyond the size of states", OURS, "r of relative non-linearity and prefix loss", 0.0,
     lambda claims: correlation(claims, "relative", "prefix_loss")),
    ("Non-linearity and context correlate within classes of tokens", OURS, "r of non-linearity and prefix loss within classes",
     0.0, lambda claims: correlation(claims, "nonlinearity", "prefix_loss", within=True)),
    ("Non-linearity and context correlate beyond the token itself", OURS,
     "minus r of non-linearity and what is read beyond layer 0", 0.0,
     lambda claims: -correlation(claims, "nonlinearity", "context")),
    ("Punctuation holds more context than content words", MICROSCOPE, "prefix loss: content words less punctuation (nats)", 0.0,
     lambda claims: class_difference(claims, "prefix_loss", "content word", "punctuation")),
    ("Stop words hold more context than content words", MICROSCOPE, "prefix loss: content words less stop words (nats)", 0.0,
     lambda claims: class_difference(claims, "prefix_loss", "content word", "stop word")),
    ("Punctuation holds more beyond what it tells itself", OURS, "read beyond layer 0, less content words’ (nats)", 0.0,
     lambda claims: class_difference(claims, "context", "punctuation", "content word")),
    ("Stop words hold more beyond what they tell themselves", OURS, "read beyond layer 0, less content words’ (nats)", 0.0,
     lambda claims: class_difference(claims, "context", "stop word", "content word")),
    ("Stop words are treated more linearly than content words", MICROSCOPE, "non-linearity: content words less stop words", 0.0,
     lambda claims: class_difference(claims, "nonlinearity", "content word", "stop word")),
    ("Stop words are more linear relative to their size, too", OURS, "relative non-linearity: content words less stop words", 0.0,
     lambda claims: class_difference(claims, "relative", "content word", "stop word")),
    ("Without stop words a model does worse", MICROSCOPE, "rise of the loss afterwards (nats)", 0.0,
     lambda claims: _rise(claims, "stop words", against_random=False)),
    ("Without punctuation a model does worse", MICROSCOPE, "rise of the loss afterwards (nats)", 0.0,
     lambda claims: _rise(claims, "punctuation", against_random=False)),
    ("Without articles a model does worse", MICROSCOPE, "rise of the loss afterwards (nats)", 0.0,
     lambda claims: _rise(claims, "articles", against_random=False)),
    ("Losing fillers costs more than losing random tokens", OURS, "rise afterwards less that of random ones (nats)", 0.0,
     lambda claims: _rise(claims, _BOTH, against_random=True)),
    ("Losing fillers costs the remaining content words more", OURS, "rise of theirs less that of random ones (nats)", 0.0,
     lambda claims: _rise(claims, _BOTH, against_random=True, where="rise_remaining")),
)  # fmt: skip
