"""Whether attention is of low rank: how the singular values of patterns fall, and what the model loses when the small ones go.

Linformer rests on the first of these: on RoBERTa, "most of the information" of a 512 × 512 pattern lies in its first few
singular values, so that a rank of 128 should do. A large share in the first values is one thing, what the rest was good for
another: both are measured here. The truncation is the best there is for each pattern (Eckart and Young), better than any
projection that has to be fixed beforehand; but the model was not trained with it, and Linformer's was.

A causal model has a difficulty of its own. The best approximation of a pattern that knows no future gives weight to later
tokens, and through it the model sees the words that it is to predict. So everything is measured twice: as it comes, and
with the mask put on again, after which the rank is higher than the one asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from lens.base.errors import InputError
from lens.base.progress import Progress, Step, terminal_progress
from lens.corpora import Document
from lens.models.edits.attention import replace_attention
from lens.models.model import Model
from lens.models.operators import AttentionInput, LowRank, Softmax
from lens.probes.attention_what_if import LITTLE, Noting, cost_over, token_ids
from lens.probes.dataset import exact, texts, variable
from lens.probes.token_losses import token_losses
from lens.probes.verdict import judged

LINFORMER = "Wang et al., Linformer, arXiv 2006.04768"
SOURCE = f"{LINFORMER}, section 3 and Figure 1 (RoBERTa, 512 tokens, rank 128); best approximation: Eckart and Young, 1936"
PARTS = ("best", "masked")
NEARLY_ALL = 0.9
QUARTER = 4  # Linformer's rank of 128 is a quarter of its 512 tokens


def low_rank_attention(
    model: Model,
    documents: Sequence[Document] | Sequence[Sequence[int]],
    *,
    tokens: int = 128,
    ranks: Sequence[int] | None = None,
    blocks: Sequence[int] | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Singular values of all patterns, and the next-token loss with each pattern cut to its best approximation of a rank.

    Args:
        model: any family whose attention `lens.head_states` can see.
        documents: the first `tokens` of each are read; those with fewer are left out. Or lists of token ids of one length.
        tokens: of each document, and the side of its patterns.
        ranks: at which the loss is measured, increasing; by default 1, 4, a quarter of the tokens and half of them.
        blocks: whose patterns are looked at and cut; None for all.
        progress: callback in tokens, each read once for every measurement; by default a bar in a terminal.
        check: called before every block; raising from it stops, and leaves the model as it was.

    Returns:
        Dataset over `document`, `block`, `head`, `rank` (of the singular values, 1 to tokens), `kept` (the rank that patterns are
        cut to) and `part` (`best`; `masked`, the same with the causal mask put on again):

        - `singular_share[document, block, head, rank]`: the first singular values' share of the sum of all, which is what
          Linformer plots; `energy_share`, the same of their squares;
        - `uniform_singular_share`, `uniform_energy_share` over `[rank]`: those of a causal pattern without any choice;
        - `loss[document]` of the model as it is, `loss_after[part, kept, document]`, nats a token; `cost`, `cost_low`,
          `cost_high` over `[part, kept]`, the increase and its 95 % interval over documents;
        - `future[kept, document]`: mean absolute weight a row gives to later tokens, before the mask; `missing[part, kept,
          document]`, mean Frobenius norm of what a cut pattern lacks, as a part of the whole pattern's.

    Cost: one forward pass of all tokens and `O(tokens³)` a head for each part and rank, the decomposition being most of it.
    Memory: that of one block's patterns in float64, four times.

    Raises:
        InputError: ranks that are not, no such block, or fewer than two documents that are long enough.
        UnsupportedModelError: attention that cannot be replaced.
    """
    wanted = _ranks(ranks, tokens)
    texts_read = token_ids(model, documents, tokens)
    cases = [(part, rank) for part in PARTS for rank in wanted]
    total, done = tokens * len(texts_read) * (1 + len(cases)), 0
    own, spectra = np.empty(len(texts_read)), []
    after, missing, future = (np.empty((len(PARTS), len(wanted), len(texts_read))) for _ in range(3))
    with terminal_progress() as bar:

        def report() -> None:
            nonlocal done
            done += tokens
            (progress or bar)(Step(done, total, "tokens", "cutting ranks"))

        for column, ids in enumerate(texts_read):
            own[column] = token_losses(model, ids, check).mean()
            spectra.append(_spectra(model, ids, blocks, check))
            report()
            for place, (part, rank) in enumerate(cases):
                row = divmod(place, len(wanted))
                found = _cut(model, ids, rank, part == "masked", blocks, check)
                after[(*row, column)], missing[(*row, column)], future[(*row, column)] = found
                report()
    singular = np.stack(spectra)
    shown = range(model.n_layers) if blocks is None else blocks
    cost = [cost_over(one, own) for one in after]
    labels = ("increase of the loss", "lower end of the 95 % interval", "upper end of the 95 % interval")
    costs = {
        name: variable(("part", "kept"), np.stack([one[place] for one in cost]), label, "nats")
        for place, (name, label) in enumerate(zip(("cost", "cost_low", "cost_high"), labels, strict=True))
    }
    heads = ("document", "block", "head", "rank")
    return xr.Dataset(
        {
            "singular_share": variable(heads, _shares(singular), "share of the sum of singular values"),
            "energy_share": variable(heads, _shares(singular**2), "share of the sum of their squares"),
            **_uniform(tokens),
            "loss": variable(("document",), own, "next-token loss", "nats"),
            "loss_after": variable(("part", "kept", "document"), after, "next-token loss with patterns cut", "nats"),
            **costs,
            "future": variable(("kept", "document"), future[0], "absolute weight on later tokens, mean over rows"),
            "missing": variable(("part", "kept", "document"), missing, "norm of what is cut, over that of the pattern"),
        },
        {
            "document": variable(("document",), np.arange(len(texts_read)), "document, in the order given"),
            "block": variable(("block",), np.array(shown), "block"),
            "head": variable(("head",), np.arange(singular.shape[2]), "head"),
            "rank": variable(("rank",), np.arange(1, tokens + 1), "number of singular values"),
            "kept": variable(("kept",), np.array(wanted), "rank that patterns are cut to"),
            "part": texts(("part",), list(PARTS), "best approximation, or that with the causal mask put on again"),
        },
        {"source": SOURCE, "probe": "low_rank_attention", "tokens": tokens, "documents": len(texts_read), **model.provenance()},
    )


