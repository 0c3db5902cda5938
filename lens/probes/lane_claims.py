"""What has been said of lanes, measured on a model: every head on several documents, and the claims beside the numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.probes.band_entropy import lane_entropy
from lens.probes.dataset import exact, variable
from lens.probes.lanes import first_key_lead, head_lanes, lane_usage, rotating_blocks, stacked
from lens.probes.positional_kernel import (
    all_logits,
    diagonal_score,
    explained_variance,
    mean_field_kernel,
    order_of_keys,
    powers_below,
    previous_token_score,
    rebased,
)
from lens.probes.verdict import judged

BARBERO, DU, DOPE = "Barbero et al., arXiv 2410.06205", "Du et al., arXiv 2605.15514", "DoPE, arXiv 2511.09146"
SOURCE = f"{BARBERO}, section 4 (Gemma-7B); {DU}; {DOPE}"
FACTORS = (0.01, 1.0, 100.0)  # of the trained base, at which the order of keys is asked for


def lane_claims(
    model: Model,
    documents: Sequence[Document],
    *,
    tokens: int = 256,
    draws: int = 1_000,
    seed: int = 0,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Lane usage, positional patterns, kernels, order of keys and entropies of every head, on the start of each document.

    Args:
        model: with rotary position embeddings.
        documents: those with fewer tokens are left out.
        tokens: of each document; its first token is left out of all means.
        draws: of contents, for each head and base.
        seed: of the draws.
        check: called before every block of every document; raising from it stops the work.

    Returns:
        Dataset over `document`, `block`, `head` and `lane` (coordinates `wavelength`, `band`):

        - `query_amplitude`, `key_amplitude`, `first_key_amplitude`, `joint_share` `[document, block, head, lane]`, and
          `fast_share`, `slow_share` `[document, block, head]`, as `lane_usage` has them;
        - `previous_token`, `diagonal`, `first_token` `[document, block, head]`: mean attention to the token before, to the token
          itself, and to the first;
        - `first_key_lead[document, block, head, lane]`: by how much each lane lifts the first key's logit above the others';
        - `kernel_share`, `offset_share`, `residual_fraction` `[document, block, head]`, as in `positional_kernel`;
        - `far_beats_near`, `flipped` `[document, block, head, base, distance]` and `far_beats_near_mean[document, block, head,
          base]`, as in `key_order`, with the base of this block alone changed: a multiple of the trained one (see `rebased`);
        - `entropy[document, block, head, lane]` of the rotated keys that the head reads, in nats.

    Memory: the states of one document, `blocks · tokens · (heads + 2 · kv_heads) · width` float32. Cost: about 5 s a document
    of 128 tokens for SmolLM2-135M on one core.

    Raises:
        InputError: fewer than two documents that are long enough. UnsupportedModelError: a model that rotates nothing.
    """
    context = model.context or tokens
    chosen = [ids for ids in (model.encode_bare(document.text)[:tokens] for document in documents) if len(ids) == tokens]
    if len(chosen) < 2:
        raise InputError(f"{len(chosen)} documents of {tokens} tokens", "at least 2", "tokens=128, or more documents")
    rows = []
    for number, ids in enumerate(chosen):
        states = rotating_blocks(head_states(model, ids, check=check))
        generators = np.random.default_rng((seed, number)).spawn(len(states))
        rows.append(_document(states, context, draws, generators, check))
    found = xr.concat(rows, "document", combine_attrs="override")
    facts = {"source": SOURCE, "probe": "lane_claims", "tokens": tokens, "draws": draws, "seed": seed, "context": context}
    return found.assign_attrs(**facts, **model.provenance())


def _document(
    states: Sequence[HeadStates],
    context: int,
    draws: int,
    generators: Sequence[np.random.Generator],
    check: Callable[[], None] | None,
) -> xr.Dataset:
    usage = lane_usage(states, context=context)
    usage = usage[["query_amplitude", "key_amplitude", "first_key_amplitude", "joint_share", "fast_share", "slow_share"]]
    blocks = []
    for block, generator in zip(states, generators, strict=True):
        if check is not None:
            check()
        heads = [_head(block, head, context, draws, generator) for head in range(len(block.query))]
        entropy = lane_entropy(block.key_lanes()[:, 1:], block.theta)[usage.kv_head.to_numpy()]
        blocks.append({"entropy": entropy, **{name: np.stack([one[name] for one in heads]) for name in heads[0]}})
    columns = {name: (stacked if _DIMS.get(name) == ("lane",) else np.stack)([one[name] for one in blocks]) for name in blocks[0]}
    found = {name: variable(("block", "head", *_DIMS.get(name, ())), columns[name], *label) for name, label in _LABELS.items()}
    coordinates = {
        "base": exact(("base",), np.array(FACTORS), "base of this block, as a multiple of the trained one"),
        "distance": variable(("distance",), powers_below(context), "tokens from the key to the query", "tokens"),
    }
    return usage.assign(found).assign_coords(coordinates)


