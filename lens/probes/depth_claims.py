"""What has been said of depth that can go and of channels that carry the stream, measured on texts, beside the claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.stats
import xarray as xr

from lens.base.errors import InputError
from lens.collect import MomentParts
from lens.corpora import Document
from lens.models.model import Model
from lens.probes.block_influence import block_influence
from lens.probes.depth_curves import COUNTS, block_rankings, closest_pairs, depth_curves
from lens.probes.depth_edits import depth_edits
from lens.probes.hidden_dimensions import channel_cost, hidden_dimensions
from lens.probes.linearity import linearity
from lens.probes.shortcuts import fit_shortcuts
from lens.probes.verdict import judged

MEN, GROMOV = "Men et al., arXiv 2403.03853", "Gromov et al., arXiv 2403.17887"
LAD, PAINTERS = "Lad et al., arXiv 2406.19384", "Sun et al., arXiv 2407.09298"
FLATTEN, FUSE = "FlattenGPT, arXiv 2602.08858", "FuseGPT, arXiv 2411.14507"
LINEAR = "Razzhigaev et al., arXiv 2405.12250"
MASSIVE, MOHD = "Sun et al., arXiv 2402.17762", "MoHD, arXiv 2412.05644"
SOURCE = f"{MEN}, section 3; {GROMOV}, section 3; {LAD}; {PAINTERS}; {FLATTEN}; {LINEAR}; {FUSE}; {MASSIVE}; {MOHD}"
LLAMA_COST = float(np.log(18.45 / 5.47))  # nats by which Llama-2-7B got worse on WikiText-2 without 21 % of its weights
FLATTEN_GAIN = float(np.log(18.45 / 8.68))  # nats by which it got less bad with that share of its blocks merged
_FIFTH = 6  # of 30 blocks: the share that published runs take away


def depth_claims(
    model: Model,
    documents: Sequence[Document],
    calibration: Sequence[Document],
    *,
    moments: MomentParts | None = None,
    tokens: int = 128,
    counts: Sequence[int] = COUNTS,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Influence, edits of single blocks, curves of many, and channels, on the start of each document.

    Args:
        model: the model, which is given back as it was.
        documents: what everything is measured on; those with fewer tokens are left out.
        calibration: other documents, from which the orders of blocks are made.
        moments: of adjacent layers, for the maps that replace blocks and for the order by linearity; None leaves both out.
        tokens: of each document.
        counts: how many blocks are edited at once.
        check: called before every block of every run; raising from it stops the work.

    Returns:
        Dataset over `document` and what the probes have: all of `block_influence`, `depth_edits` (with `replaced` where there are
        moments), `depth_curves`, `hidden_dimensions` and `channel_cost`. Curves remove blocks by `block_rankings` and by
        `linearity`, replace them (`…, replaced`), or run pairs in parallel (`closest pairs, parallel`).

    Cost: about 120 half passes for SmolLM2's 30 blocks, 80 more for the curves, 30 for the orders, and 10.

    Raises:
        InputError: fewer than two documents of either kind that are long enough, or a document in both.
    """
    if {one.digest for one in documents} & {one.digest for one in calibration}:
        raise InputError(
            "A document is used for the order and for the loss", "two sets of documents", "corpus.part('validation')"
        )
    stand_ins = None if moments is None else fit_shortcuts(
        moments.train, validation=moments.validation, pairs=[pair for pair in moments.train.pairs if pair[1] == pair[0] + 1]
    ).stand_ins  # fmt: skip
    kinds = ("removed", "swapped", "parallel", *(() if stand_ins is None else ("replaced",)))
    curves = _curves(model, calibration, moments, tokens, max(counts), check)
    parts = [
        block_influence(model, documents, tokens=tokens, check=check),
        depth_edits(model, documents, kinds, stand_ins=stand_ins, tokens=tokens, check=check),
        depth_curves(model, documents, curves, counts=counts, stand_ins=stand_ins, tokens=tokens, check=check),
        hidden_dimensions(model, documents, tokens=tokens, check=check),
        channel_cost(model, documents, tokens=tokens, check=check).drop_vars("loss"),
    ]
    found = xr.merge(parts, combine_attrs="drop", compat="override", join="exact")
    return found.assign_attrs(source=SOURCE, probe="depth_claims", tokens=tokens, **model.provenance())


