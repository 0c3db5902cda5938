"""Whether the frozen map of a prompt says what the model would do: its contributions beside what taking tokens away does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.frozen import FrozenModel, freeze
from lens.models.model import Model
from lens.probes.dataset import exact
from lens.probes.frozen_map import frozen_contributions
from lens.probes.frozen_spectrum import frozen_map_spectrum
from lens.probes.token_ablations import ABLATIONS, token_ablations
from lens.probes.verdict import judged

GOLDEN, YOU, OURS = "Golden, arXiv 2505.24293", "You et al., arXiv 2510.18810", "ours"
SOURCE = f"{GOLDEN}, abstract; leaving one token out: {YOU}"
SCORES = ("frozen", "frozen_logit", "gradient", "recency")
AMONG = ("all", "inner")
_VECTORS, _WORDS = 4, 8


def frozen_claims(
    model: Model,
    documents: Sequence[Document],
    *,
    tokens: int = 12,
    spectra: int = 0,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Contributions to the next token's logit at the start of each document, and what that logit loses without each token.

    Args:
        model: in float32 or float64.
        documents: those with fewer tokens are left out.
        tokens: of each document, six or more.
        spectra: of how many documents, the first ones, the singular vectors are found as well.
        check: called before every block of every pass; raising from it stops the work.

    Returns:
        Dataset over `document`, `position`, `score`, `ablation`, `among`:

        - `score_value[document, score, position]`: the frozen contribution to the logit above the vocabulary's mean (`frozen`),
          to the bare logit (`frozen_logit`), gradient times embedding (`gradient`, above the mean), and the position alone
          (`recency`);
        - `effect[document, ablation, position]`: what the logit above the mean really loses where a token is `removed` (later
          ones move up; without the last one the answer is given one token earlier), or where its embedding is `zeroed` or
          replaced by the `average` of the vocabulary;
        - `agreement[document, score, ablation, among]`: Spearman's ρ of the two, over all positions or without first and last;
        - `explained[document, ablation]`: 1 − Σ(effect − contribution)² / Σ(effect − mean)² without first and last, nothing
          fitted; below 0 the mean effect would have been the better guess;
        - `first_share[document]`, `first_share_centred[document]`: of the bare logit, and of the logit above the mean, what the
          first token contributes;
        - `error[document]`: largest of the frozen map's three relative errors (its logits, its linearity, the sum);
        - `stable_rank`, `target_found`, `other_found` `[document]`: of the frozen map; whether the next token is among the 8
          words that its first left singular vector raises most; the same of the next document's next token. NaN beyond `spectra`.

    Cost: about `4 · tokens` passes of `tokens` tokens a document, and six times sixteen for a spectrum.

    Raises:
        InputError: fewer than two documents that are long enough, or too few tokens. UnsupportedModelError: see `freeze`.
    """
    if tokens < 6:
        raise InputError(f"{tokens} tokens", "6 or more, to rank the inner ones", "tokens=12")
    chosen = [ids for ids in (model.encode_bare(document.text)[:tokens] for document in documents) if len(ids) == tokens]
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} documents of {tokens} tokens", "at least 2", "fewer tokens, or more documents")
    with model.lock.hold("testing a frozen map"):
        frozen = [freeze(model, ids, check=check) for ids in chosen]
        targets = [int(one.logits[-1].argmax()) for one in frozen]
        parts = [_document(one, check) for one in frozen]
        others = [*targets[1:], targets[0]]
        words = [
            _spectrum(one, other, check) if number < spectra else (np.nan,) * 3
            for number, (one, other) in enumerate(zip(frozen, others, strict=True))
        ]
    found = xr.concat(parts, "document", combine_attrs="override", join="exact")
    names = {"stable_rank": "stable rank of the frozen map", "target_found": "next token among the first vector's words",
             "other_found": "another document's next token among them"}  # fmt: skip
    more = {name: exact(("document",), np.array([one[n] for one in words]), names[name]) for n, name in enumerate(names)}
    attributes = {"source": SOURCE, "probe": "frozen_claims", "tokens": tokens, "spectra": spectra, "width": model.d_model}
    return found.assign(more).assign_attrs(attributes | model.provenance())


