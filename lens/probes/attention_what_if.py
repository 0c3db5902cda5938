"""What a running model loses when its attention is computed in another way, in all blocks or in one.

The model was trained with its softmax, so that what is measured is how far it leans on it: not what a model that was trained
with the other operator could do. An operator that costs little here is one that the model hardly needs to be told from its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from lens.models.operators import AttentionInput, Operator, Softmax
from lens.probes.dataset import texts, variable
from lens.probes.singular_values import rank_measures
from lens.probes.token_losses import token_losses
from lens.probes.verdict import document_interval, verdict

SOURCE = (
    "operators: arXiv 2501.13428 (LSSA), 2311.13541 (LLN), 2205.13401 (URPE), 2108.12409 (ALiBi); fixed mixers in the place of "
    "attention: Tay et al., arXiv 2005.00743, who train with them"
)
TRAINED = "as trained"
SCOPES = (TRAINED, "this head", "this block", "all blocks")
MEASURES: dict[str, tuple[str, str]] = {
    "mean_entropy": ("mean entropy of a query's attention", "nats"),
    "first_token": ("attention to the first token", "1"),
    "previous_token": ("attention to the token before", "1"),
    "effective_rank": ("effective rank of a head's pattern", "1"),
}
"""What heads are measured by under each operator, means over the heads of the edited blocks."""

LITTLE = 0.1  # nats a token that count as no loss; ours


def attention_what_if(
    model: Model,
    documents: Sequence[Document] | Sequence[Sequence[int]],
    operators: Mapping[str, Operator],
    *,
    tokens: int = 128,
    blocks: Sequence[int] | None = None,
    patterns: int = 1,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Next-token loss and what heads look at, with the attention of all or some blocks replaced, beside the model's own.

    Args:
        model: any family whose attention `lens.head_states` can see.
        documents: the first `tokens` of each are read; those with fewer are left out. Or lists of token ids of one length.
        operators: names and operators, each of which replaces the softmax of all heads of the blocks.
        tokens: of each document; the last one has no next token and is not scored.
        blocks: which; None for all.
        patterns: of how many documents the attention is looked at; 0 leaves it out.
        progress: callback in tokens, each read once for every operator; by default a bar in a terminal.
        check: called before every block; raising from it stops, and leaves the model as it was.

    Returns:
        Dataset over `operator`, whose first row is the model as trained, and `document`; in nats per token

        - `loss` over `[operator, document]`: mean −log p of the next token; `mean_loss` over `[operator]`;
        - `cost`, `cost_low`, `cost_high` over `[operator]`: mean of the loss less the trained model's, and its 95 % interval
          over documents;
        - with `patterns`, each of `MEASURES` over `[operator]`, means over the heads of the edited blocks, all queries but the
          first (ranks: all) and these documents; shares are NaN for an operator whose weights are negative.

    Cost: one forward pass of all tokens for each operator, and `O(tokens³)` a head for its ranks. Memory: that of
    `lens.models.edits.replace_attention`.

    Raises:
        InputError: no operator, one named like the trained row, or fewer than two documents that are long enough.
        UnsupportedModelError: attention that cannot be replaced.
    """
    if not operators or TRAINED in operators:
        found = f"The operators are {', '.join(operators) or 'none'}"
        raise InputError(found, f"one or more, none of them named {TRAINED!r}", "{'cold': Softmax(temperature=0.5)}")
    cases = [_Case(TRAINED, None, blocks), *(_Case(name, operator, blocks) for name, operator in operators.items())]
    found = _measure(model, token_ids(model, documents, tokens), cases, patterns, progress, check)
    names = texts(("operator",), [case.name for case in cases], "what the attention was computed by")
    settings = ["the model's own", *(repr(operator) for operator in operators.values())]
    facts = {"probe": "attention_what_if", "blocks": "all" if blocks is None else ", ".join(map(str, blocks))}
    coords = {"operator": names, "settings": texts(("operator",), settings, "operator with its parameters")}
    return _dataset(found, "operator", coords).assign_attrs(**facts, tokens=tokens, **model.provenance())