_LABELS = {
    "previous_token": ("mean attention to the token before", "1"),
    "diagonal": ("mean attention to the token itself", "1"),
    "first_token": ("mean attention to the first token", "1"),
    "first_key_lead": ("lead of the first key over the others, from one lane", "1"),
    "kernel_share": ("variance of the logits that the mean-field kernel explains", "1"),
    "offset_share": ("variance of the logits that the best function of distance explains", "1"),
    "residual_fraction": ("1 − Var(kernel)/Var(logit)", "1"),
    "far_beats_near": ("probability that a key at the distance beats a near one", "1"),
    "far_beats_near_mean": ("probability that a key beyond half of the context beats a near one", "1"),
    "flipped": ("probability that the distance turns the order of two keys over", "1"),
    "entropy": ("entropy of the lane's rotated keys", "nats"),
}
_DIMS = {
    **dict.fromkeys(("first_key_lead", "entropy"), ("lane",)),
    **dict.fromkeys(("far_beats_near", "flipped"), ("base", "distance")),
    "far_beats_near_mean": ("base",),
}


def _head(states: HeadStates, head: int, context: int, draws: int, generator: np.random.Generator) -> dict[str, Any]:
    """One head's numbers, by the names of `_LABELS`."""
    whole = head_lanes(states, head)
    lanes = whole.after(1)
    pattern = np.asarray(states.pattern(head))
    share = explained_variance(all_logits(lanes), mean_field_kernel(lanes), lanes.window)
    orders = []
    for factor in FACTORS:
        turned = lanes.turned(rebased(states.theta, factor))
        orders.append(order_of_keys(turned, context, powers_below(context), draws, generator))
    return {
        "previous_token": previous_token_score(pattern),
        "diagonal": diagonal_score(pattern),
        "first_token": pattern[1:, 0].mean(),
        "first_key_lead": first_key_lead(whole)[: whole.rotary],
        "kernel_share": share.kernel,
        "offset_share": share.offset,
        "residual_fraction": 1 - share.kernel_variance,
        "far_beats_near": np.stack([order.far_beats_near for order in orders]),
        "far_beats_near_mean": np.array([order.mean for order in orders]),
        "flipped": np.stack([order.flipped for order in orders]),
    }


# -- verdicts -----------------------------------------------------------------------------------------------------------


def lane_verdicts(claims: xr.Dataset) -> list[dict[str, Any]]:
    """The claims beside what was measured, one row for each, with intervals over documents, one model's heads as they are.

    Args:
        claims: from `lane_claims`.

    Returns:
        Rows of `claim`, `source`, `measured` (what the number is), `published` (what the source says of it, None where nothing is
        known), `threshold` (from which the claim holds; ours, for the papers give none), `value` (mean over documents), `low`,
        `high` (95 %) and `verdict` (`holds`, `fails`, `open`, or `untested` where the model has no lane or head of the kind).
    """
    documents = [claims.isel(document=number) for number in range(claims.sizes["document"])]
    return [
        {"claim": claim, "source": source, "measured": measured, "published": _PUBLISHED.get(source), "threshold": threshold,
         **judged([statistic(document) for document in documents], threshold)}
        for claim, source, measured, threshold, statistic in _CLAIMS
    ]  # fmt: skip


def lane_numbers(claims: xr.Dataset) -> dict[str, Any]:
    """What is known of a model's lanes beside the claims: means over documents, quartiles over heads, three digits."""
    mean = claims.mean("document", keep_attrs=True)
    quartiles = {
        name: [round(float(one), 3) for one in mean[name].quantile([0.25, 0.5, 0.75])]
        for name in ("fast_share", "slow_share", "kernel_share", "offset_share", "residual_fraction")
    }
    by_base = {
        name: {f"{base:g}": round(float(of.sel(base=base).mean()), 3) for base in mean.base.to_numpy()}
        for name, of in (("far_beats_near", mean.far_beats_near_mean), ("flipped", mean.flipped.isel(distance=-1)))
    }
    entropy = mean.entropy.mean("head")
    bands = [band for band in ("fast", "middle", "slow") if (mean.band == band).any()]
    lead = mean.first_key_lead.where(mean.first_token > 0.5)
    return {
        "documents": claims.sizes["document"],
        "quartiles": quartiles,
        "by_base": by_base,
        "entropy": {band: round(float(entropy.where(mean.band == band).mean()), 3) for band in bands},
        "sink_heads": round(float((mean.first_token > 0.5).mean()), 3),
        "first_key_lead": {
            band: round(float(lead.where(mean.band == band).sum("lane", min_count=1).mean()), 3) for band in bands
        },
    }


def slow_to_other(claims: xr.Dataset, side: str) -> float:
    """Mean amplitude of slow lanes over that of all others, `query` or `key`, over all blocks and heads."""
    amplitude = claims[f"{side}_amplitude"].mean("head")
    slow = claims.band == "slow"
    return float(amplitude.where(slow).mean() / amplitude.where(~slow).mean())


