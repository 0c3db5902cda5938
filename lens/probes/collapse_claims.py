"""What has been said of rank collapse and of attention as a low-pass filter, measured on a model's texts, beside the claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from lens.base.errors import InputError, UnsupportedModelError
from lens.corpora import Document
from lens.models.head_weights import HeadWeights, head_weights
from lens.models.model import Model
from lens.probes.dataset import exact
from lens.probes.low_pass import attention_factors, attention_response, low_pass
from lens.probes.rank_collapse import attention_path, collapse_measures, rank_collapse
from lens.probes.token_spectrum import token_spectrum
from lens.probes.verdict import judged

DONG, WANG = "Dong et al., arXiv 2103.03404", "Wang et al., arXiv 2203.05962"
WU, OURS = "Wu et al., arXiv 2405.18781", "ours"
SOURCE = f"{DONG}, sections 2 and 4; {WANG}, section 2; {WU}, section 4"
COLLAPSED = 0.01  # ρ from which states count as collapsed: two decades
_SEEN = (1e-5, 0.5)  # ρ between which a rate is read: below, float32 states hold little but rounding


def collapse_claims(
    model: Model, documents: Sequence[Document], *, tokens: int = 128, check: Callable[[], None] | None = None
) -> xr.Dataset:
    """Rank collapse, filters and bands of the start of each document.

    Args:
        model: whose blocks have attention and MLP of their own.
        documents: those with fewer tokens are left out.
        tokens: of each document, ten or more.
        check: called before every block of every pass; raising from it stops the work.

    Returns:
        Dataset over `document`, and over `variant`, `first_token`, `layer`, `block`, `stage`, `frequency`, `band` as the probes
        have them:

        - what `rank_collapse` gives, and `path_residual_ratio[document, layer]`, ρ of `attention_path` without the first token;
        - `first_token_size[document, layer]`: norm of the first token's state over the median of the others';
        - `change[document, stage, block]`, as in `low_pass`, and `factor_change[document, factor, block]`, as in
          `attention_factors`;
        - `response[document, block, frequency]`, as in `attention_response`, mean over heads;
        - `band_share`, `neuron_share` `[document, layer, band]`, as in `token_spectrum`.

    Where the matrices of heads are not found (ALiBi, latent states), `path_residual_ratio` is NaN and there are no factors.

    Cost: nine passes a document. Memory: the patterns of one document, and the matrices of all heads.

    Raises:
        InputError: fewer than two documents that are long enough. UnsupportedModelError: see the probes.
    """
    chosen = [ids for ids in (model.encode_bare(document.text)[:tokens] for document in documents) if len(ids) == tokens]
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} documents of {tokens} tokens", "at least 2", "tokens=64, or more documents")
    weights = _weights(model)
    found = xr.concat([_document(model, ids, weights, check) for ids in chosen], "document", combine_attrs="override")
    return found.assign_attrs(source=SOURCE, probe="collapse_claims", tokens=tokens, **model.provenance())


def _weights(model: Model) -> tuple[HeadWeights, ...] | None:
    try:
        return head_weights(model)
    except UnsupportedModelError:
        return None  # and what needs them is left untested


def _document(
    model: Model, ids: Sequence[int], weights: Sequence[HeadWeights] | None, check: Callable[[], None] | None
) -> xr.Dataset:
    found = rank_collapse(model, ids, check=check)
    run = model.run(ids, attention=True, logits=False, check=check)
    path, factors = np.full(model.n_layers + 1, np.nan), xr.Dataset()
    if weights is not None:
        path = collapse_measures(attention_path(run, weights)[:, 1:], check)["residual_ratio"]
        factors = attention_factors(model, ids, weights, check=check)
    norms = run.residual.double().norm(dim=-1).cpu().numpy()
    response = attention_response(run)
    spectrum = token_spectrum(run, check=check)
    return xr.merge(
        [
            found.assign(
                path_residual_ratio=exact(("layer",), path, "ρ of the attention path, without the first token"),
                first_token_size=exact(
                    ("layer",), norms[:, 0] / np.median(norms[:, 1:], axis=1), "first token's norm over others'"
                ),
            ),
            low_pass(model, ids, check=check),
            factors,
            response[["response"]].mean("head", keep_attrs=True),
            spectrum[["band_share", "neuron_share", "white_share"]],
        ],
        combine_attrs="drop",
        compat="override",
        join="exact",
    )


# -- verdicts -----------------------------------------------------------------------------------------------------------


def collapse_verdicts(claims: xr.Dataset) -> list[dict[str, Any]]:
    """The claims beside what was measured, one row for each, with intervals over documents.

    Args:
        claims: from `collapse_claims`.

    Returns:
        Rows of `claim`, `source`, `measured` (what the number is), `published` (the source's figure, None where it has none),
        `threshold` (from which the claim holds; ours, where the papers give none), `value` (mean over documents), `low`, `high`
        (95 %) and `verdict` (`holds`, `fails`, `open`, or
        `untested` where there is nothing to read it from).
    """
    documents = [claims.isel(document=number) for number in range(claims.sizes["document"])]
    return [
        {"claim": claim, "source": source, "measured": measured, "published": _PUBLISHED.get(claim), "threshold": threshold,
         **judged([statistic(document) for document in documents], threshold)}
        for claim, source, measured, threshold, statistic in _CLAIMS
    ]  # fmt: skip


def ratios(claims: xr.Dataset, variant: str) -> np.ndarray:
    """ρ at every layer of one document, without the first token."""
    return claims.residual_ratio.sel(variant=variant, first_token="without").to_numpy()


def decades(found: np.ndarray) -> float:
    """Powers of ten between ρ of the embedding and ρ of the last layer; below 1e-5 there is little but rounding."""
    return float(np.log10(found[0] / max(found[-1], _SEEN[0])))


def collapse_depth(found: np.ndarray) -> float:
    """First layer from which on ρ stays below `COLLAPSED`; one more than the last where it never does."""
    above = np.flatnonzero(found >= COLLAPSED)
    return float(above[-1] + 1 if len(above) else 0)


def _read(found: np.ndarray) -> np.ndarray:
    """ρ from the first layer below ½ to the last one above rounding."""
    low, high = _SEEN
    start = int(np.argmax(found < high)) if (found < high).any() else len(found)
    stop = int(np.argmax(found < low)) if (found < low).any() else len(found)
    return found[start:stop]


def growth(found: np.ndarray) -> float:
    """Mean factor from one layer to the next of −ln ρ: 3 for a cubic rate, 1 in the long run for an exponential one."""
    read = np.log(_read(np.asarray(found)))
    return float((read[-1] / read[0]) ** (1 / (len(read) - 1))) if len(read) > 2 else np.nan


def slowest_fall(found: np.ndarray, stretch: int = 10) -> float:
    """Fewest decades that ρ falls by over any so many layers: above 0 it stays below C·rˡ for some r under 1."""
    read = np.log10(_read(np.asarray(found)))
    return float((read[:-stretch] - read[stretch:]).min()) if len(read) > stretch else np.nan


def slow_over_fast(claims: xr.Dataset) -> float:
    """What patterns pass of the slowest quarter of waves over what they pass of the fastest, mean over blocks."""
    response = claims.response.where(claims.frequency > 0, drop=True)
    quarter = response.sizes["frequency"] // 4
    slow, fast = (response.isel(frequency=part).mean("frequency") for part in (slice(quarter), slice(-quarter, None)))
    return float((slow / fast).mean())


def slow_share(claims: xr.Dataset, third: int) -> float:
    """Share of power in periods over 64 tokens, mean over a third of the layers: 0 the first, 2 the last."""
    share = claims.band_share.isel(band=slice(2)).sum("band").to_numpy()
    return float(np.array_split(share, 3)[third].mean())


_PUBLISHED: dict[str, str] = {
    "Attention alone loses rank doubly exponentially, at a cubic rate": "3",
    "With a causal mask rank falls at least exponentially": "exponential",
}
_CLAIMS: tuple[tuple[str, str, str, float, Callable[[xr.Dataset], float]], ...] = (
    ("Attention alone, without skips and MLPs, loses rank", DONG, "decades of ρ lost through depth; 5 can be seen", 2.0,
     lambda claims: decades(ratios(claims, "neither"))),
    ("Attention alone loses rank doubly exponentially, at a cubic rate", DONG, "growth of −ln ρ a layer; half-way: 2", 2.0,
     lambda claims: growth(ratios(claims, "neither"))),
    ("With a causal mask rank falls at least exponentially", WU, "fewest decades of ρ lost over any ten layers", 0.0,
     lambda claims: slowest_fall(ratios(claims, "neither"))),
    ("The same patterns and matrices without norms lose rank too", DONG, "decades of ρ lost through depth; 5 can be seen", 2.0,
     lambda claims: decades(claims.path_residual_ratio.to_numpy())),
    ("Without skips, MLPs alone do not stop the collapse", DONG, "decades of ρ lost through depth; 5 can be seen", 2.0,
     lambda claims: decades(ratios(claims, "no_skips"))),
    ("MLPs slow the collapse", DONG, "layers until ρ stays under 0.01: more with MLPs by", 0.0,
     lambda claims: collapse_depth(ratios(claims, "no_skips")) - collapse_depth(ratios(claims, "neither"))),
    ("Skips alone, without MLPs, stop the collapse", DONG, "ρ at the last layer", COLLAPSED,
     lambda claims: float(ratios(claims, "no_mlp")[-1])),
    ("The whole model does not collapse", DONG, "ρ at the last layer", COLLAPSED,
     lambda claims: float(ratios(claims, "whole")[-1])),
    ("Attention patterns pass slow waves rather than fast ones", WANG, "slowest quarter of frequencies over fastest", 1.0,
     slow_over_fast),
    ("Attention patterns by themselves make states smoother", WANG, "fall of ln(‖HC‖/‖DC‖), mean over heads (nats)", 0.0,
     lambda claims: -float(claims.factor_change.sel(factor="patterns").mean()) if "factor" in claims.dims else np.nan),
    ("What attention gives is smoother than what it takes", WANG, "fall of ln(‖HC‖/‖DC‖), mean over blocks (nats)", 0.0,
     lambda claims: -float(claims.change.sel(stage="attention").mean())),
    ("MLPs bring differences back", WANG, "rise of ln(‖HC‖/‖DC‖), mean over blocks (nats)", 0.0,
     lambda claims: float(claims.change.sel(stage="mlp").mean())),
    ("Slow bands grow into the middle layers", OURS, "share of periods over 64 tokens: middle third over first", 1.0,
     lambda claims: slow_share(claims, 1) / slow_share(claims, 0)),
    ("Slow bands are largest in the middle layers", OURS, "share of periods over 64 tokens: middle third over last", 1.0,
     lambda claims: slow_share(claims, 1) / slow_share(claims, 2)),
)  # fmt: skip