def attention_what_if_blocks(
    model: Model,
    documents: Sequence[Document] | Sequence[Sequence[int]],
    operator: Operator,
    *,
    tokens: int = 128,
    blocks: Sequence[int] | None = None,
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Next-token loss with the attention of one block at a time replaced: where the model leans on its own.

    Args:
        operator: replaces the softmax of all heads of the block.
        blocks: which, one after the other; None for all.
        model, documents, tokens, progress, check: see `attention_what_if`.

    Returns:
        Dataset over `block` and `document` in nats per token: `loss[document]` of the model as trained, `loss_after[block,
        document]`, and `cost`, `cost_low`, `cost_high` over `[block]` as in `attention_what_if`.

    Raises:
        InputError: no such block, and what `attention_what_if` refuses.
    """
    wanted = list(range(model.n_layers)) if blocks is None else [int(block) for block in blocks]
    if not wanted or sorted(set(wanted)) != wanted or not 0 <= wanted[0] <= wanted[-1] < model.n_layers:
        raise InputError(f"The blocks are {wanted}", f"some of 0 to {model.n_layers - 1}, increasing", "blocks=None, for all")
    cases = [_Case(TRAINED, None, None), *(_Case(str(block), operator, (block,)) for block in wanted)]
    found = _measure(model, token_ids(model, documents, tokens), cases, 0, progress, check)
    axis = variable(("block",), np.array([-1, *wanted]), "block whose attention was replaced")
    result = _dataset(found, "block", {"block": axis})
    facts = {"probe": "attention_what_if_blocks", "operator": repr(operator), "tokens": tokens}
    after = result.isel(block=slice(1, None)).rename(loss="loss_after").drop_vars("mean_loss")
    return after.assign(loss=result.loss.isel(block=0, drop=True)).assign_attrs(**facts, **model.provenance())


def attention_what_if_text(
    model: Model,
    ids: Sequence[int],
    operator: Operator,
    block: int,
    head: int,
    *,
    check: Callable[[], None] | None = None,
) -> xr.Dataset:
    """Next-token loss of one text with one head, its whole block, and all blocks computed by an operator.

    Args:
        ids: token ids, two at least.
        block, head: the head, for the first of the three.
        model, operator, check: see `attention_what_if`.

    Returns:
        Dataset over `scope` (`SCOPES`) and `position`: `token_loss[scope, position]`, −log p of the token after the position, and
        its mean `loss[scope]`, in nats. One text has no interval.

    Raises:
        InputError: no such block or head, fewer than two tokens. UnsupportedModelError: attention that cannot be replaced.
    """
    if len(ids) < 2:
        raise InputError(f"The text has {len(ids)} tokens", "2 or more", "a sentence")
    chosen: tuple[dict[str, Any], ...] = ({"blocks": [block], "heads": [head]}, {"blocks": [block]}, {})
    found = [token_losses(model, ids, check)]
    for where in chosen:
        with replace_attention(model, operator, **where):
            found.append(token_losses(model, ids, check))
    losses = np.stack(found)
    return xr.Dataset(
        {
            "token_loss": variable(("scope", "position"), losses, "next-token loss", "nats"),
            "loss": variable(("scope",), losses.mean(-1), "next-token loss", "nats"),
        },
        {
            "scope": texts(("scope",), list(SCOPES), "where the operator stands"),
            "position": variable(("position",), np.arange(losses.shape[1]), "position of the token read"),
        },
        {"source": SOURCE, "probe": "attention_what_if_text", "operator": repr(operator), "block": block, "head": head,
         **model.provenance()},
    )  # fmt: skip


def what_if_verdicts(found: xr.Dataset) -> list[dict[str, Any]]:
    """For each operator, whether the model does as well with it, to a tenth of a nat, as far as the documents can tell.

    Args:
        found: from `attention_what_if`.

    Returns:
        Rows of `claim`, `source`, `measured`, `threshold`, `value`, `low`, `high` (95 %, over documents) and `verdict`. The claim
        is ours: whoever proposed the operator trains with it.
    """
    rows = []
    for name in found.operator.to_numpy()[1:]:
        one = found.sel(operator=name)
        value, low, high = (-float(one[end]) for end in ("cost", "cost_high", "cost_low"))
        rows.append(
            {
                "claim": f"The trained model does as well with {name}, to {LITTLE} nats",
                "source": "ours",
                "measured": "loss less the loss with it, nats a token",
                "threshold": -LITTLE,
                **{key: round(number, 3) for key, number in (("value", value), ("low", low), ("high", high))},
                "verdict": verdict((low, high), at_least=-LITTLE),
            }
        )
    return rows


def token_ids(model: Model, documents: Sequence[Document] | Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """The first tokens of each document that has so many.

    Raises:
        InputError: fewer than two of them, or fewer than two tokens.
    """
    bare = [model.encode_bare(one.text) if isinstance(one, Document) else model.encode(one) for one in documents]
    found = [ids[:tokens] for ids in bare if len(ids) >= tokens]
    if len(found) < 2 or tokens < 2:
        raise InputError(f"{len(found)} documents of {tokens} tokens", "at least 2 of 2 or more", "tokens=64, or more documents")
    return found


class Noting:
    """An operator that hands on what another one gives, and keeps what a function makes of it, call by call.

    Blocks call in their order, once each, so that `taken` is one entry for each block of a pass. An edit tries its operator
    before the pass: clear `taken` then. The function is given weights `[head, query, key]` in float64, and the input.
    """

    def __init__(self, operator: Operator, measure: Callable[[Tensor, AttentionInput], dict[str, np.ndarray]]):
        self.operator, self.measure = operator, measure
        self.taken: list[dict[str, np.ndarray]] = []

    def __getattr__(self, name: str) -> Any:
        """Name, mask and memory are those of the operator itself."""
        return getattr(self.operator, name)

    def __repr__(self) -> str:
        return repr(self.operator)

    def __call__(self, given: AttentionInput) -> Tensor:
        weights = self.operator(given)
        self.taken.append(self.measure(weights.reshape(-1, *weights.shape[-2:]).detach().to("cpu", torch.float64), given))
        return weights


# -- one pass after the other ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """An operator in some blocks, or None for the model as it is."""

    name: str
    operator: Operator | None
    blocks: Sequence[int] | None


@dataclass(frozen=True)
class _Found:
    """Losses `[case, document]`, and measures of the patterns `[case, document looked at]` by name."""

    loss: np.ndarray
    measures: dict[str, np.ndarray] = field(default_factory=dict)


def _measure(
    model: Model,
    documents: Sequence[Sequence[int]],
    cases: Sequence[_Case],
    patterns: int,
    progress: Progress | None,
    check: Callable[[], None] | None,
) -> _Found:
    size = len(documents[0])
    total, done = size * len(documents) * len(cases), 0
    loss = np.empty((len(cases), len(documents)))
    looked = {name: np.full((len(cases), min(patterns, len(documents))), np.nan) for name in MEASURES}
    with terminal_progress() as bar:
        for column, ids in enumerate(documents):
            for row, case in enumerate(cases):
                loss[row, column], means = _read(model, ids, case, column < patterns, check)
                for name, mean in means.items():
                    looked[name][row, column] = mean
                done += size
                (progress or bar)(Step(done, total, "tokens", "replacing attention"))
    return _Found(loss, looked if patterns else {})


def _read(
    model: Model, ids: Sequence[int], case: _Case, look: bool, check: Callable[[], None] | None
) -> tuple[float, dict[str, float]]:
    """Mean loss of one text under one case, and means of what its heads did."""
    if case.operator is None:
        loss = float(token_losses(model, ids, check).mean())
        if not look:
            return loss, {}
        case = _Case(case.name, Softmax(), case.blocks)
        return loss, _read(model, ids, case, True, check)[1]
    noting = Noting(case.operator, _head_means) if look else None
    with replace_attention(model, noting or case.operator, blocks=case.blocks):
        if noting is not None:
            noting.taken.clear()
        loss = float(token_losses(model, ids, check).mean())
    if noting is None:
        return loss, {}
    return loss, {name: float(np.mean([one[name] for one in noting.taken])) for name in MEASURES}


def _head_means(patterns: Tensor, _given: AttentionInput) -> dict[str, np.ndarray]:
    """Each of `MEASURES` for patterns `[head, query, key]`."""
    shares = bool((patterns >= 0).all())
    entropy = torch.special.entr(patterns).sum(-1)[:, 1:].mean(-1) if shares else torch.full((len(patterns),), torch.nan)
    return {
        "mean_entropy": entropy.numpy(),
        "first_token": patterns[:, 1:, 0].mean(-1).numpy(),
        "previous_token": patterns.diagonal(-1, -2, -1).mean(-1).numpy(),
        "effective_rank": rank_measures(torch.linalg.svdvals(patterns).numpy())["effective_rank"],
    }


# -- the result -----------------------------------------------------------------------------------


def cost_over(loss: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over documents of losses `[case, document]` less the model's own `[document]`, and the ends of its 95 % intervals."""
    added = loss - own
    ends = np.array([document_interval(row.tolist(), np.mean) for row in added])
    return added.mean(-1), ends[:, 0], ends[:, 1]


def _dataset(found: _Found, axis: str, coords: dict[str, Any]) -> xr.Dataset:
    cost, low, high = cost_over(found.loss, found.loss[0])
    measures = {name: variable((axis,), value.mean(-1), *MEASURES[name]) for name, value in found.measures.items()}
    return xr.Dataset(
        {
            "loss": variable((axis, "document"), found.loss, "next-token loss", "nats"),
            "mean_loss": variable((axis,), found.loss.mean(-1), "next-token loss", "nats"),
            "cost": variable((axis,), cost, "increase of the loss over the trained attention", "nats"),
            "cost_low": variable((axis,), low, "lower end of the 95 % interval", "nats"),
            "cost_high": variable((axis,), high, "upper end of the 95 % interval", "nats"),
            **measures,
        },
        {**coords, "document": variable(("document",), np.arange(found.loss.shape[1]), "document, in the order given")},
        {"source": SOURCE, "documents": found.loss.shape[1]},
    )