def _curves(
    model: Model,
    calibration: Sequence[Document],
    moments: MomentParts | None,
    tokens: int,
    most: int,
    check: Callable[[], None] | None,
) -> dict[str, tuple[str, list[tuple[int, ...]]]]:
    """By name the kind of edit and the groups of blocks, from the calibration documents."""
    influence = block_influence(model, calibration, tokens=tokens, check=check)
    removed = depth_edits(model, calibration, ("removed",), tokens=tokens, check=check)
    orders = block_rankings(influence, removed, random=2)
    if moments is not None:
        score = linearity(moments.train, moments.validation).score.to_numpy()
        orders["linearity"] = tuple(np.argsort(-score, kind="stable").tolist())
    curves = {name: ("removed", [(block,) for block in order]) for name, order in orders.items()}
    if moments is not None:
        for name in ("linearity", "block influence"):
            curves[f"{name}, replaced"] = ("replaced", [(block,) for block in orders[name]])
    pairs = closest_pairs(influence, _most_pairs(influence, most))
    return {**curves, "closest pairs, parallel": ("parallel", list(pairs))}


def _most_pairs(influence: xr.Dataset, wanted: int) -> int:
    """So many pairs, or as many as a greedy choice surely finds: each pair keeps at most three others away."""
    return min(wanted, max(1, influence.sizes["block"] // 3))


# -- verdicts -----------------------------------------------------------------------------------------------------------


def depth_verdicts(claims: xr.Dataset) -> list[dict[str, Any]]:
    """The claims beside what was measured, one row for each, with intervals over documents.

    Args:
        claims: from `depth_claims`.

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


def added(claims: xr.Dataset, kind: str) -> np.ndarray:
    """Nats that one edit adds to the loss of a document, by block; NaN where the edit was not made."""
    if kind not in claims.edit.to_numpy():
        return np.full(claims.sizes["block"], np.nan)
    return (claims.loss_after.sel(edit=kind) - claims.loss).to_numpy()


def middle(values: np.ndarray) -> float:
    """Mean over the blocks but the first two and the last two, where the edit exists."""
    return float(np.mean(values[2:-2]))


def curve_cost(claims: xr.Dataset, curve: str, count: int = _FIFTH) -> float:
    """Nats that so many edits of a curve add to the loss of a document; NaN where they were not made."""
    if curve not in claims.curve.to_numpy() or count not in claims.edits_made.to_numpy():
        return np.nan
    return float(claims.curve_loss.sel(curve=curve, edits_made=count) - claims.loss)


def random_cost(claims: xr.Dataset, count: int = _FIFTH) -> float:
    """The same for drawn orders, mean over them."""
    drawn = [name for name in claims.curve.to_numpy() if str(name).startswith("random")]
    return float(np.mean([curve_cost(claims, name, count) for name in drawn])) if drawn else np.nan


def agreement_of_ranks(claims: xr.Dataset, score: np.ndarray) -> float:
    """Spearman correlation over blocks of a score with what removing each block adds to the loss."""
    found: Any = scipy.stats.spearmanr(score, added(claims, "removed"))
    return float(found.statistic)


def influence(claims: xr.Dataset) -> np.ndarray:
    """Block influence as published, with the first token."""
    return claims.block_influence.sel(first_token="with").to_numpy()


def at_output(claims: xr.Dataset) -> np.ndarray:
    """Influence of each block at the output, when it is removed."""
    return claims.influence_at_output.sel(edit="removed").to_numpy()


def turns(claims: xr.Dataset) -> np.ndarray:
    """Angle in half turns between what enters and what leaves each block, at the last token."""
    return np.diagonal(claims.last_angular_distance.to_numpy(), 1)


def _halves(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second half of the blocks, the last one left out."""
    inner = values[:-1]
    return inner[: len(inner) // 2], inner[len(inner) // 2 :]


def _ends_over_middle(claims: xr.Dataset) -> float:
    cost = added(claims, "removed")
    return float(np.mean(cost[[0, 1, -1]]) - middle(cost))


def _kept(claims: xr.Dataset, kind: str) -> float:
    return middle((claims.accuracy_after.sel(edit=kind) / claims.accuracy).to_numpy())


def _massive_cost(claims: xr.Dataset, change: str) -> float:
    return float(claims.massive_loss.sel(change=change) - claims.loss)


_PUBLISHED: dict[str, str] = {
    "A fifth of the blocks can go as cheaply as in Llama-2-7B": f"{LLAMA_COST:.2f} nats, Llama-2-7B",
    "Without one middle block, 72 to 95 % of accuracy stay": "72 to 95 %",
    "With two middle neighbours swapped, 72 to 95 % stay, too": "72 to 95 %",
    "Merging pairs is cheaper than removing blocks": f"{FLATTEN_GAIN:.2f} nats, Llama-2-7B",
    "Three quarters of the active channels are shared": "three quarters",
}
_CLAIMS: tuple[tuple[str, str, str, float, Callable[[xr.Dataset], float]], ...] = (
    ("A fifth of the blocks can go as cheaply as in Llama-2-7B", MEN, "nats there less what 6 of 30 cost here", 0.0,
     lambda claims: LLAMA_COST - curve_cost(claims, "block influence")),
    ("Block influence tells what removing a block costs", MEN, "rank correlation over blocks", 0.5,
     lambda claims: agreement_of_ranks(claims, influence(claims))),
    ("The order by block influence is better than chance", MEN, "nats: six at random less six by influence", 0.0,
     lambda claims: random_cost(claims) - curve_cost(claims, "block influence")),
    ("Influence at the output tells more than block influence", FUSE, "rank correlation, less that of block influence", 0.0,
     lambda claims: agreement_of_ranks(claims, at_output(claims)) - agreement_of_ranks(claims, influence(claims))),
    ("Deeper blocks turn states less", GROMOV, "half turns: first half of the blocks less second", 0.0,
     lambda claims: float(np.subtract(*(half.mean() for half in _halves(turns(claims)))))),
    ("The very last block turns states most", GROMOV, "half turns: last block less largest of second half", 0.0,
     lambda claims: float(turns(claims)[-1] - _halves(turns(claims))[1].max())),
    ("Without healing, last blocks first is worse than by similarity", GROMOV, "nats: six last less six by influence", 0.0,
     lambda claims: curve_cost(claims, "last first") - curve_cost(claims, "block influence")),
    ("Without one middle block, 72 to 95 % of accuracy stay", LAD, "share of top-1 accuracy kept, mean over blocks", 0.72,
     lambda claims: _kept(claims, "removed")),
    ("With two middle neighbours swapped, 72 to 95 % stay, too", LAD, "share of top-1 accuracy kept, mean over blocks", 0.72,
     lambda claims: _kept(claims, "swapped")),
    ("First and last blocks matter most", LAD, "nats: blocks 0, 1 and last less middle ones", 0.0, _ends_over_middle),
    ("The order of middle blocks matters less than their presence", PAINTERS, "nats: one removed less two swapped", 0.0,
     lambda claims: middle(added(claims, "removed")) - middle(added(claims, "swapped"))),
    ("Two middle neighbours can read the same states", PAINTERS, "nats: one removed less two in parallel", 0.0,
     lambda claims: middle(added(claims, "removed")) - middle(added(claims, "parallel"))),
    ("Merging pairs is cheaper than removing blocks", FLATTEN, "nats: six removed less six pairs merged", 0.0,
     lambda claims: curve_cost(claims, "block influence") - curve_cost(claims, "closest pairs, parallel")),
    ("The two most linear blocks can be removed for nothing", LINEAR, "0.1 nats less what that costs", 0.0,
     lambda claims: 0.1 - curve_cost(claims, "linearity", 2)),
    ("The two most linear blocks can be replaced by maps for nothing", LINEAR, "0.1 nats less what that costs", 0.0,
     lambda claims: 0.1 - curve_cost(claims, "linearity, replaced", 2)),
    ("Some activations are massive: over 100, 1,000 times the median", MASSIVE, "layers with one, at the first token", 1.0,
     lambda claims: float((claims.massive_first > 0).sum())),
    ("Without massive activations a model breaks", MASSIVE, "nats that setting them to 0 adds", 1.0,
     lambda claims: _massive_cost(claims, "zero")),
    ("Massive activations do as well as constants", MASSIVE, "0.05 nats less what setting them to means adds", 0.0,
     lambda claims: 0.05 - _massive_cost(claims, "mean")),
    ("Three quarters of the active channels are shared", MOHD, "active over the window, of those with half of Σ|h|", 0.75,
     lambda claims: float(claims.shared_share.sel(share=0.5).mean())),
    ("Half the channels of a token do (trained to)", MOHD, "0.1 nats less what zeroing the smaller half adds", 0.0,
     lambda claims: 0.1 - float(claims.loss_kept.sel(kept=0.5) - claims.loss)),
)  # fmt: skip