def _ranks(ranks: Sequence[int] | None, tokens: int) -> list[int]:
    wanted = sorted({1, min(4, tokens), max(1, tokens // QUARTER), max(1, tokens // 2)}) if ranks is None else [*ranks]
    if not wanted or sorted(set(wanted)) != wanted or not 1 <= wanted[0] <= wanted[-1] <= tokens:
        raise InputError(f"The ranks are {wanted}", f"some of 1 to {tokens}, increasing", "ranks=(1, 8, 32)")
    return wanted


def _spectra(model: Model, ids: Sequence[int], blocks: Sequence[int] | None, check: Callable[[], None] | None) -> np.ndarray:
    """Singular values `[block, head, rank]` of the model's own patterns."""
    noting = Noting(Softmax(), lambda patterns, _: {"singular": torch.linalg.svdvals(patterns).numpy()})
    _run(model, ids, noting, blocks, check)
    return np.stack([one["singular"] for one in noting.taken])


def _cut(
    model: Model, ids: Sequence[int], rank: int, masked: bool, blocks: Sequence[int] | None, check: Callable[[], None] | None
) -> tuple[float, float, float]:
    """Mean loss, mean relative norm of what is cut, and mean weight on later tokens.

    An edit by itself refuses a cut that lets a query see later keys. What that is worth is part of what is measured here.
    """
    noting = Noting(LowRank(rank, masked), _left)
    loss = _run(model, ids, noting, blocks, check)
    missing, future = (float(np.mean([one[name] for one in noting.taken])) for name in ("missing", "future"))
    return loss, missing, future


def _run(
    model: Model, ids: Sequence[int], noting: Noting, blocks: Sequence[int] | None, check: Callable[[], None] | None
) -> float:
    with replace_attention(model, noting, blocks=blocks):
        noting.taken.clear()
        return float(token_losses(model, ids, check).mean())


def _left(patterns: Tensor, given: AttentionInput) -> dict[str, np.ndarray]:
    """Of cut patterns `[head, query, key]`: what they give to later tokens, and what they lack of the whole ones."""
    whole = Softmax()(given).reshape(patterns.shape).to(patterns)
    lost = torch.linalg.matrix_norm(patterns - whole) / torch.linalg.matrix_norm(whole)
    hidden = patterns.masked_fill(given.seen.reshape(patterns.shape[1:]), 0.0)
    return {"missing": lost.numpy(), "future": hidden.abs().sum(-1).mean(-1).numpy()}


def _shares(values: np.ndarray) -> np.ndarray:
    return np.cumsum(values, axis=-1) / values.sum(-1, keepdims=True)


def _uniform(tokens: int) -> dict[str, xr.Variable]:
    singular = np.linalg.svd(np.tril(np.ones((tokens, tokens))) / np.arange(1, tokens + 1)[:, None], compute_uv=False)
    return {
        "uniform_singular_share": exact(("rank",), _shares(singular), "share of uniform causal attention"),
        "uniform_energy_share": exact(("rank",), _shares(singular**2), "share of the squares, uniform causal attention"),
    }


# -- verdicts -------------------------------------------------------------------------------------


def low_rank_verdicts(found: xr.Dataset) -> list[dict[str, Any]]:
    """Linformer's claim beside what was measured, with intervals over documents.

    Args:
        found: from `low_rank_attention`, with a quarter of the tokens among its ranks.

    Returns:
        Rows of `claim`, `source`, `measured` (what the number is), `published`, `threshold` (from which the claim holds; ours:
        the paper plots curves and says "most", half by the letter, nine tenths if little is to be missed), `value`, `low`,
        `high` (95 %) and `verdict`.

    Raises:
        InputError: no measurement at a quarter of the tokens.
    """
    rank = max(1, int(found.attrs["tokens"]) // QUARTER)
    if rank not in found.kept:
        raise InputError(f"The ranks are {found.kept.to_numpy().tolist()}", f"{rank} among them", "ranks=None")
    figure, task = f"{LINFORMER}, Figure 1", f"{LINFORMER}, sections 3 and 5"
    there, first = "rank 128 of 512", f"share of the first {rank} of {found.attrs['tokens']}, mean over heads"
    share = found.singular_share.sel(rank=rank)
    blocks = found.sizes["block"]
    third = max(1, blocks // 3)
    later = share.isel(block=slice(blocks - third, None)).mean(("block", "head"))
    earlier = share.isel(block=slice(third)).mean(("block", "head"))
    cost = (found.loss_after - found.loss).sel(kept=rank)
    rows = [
        ("Most of a pattern lies in a quarter of its singular values", figure,
         first, there, 0.5,
         share.mean(("block", "head"))),
        ("Nearly all of a pattern lies in that quarter", figure, first, "", NEARLY_ALL, share.mean(("block", "head"))),
        ("More of a pattern than in attention that chooses nothing", "ours",
         f"{first}, less that of uniform attention", "", 0.0,
         share.mean(("block", "head")) - float(found.uniform_singular_share.sel(rank=rank))),
        ("Later layers are of lower rank", figure, "share in the last third of the blocks less that in the first", "", 0.0,
         later - earlier),
        (f"A quarter of the rank does as well, to {LITTLE} nats: as it comes", task, "loss less the loss at that rank",
         there, -LITTLE, -cost.sel(part="best")),
        (f"A quarter of the rank does as well, to {LITTLE} nats: mask put on again", task, "loss less the loss at that rank",
         there, -LITTLE, -cost.sel(part="masked")),
    ]  # fmt: skip
    return [
        {"claim": claim, "source": source, "measured": measured, "published": published, "threshold": threshold,
         **judged(values.to_numpy().tolist(), threshold)}
        for claim, source, measured, published, threshold, values in rows
    ]  # fmt: skip