def slow_strongest(claims: xr.Dataset) -> float:
    """Share of the heads whose largest joint share is a slow lane's."""
    slow = (claims.band == "slow").to_numpy()[:, None]
    largest = np.nanargmax(claims.joint_share.to_numpy(), axis=-1)
    return float(np.take_along_axis(slow, largest[..., None], -1).mean())


def slow_lead(claims: xr.Dataset) -> float:
    """Share of the first key's lead that slow lanes make, over the heads that give the first token more than half.

    Above 1 where the other lanes take away from it; NaN where no head gives so much.
    """
    lead = claims.first_key_lead.where(claims.first_token > 0.5)
    return (
        float(lead.where(claims.band == "slow", 0.0).where(lead.notnull()).sum() / lead.sum()) if lead.notnull().any() else np.nan
    )


def head_correlation(claims: xr.Dataset, one: str, other: str) -> float:
    """Spearman's rank correlation of two numbers over all heads of all blocks."""
    found: Any = scipy.stats.spearmanr(claims[one].to_numpy().ravel(), claims[other].to_numpy().ravel())
    return float(found.statistic)


def fast_among_positional(claims: xr.Dataset, heads: int = 10) -> float:
    """Share of the heads with the highest previous-token score that are among the tenth with the largest fast share."""
    score, share = claims.previous_token.to_numpy().ravel(), claims.fast_share.to_numpy().ravel()
    return float((share[np.argsort(-score)[:heads]] >= np.quantile(share, 0.9)).mean())


def fast_in_fifth(claims: xr.Dataset, fifth: int, heads: int = 10) -> float:
    """Share of the heads with the largest fast share that sit in one fifth of the blocks, 0 the first; 0.2 by chance."""
    blocks = np.argsort(-claims.fast_share.to_numpy().ravel())[:heads] // claims.sizes["head"]
    return float((blocks * 5 // claims.sizes["block"] == fifth).mean())


def _rise(found: xr.DataArray, one: int, other: int) -> float:
    """From one base to another, by their places in `FACTORS`, of the mean over heads."""
    means = found.mean(("block", "head"))
    return float(means.isel(base=other) - means.isel(base=one))


def _entropy_gap(claims: xr.Dataset) -> float:
    mean = claims.entropy.mean("head")
    return float(mean.where(claims.band == "fast").mean() - mean.where(claims.band == "slow").mean())


_PUBLISHED = {BARBERO: "so on Gemma-7B"}  # no figures, by the text of the paper
_CLAIMS: tuple[tuple[str, str, str, float, Callable[[xr.Dataset], float]], ...] = (
    ("Slow lanes carry the largest norms on average: queries", BARBERO, "slow lanes over all others", 1.0,
     lambda claims: slow_to_other(claims, "query")),
    ("Slow lanes carry the largest norms on average: keys", BARBERO, "slow lanes over all others", 1.0,
     lambda claims: slow_to_other(claims, "key")),
    ("The strongest lane of a head is a slow one", BARBERO, "share of the heads", 0.5, slow_strongest),
    ("Slow lanes make the first token a sink", "ours",
     "their share of the first key's lead, heads that give it over half", 0.5, slow_lead),
    ("Heads that load the fast lanes attend to the token before", BARBERO, "rank correlation over heads", 0.5,
     lambda claims: head_correlation(claims, "fast_share", "previous_token")),
    ("Heads that load the fast lanes attend to the token itself", BARBERO, "rank correlation over heads", 0.5,
     lambda claims: head_correlation(claims, "fast_share", "diagonal")),
    ("Previous-token heads are fast-lane heads", BARBERO, "share of the ten strongest in the fastest tenth", 0.5,
     fast_among_positional),
    ("Fast-lane heads sit in the first layers", BARBERO, "share of the ten fastest in the first fifth; 0.2 by chance", 0.2,
     lambda claims: fast_in_fifth(claims, 0)),
    ("Fast-lane heads sit in the last layers", BARBERO, "share of the ten fastest in the last fifth; 0.2 by chance", 0.2,
     lambda claims: fast_in_fifth(claims, 4)),
    ("A larger base turns the order of keys over less", DU, "fall of the probability, base × 0.01 to × 100", 0.0,
     lambda claims: -_rise(claims.flipped.isel(distance=-1), 0, 2)),
    ("A larger base lets a far key beat a near one more often", DU, "rise of the probability, base × 1 to × 100", 0.0,
     lambda claims: _rise(claims.far_beats_near_mean, 1, 2)),
    ("A smaller base lets a far key beat a near one less often", DU, "fall of the probability, base × 1 to × 0.01", 0.0,
     lambda claims: _rise(claims.far_beats_near_mean, 0, 1)),
    ("Slow lanes are the coherent ones", DOPE, "entropy of fast less that of slow lanes (nats)", 0.0, _entropy_gap),
)  # fmt: skip