def _document(frozen: FrozenModel, check: Callable[[], None] | None) -> xr.Dataset:
    model, count = frozen.model, len(frozen.token_ids)
    above = frozen_contributions(model, frozen, centred=True, check=check)
    bare = frozen_contributions(model, frozen, check=check)
    scores = {
        "frozen": above.contribution.to_numpy(),
        "frozen_logit": bare.contribution.to_numpy(),
        "gradient": above.gradient_contribution.to_numpy(),
        "recency": np.arange(count, dtype=float),
    }
    effects = token_ablations(model, frozen, centred=True, check=check).effect.to_numpy()
    agreement = [[[_rank_correlation(scores[score], effect, among) for among in AMONG] for effect in effects] for score in SCORES]
    inner = scores["frozen"][1:-1]
    explained = [_explained(inner, effect[1:-1]) for effect in effects]
    sums = abs(float(bare.error)) / float(np.abs(bare.contribution).sum())
    names = {"score": np.array(SCORES, dtype=object), "ablation": np.array(ABLATIONS, dtype=object),
             "among": np.array(AMONG, dtype=object)}  # fmt: skip
    return xr.Dataset(
        {
            "score_value": exact(("score", "position"), np.stack([scores[name] for name in SCORES]), "score", "logit"),
            "effect": exact(("ablation", "position"), effects, "loss of the logit above the mean", "logit"),
            "agreement": exact(("score", "ablation", "among"), np.array(agreement), "Spearman's ρ of score and effect"),
            "explained": exact(("ablation",), np.array(explained), "share of the effects' variance explained, nothing fitted"),
            "first_share": exact((), float(bare.contribution[0] / bare.logit), "first token's share of the logit"),
            "first_share_centred": exact((), float(above.contribution[0] / above.logit), "the same, above the mean"),
            "error": exact((), max(frozen.forward_error, frozen.linear_error, sums), "largest relative error"),
        },
        names,
    )


def _rank_correlation(score: np.ndarray, effect: np.ndarray, among: str) -> float:
    places = slice(1, -1) if among == "inner" else slice(None)
    return float(np.asarray(scipy.stats.spearmanr(score[places], effect[places])[0]))


def _explained(guess: np.ndarray, effect: np.ndarray) -> float:
    return float(1 - ((effect - guess) ** 2).sum() / ((effect - effect.mean()) ** 2).sum())


def _spectrum(frozen: FrozenModel, other: int, check: Callable[[], None] | None) -> tuple[float, float, float]:
    found = frozen_map_spectrum(frozen.model, frozen, vectors=_VECTORS, top_k=_WORDS, whole=False, check=check)
    words = found.written_id[0, 0].to_numpy().tolist()
    return float(found.stable_rank), float(found.target_id in words), float(other in words and other != found.target_id)


# -- verdicts -------------------------------------------------------------------------------------


def frozen_verdicts(claims: xr.Dataset) -> list[dict[str, Any]]:
    """The claims beside what was measured, one row for each, with intervals over documents.

    Args:
        claims: from `frozen_claims`.

    Returns:
        Rows of `claim`, `source`, `measured` (what the number is), `published` (the source's figure, None where it has none),
        `threshold` (from which the claim holds; ours, where the papers give none), `value` (mean over documents), `low`, `high`
        (95 %) and `verdict` (`holds`, `fails`, `open`, or
        `untested` where there is nothing to read it from).
    """
    spectra = int(claims.attrs["spectra"])
    seen = claims.isel(document=slice(spectra)) if spectra > 1 else claims
    return [
        {"claim": claim, "source": source, "measured": measured, "published": _PUBLISHED.get(claim), "threshold": threshold,
         **judged(statistic(seen if needs_spectra else claims).to_numpy().tolist(), threshold)}
        for claim, source, measured, threshold, needs_spectra, statistic in _CLAIMS
    ]  # fmt: skip


def _agreement(claims: xr.Dataset, score: str, ablation: str) -> xr.DataArray:
    return claims.agreement.sel(score=score, ablation=ablation, among="inner")


_PUBLISHED: dict[str, str] = {
    "At its prompt a model is one linear map": "13, double precision",
}
_CLAIMS: tuple[tuple[str, str, str, float, bool, Callable[[xr.Dataset], xr.DataArray]], ...] = (
    ("At its prompt a model is one linear map", GOLDEN, "decades of error under 1, counted to 5", 5.0, False,
     lambda claims: -np.log10(claims.error.clip(min=1e-5))),
    ("The frozen map has an extremely low rank", GOLDEN, "dimensions over stable rank", 20.0, True,
     lambda claims: float(claims.attrs["width"]) / claims.stable_rank),
    ("Large singular vectors of the map say the next token", GOLDEN, "share with it in 8 words of the first vector", 0.5, True,
     lambda claims: claims.target_found),
    ("Singular vectors speak of this prompt, not of any", OURS, "share with it in 8 words, less another prompt's", 0.5, True,
     lambda claims: claims.target_found - claims.other_found),
    ("Frozen contributions rank tokens as removing them does", OURS, "Spearman's ρ, inner tokens", 0.5, False,
     lambda claims: _agreement(claims, "frozen", "removed")),
    ("Frozen contributions rank tokens as zeroing embeddings does", OURS, "Spearman's ρ, inner tokens", 0.5, False,
     lambda claims: _agreement(claims, "frozen", "zeroed")),
    ("Frozen contributions tell how much zeroing costs", OURS, "share of variance explained, nothing fitted", 0.0, False,
     lambda claims: claims.explained.sel(ablation="zeroed")),
    ("Leaving the softmax out agrees better with removal", YOU, "ρ less that of gradient times embedding", 0.0, False,
     lambda claims: _agreement(claims, "frozen", "removed") - _agreement(claims, "gradient", "removed")),
    ("Frozen contributions rank tokens better than position does", OURS, "ρ with removal less that of the position", 0.0, False,
     lambda claims: _agreement(claims, "frozen", "removed") - _agreement(claims, "recency", "removed")),
)  # fmt: skip
