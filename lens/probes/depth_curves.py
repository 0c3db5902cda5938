"""Loss as more and more blocks go, in the order of one ranking or another, and as neighbours are merged pair by pair.

Sources: Men et al. (arXiv 2403.03853), section 3.2, blocks with the lowest influence first; Gromov et al. (arXiv 2403.17887),
section 4.4, the last blocks first but for the very last; Razzhigaev et al. (arXiv 2405.12250), section 4.3, the most linear
first, and replaced; FlattenGPT (arXiv 2602.08858), the most similar neighbours in parallel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import xarray as xr

from lens.base.errors import InputError
from lens.corpora import Document
from lens.models.edits import StandIn
from lens.models.model import Model
from lens.probes.block_influence import long_enough
from lens.probes.dataset import texts, variable
from lens.probes.depth_edits import DepthEdit, EditedTexts

SOURCE = "arXiv 2403.03853, section 3.2; arXiv 2403.17887, section 4.4; arXiv 2405.12250, section 4.3; arXiv 2602.08858"
COUNTS = (1, 2, 4, 6, 8, 12, 15)


def block_rankings(influence: xr.Dataset, edits: xr.Dataset, *, random: int = 3, seed: int = 0) -> dict[str, tuple[int, ...]]:
    """Orders in which blocks can go, the cheapest first, from measures of other texts than those they are tried on.

    Args:
        influence: from `block_influence`.
        edits: from `depth_edits`, of the same documents, `removed` among its edits.
        random: how many drawn orders.
        seed: of them.

    Returns:
        By name the blocks: `block influence`, `influence at output`, `loss when removed`, `last first` (all but the very last
        one, which comes at the end), and `random 1`, `random 2`, …
    """
    removed = edits.sel(edit="removed").mean("document")
    scores = {
        "block influence": influence.block_influence.sel(first_token="with").mean("document"),
        "influence at output": removed.influence_at_output,
        "loss when removed": removed.loss_after,
    }
    orders = {name: tuple(np.argsort(score.to_numpy(), kind="stable").tolist()) for name, score in scores.items()}
    blocks = influence.sizes["block"]
    orders["last first"] = (*range(blocks - 2, -1, -1), blocks - 1)
    generator = np.random.default_rng(seed)
    return orders | {f"random {n + 1}": tuple(generator.permutation(blocks).tolist()) for n in range(random)}


def closest_pairs(influence: xr.Dataset, pairs: int) -> tuple[tuple[int, int], ...]:
    """Neighbours that can run in parallel, the most similar ones first, no block twice.

    A pair is as similar as its first block has little influence: the less this one turns states, the less it matters to the
    second one that it reads those before. Greedy, as FlattenGPT's choice.

    Args:
        influence: from `block_influence`.
        pairs: how many.

    Raises:
        InputError: more pairs than there are.
    """
    blocks = influence.sizes["block"]
    turned = influence.angular_distance.mean("document").to_numpy()
    wanted = sorted(range(blocks - 1), key=lambda block: float(turned[block, block + 1]))
    chosen: list[tuple[int, int]] = []
    for block in wanted:
        if not any(block in pair or block + 1 in pair for pair in chosen) and len(chosen) < pairs:
            chosen.append((block, block + 1))
    if len(chosen) < pairs:
        raise InputError(f"{pairs} pairs of {blocks} blocks", f"at most {len(chosen)} can be found in this order", "fewer pairs")
    return tuple(chosen)


def depth_curves(
    model: Model,
    documents: Sequence[Document],
    curves: Mapping[str, tuple[str, Sequence[Sequence[int]]]],
    *,
    counts: Sequence[int] = COUNTS,
    stand_ins: Mapping[int, StandIn] | None = None,
    tokens: int = 128,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Loss and KL when the first edit of each curve is made, the first two, and so on.

    Args:
        model: the model, which is given back as it was.
        documents: those with fewer tokens are left out.
        curves: by name the kind of edit, and the groups of blocks that are edited one after the other: single blocks to remove or
            replace, pairs to run in parallel.
        counts: how many edits at once; a curve with fewer groups is NaN beyond.
        stand_ins: block to its map, where a curve replaces blocks.
        tokens: of each document.
        check: called before every block of every run; raising from it stops the work.

    Returns:
        Dataset over `curve`, `edits_made`, `document`: `curve_loss`, `curve_kl`, `curve_accuracy`, and `loss`, `accuracy` of the
        model itself over `[document]`; `kind[curve]`, and `order[curve]` in words. With `edits_made` blocks removed, or pairs
        merged, the model is that many blocks shallower.

    Cost: one run for each curve and count, from the first edited block on, and the read-out.

    Raises:
        InputError: no curve, counts below 1, and what `depth_edits` refuses.
    """
    if not curves or not counts or min(counts) < 1:
        raise InputError(f"{len(curves)} curves, counts {list(counts)}", "a curve, and counts of 1 or more", "counts=(1, 2, 4)")
    read = EditedTexts(model, long_enough(model, documents, tokens), stand_ins, check)
    shape = (len(curves), len(counts), len(read.ids))
    found = {name: np.full(shape, np.nan) for name in ("loss", "kl", "accuracy")}
    own: dict[str, np.ndarray] = {}
    for row, (kind, groups) in enumerate(curves.values()):
        edits = [DepthEdit(kind, tuple(sorted(int(block) for block in group))) for group in groups]
        reached = [place for place, count in enumerate(counts) if count <= len(edits)]
        measured = read.measures([read.last_state(edits[: counts[place]]) for place in reached])
        own = {name: measured[name][-1] for name in found}
        for name, values in found.items():
            values[row, reached] = measured[name][:-1]
    dims, names = ("curve", "edits_made", "document"), list(curves)
    orders = [", ".join("+".join(map(str, group)) for group in groups) for _, groups in curves.values()]
    return xr.Dataset(
        {
            "curve_loss": variable(dims, found["loss"], "next-token loss", "nats"),
            "curve_kl": variable(dims, found["kl"], "KL(model‖edited model)", "nats"),
            "curve_accuracy": variable(dims, found["accuracy"], "share of next tokens that are the most probable ones"),
            "loss": variable(("document",), own["loss"], "next-token loss of the model itself", "nats"),
            "accuracy": variable(("document",), own["accuracy"], "share of next tokens that the model puts first"),
            "kind": texts(("curve",), [kind for kind, _ in curves.values()], "edit"),
            "order": texts(("curve",), orders, "blocks in the order of the edits"),
        },
        coords={
            "curve": texts(("curve",), names, "by what the order is made"),
            "edits_made": variable(("edits_made",), np.array(list(counts)), "number of edits at once"),
        },
        attrs={"source": SOURCE, "probe": "depth_curves", "tokens": tokens, **model.provenance()},
    )
