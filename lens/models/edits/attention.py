"""Another attention operator in a running model.

What a trained model does under another operator is a shift of what it knows, not what a model trained with that
operator could do.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.edits.kernels import Given, Kernel, stepping_in
from lens.models.model import Model, evaluation_mode
from lens.models.operators import AttentionInput, LowRank, Operator, Softmax, operator_name, operator_weights
from lens.models.run import require_memory

Heads = Mapping[int, tuple[int, ...]]
_TOKENS = 32  # of the text that a path is proved with: longer than small windows


@dataclass(frozen=True, eq=False)
class AttentionChange:
    """What an edit did to the attention of a model.

    Attributes:
        operator: what stands in the place of the model's own softmax.
        heads: the edited heads of each edited block, all ascending.
        n_heads: heads that each of these blocks has.
    """

    operator: Operator
    heads: Heads
    n_heads: Mapping[int, int]

    @property
    def blocks(self) -> tuple[int, ...]:
        """Edited blocks, ascending."""
        return tuple(self.heads)

    def __str__(self) -> str:
        blocks: dict[str, list[int]] = {}
        for block, heads in self.heads.items():
            whole = len(heads) == self.n_heads[block]
            blocks.setdefault("attention" if whole else f"{_counted('head', heads)}", []).append(block)
        places = "; ".join(f"{part} of {_counted('block', where)}" for part, where in blocks.items())
        return f"{places}: {_words(self.operator)} instead of the model's softmax"


def _words(operator: Operator) -> str:
    named = repr(operator)
    return operator_name(operator) if named.startswith("<") else named


def _counted(what: str, numbers: Sequence[int]) -> str:
    """`block 3`, `blocks 0 to 5`, `heads 1, 4`."""
    if len(numbers) == 1:
        return f"{what} {numbers[0]}"
    run = len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1))
    return f"{what}s {f'{numbers[0]} to {numbers[-1]}' if run else ', '.join(map(str, numbers))}"


@contextmanager
def replace_attention(
    model: Model,
    operator: Operator,
    *,
    blocks: Sequence[int] | None = None,
    heads: Mapping[int, Sequence[int]] | Sequence[int] | None = None,
) -> Iterator[AttentionChange]:
    """Put another attention operator in the place of a model's softmax, for the body of the `with`.

    Logits, soft caps, masks and windows are the model's own, and so are the heads that are not named, to the bit.
    `Softmax()` gives what the model gives, to rounding; this is proved for the model at the first edit, with a few
    tokens. Runs with `attention=True` return the weights that were really used. Edits can be nested and may end in any order;
    of several for one head the one entered last counts.

    Args:
        model: the model, which is held for the whole body.
        operator: one of `lens.operators`, or any callable of an `AttentionInput`, which is given tensors
            `[sequence, head, …]` of the named heads, and first of all four positions of made-up states, to see that it
            gives weights. What becomes of learned sinks is its own matter.
        blocks: which; None for all that have attention.
        heads: of these blocks, or of each block by its number; None for all.

    Yields:
        What was changed.

    Memory: 28 bytes for each sequence, named head, query and key while one block runs, and 48 for operators in
    float64 (`LogNormal`, `LowRank`); refused above 1 GiB.

    Raises:
        InputError: no such block or head, an edit that changes nothing, or an operator that gives no weights, or weights
            for later keys (`LowRank` without its mask). MemoryEstimateError: a run of the edited model on too long a text.
        UnsupportedModelError: attention that cannot be reached, that queries and keys do not explain, or that is run with
            a cache of keys and values.
    """
    with model.lock.hold("edited: another attention operator"), ExitStack() as stack:
        chosen, counts = _chosen(model, blocks, heads)
        _require_weights(operator, chosen, counts)
        change = AttentionChange(operator, chosen, counts)
        others = set(model.lock.edits)
        stack.enter_context(model.lock.edit(str(change)))
        stack.enter_context(_own_edit(model, set(model.lock.edits) - others))
        stack.enter_context(stepping_in(model, {block: partial(_edited, model, operator, chosen[block]) for block in chosen}))
        yield change


def _chosen(
    model: Model, blocks: Sequence[int] | None, heads: Mapping[int, Sequence[int]] | Sequence[int] | None
) -> tuple[Heads, Mapping[int, int]]:
    """Heads of each chosen block, and how many each of them has."""
    if isinstance(heads, Mapping) and blocks is not None and {int(b) for b in blocks} != {int(b) for b in heads}:
        raise InputError(f"Blocks {list(blocks)} and heads of blocks {list(heads)}", "the same blocks", "heads alone")
    wanted = heads if isinstance(heads, Mapping) else blocks
    named = None if wanted is None else sorted({int(block) for block in wanted})
    for wrong in (block for block in named or () if not 0 <= block < model.n_layers):
        raise InputError(f"Block {wrong}", f"0 to {model.n_layers - 1}, the blocks of {model.name}", "another block")
    found = _proved(model)
    places = [block for block in range(model.n_layers) if block in found] if named is None else named
    counts = {block: _require_proof(model, block, found.get(block)) for block in places}
    chosen = {}
    for block in places:
        asked = heads[block] if isinstance(heads, Mapping) else heads
        chosen[block] = _heads(block, counts[block], asked)
    chosen = {block: asked for block, asked in chosen.items() if asked}
    if not chosen:
        raise InputError("No head was named", "an edit that changes something", "heads=None, for all")
    return chosen, counts


def _heads(block: int, count: int, asked: Sequence[int] | None) -> tuple[int, ...]:
    heads = sorted(range(count) if asked is None else {int(head) for head in asked})
    for wrong in (head for head in heads if not 0 <= head < count):
        raise InputError(f"Head {wrong}", f"0 to {count - 1}, the heads of block {block}", "another head")
    return tuple(heads)


def _require_weights(operator: Operator, chosen: Heads, counts: Mapping[int, int]) -> None:
    """The operator gives weights of what a query sees, tried on states that are nobody's."""
    if isinstance(operator, LowRank) and not operator.masked:
        raise InputError(
            f"{operator!r} lets a query see later keys",
            "an operator that keeps the model's mask",
            f"LowRank({operator.rank}, masked=True)",
        )
    for heads, count in {(heads, counts[block]) for block, heads in chosen.items()}:
        query, key = torch.randn(2, 1, len(heads), 4, 4, generator=torch.Generator().manual_seed(0))
        seen = torch.ones(4, 4, dtype=torch.bool).tril()
        operator_weights(operator, AttentionInput(query @ key.mT, query, key, seen, None, heads, count))


# -- one call of a kernel -------------------------------------------------------------------------


def _edited(model: Model, operator: Operator, heads: tuple[int, ...], kernel: Kernel) -> Given:
    """What the block goes on with: the operator's for some heads, and what was there for the others."""
    if kernel.key.shape[-2] != kernel.query.shape[-2]:
        found = f"{model.name} has another attention operator, and is run with a cache of keys and values"
        raise UnsupportedModelError(found, "a run without one", "use_cache=False")
    size = len(heads) * len(kernel.query) * kernel.query.shape[-2] ** 2 * getattr(operator, "bytes_per_weight", 28)
    require_memory(f"Weights of {operator_name(operator)}", size, "fewer heads, such as heads=[0], or a shorter text")
    given, value = _given(kernel, heads)
    weights = operator_weights(operator, given)
    output, weights = (weights @ value).to(kernel.value.dtype), weights.to(kernel.query.dtype)
    if len(heads) == kernel.query.shape[1]:
        return output, weights
    others, own = kernel.beneath()
    output = others.clone().index_copy(1, torch.tensor(heads, device=output.device), output)
    if not kernel.weighs:
        return output, None
    if own is None:  # torch's kernel gives none
        own = operator_weights(Softmax(), _given(kernel, tuple(range(kernel.query.shape[1])))[0]).to(kernel.query.dtype)
    return output, own.index_copy(1, torch.tensor(heads, device=own.device), weights)


def _given(kernel: Kernel, heads: tuple[int, ...]) -> tuple[AttentionInput, Tensor]:
    """What an operator is given of some heads, and their values."""
    count = kernel.query.shape[1]
    groups = [head // (count // kernel.key.shape[1]) for head in heads]
    dtype = torch.promote_types(kernel.query.dtype, torch.float32)
    query = kernel.query[:, list(heads)].to(dtype)
    key, value = (side[:, groups].to(dtype) for side in (kernel.key, kernel.value))
    logits = query @ key.mT * kernel.scaling
    logits = logits if kernel.softcap is None else kernel.softcap * torch.tanh(logits / kernel.softcap)
    sinks = None if kernel.sinks is None else kernel.sinks.flatten()[list(heads)].to(dtype)
    return AttentionInput(logits, query, key, _seen(kernel), sinks, heads, count), value


def _seen(kernel: Kernel) -> Tensor:
    """`[sequence or 1, 1, query, key]`, what a query sees by the mask that is in force."""
    length, mask = kernel.query.shape[-2], kernel.mask
    if mask is None:
        place = torch.arange(length, device=kernel.query.device)
        distance = place[:, None] - place
        return ((distance >= 0) & (distance < (kernel.window or length)))[None, None]
    if mask.ndim != 4 or mask.shape[1] != 1:
        found = f"The attention has a mask of shape {tuple(mask.shape)}, of its own for each head"
        raise UnsupportedModelError(found, "one mask for all heads, without a bias such as ALiBi's", "another family")
    mask = mask[..., :length]
    if mask.dtype == torch.bool:
        return mask
    seen = mask > torch.finfo(mask.dtype).min / 2
    if bool(mask.masked_fill(~seen, 0.0).any()):
        raise UnsupportedModelError("The attention's mask adds a bias to logits", "no bias", "another block")
    return seen


# -- the proof ------------------------------------------------------------------------------------

# Heads of each block whose attention was seen, or why it cannot be edited; by module, for the dtype and under the other edits
# that it was proved with.
_Proofs = dict[int, int | UnsupportedModelError]
_PROVED: weakref.WeakKeyDictionary[nn.Module, tuple[Any, _Proofs]] = weakref.WeakKeyDictionary()
_OWN: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()  # names of live edits of this kind


@contextmanager
def _own_edit(model: Model, names: set[str]) -> Iterator[None]:
    """A proof stays good under edits of this kind, because it looks beneath them."""
    own = _OWN.setdefault(model.module, set())
    own |= names
    try:
        yield
    finally:
        own -= names


def _proved(model: Model) -> _Proofs:
    """Of every block whose attention ran."""
    weight = model.anatomy.embedding.weight
    state = (weight.device, weight.dtype, model.lock.edits.keys() - _OWN.get(model.module, set()))
    known = _PROVED.get(model.module)
    if known is not None and known[0] == state:
        return known[1]
    found: _Proofs = {}
    length = min(_TOKENS, model.context or _TOKENS)
    tokens = torch.tensor([[(7 * i + 1) % weight.shape[0] for i in range(length)]], device=model.device)
    steps = {block: partial(_noted, model, block, found) for block in range(model.n_layers)}
    with torch.no_grad(), evaluation_mode(model.module), stepping_in(model, steps):
        model.module.base_model(input_ids=tokens, use_cache=False)
    _PROVED[model.module] = state, found
    return found


def _noted(model: Model, block: int, found: _Proofs, kernel: Kernel) -> Given:
    try:
        if block in found:
            twice = f"The attention of block {block} of {model.name} was seen twice"
            raise UnsupportedModelError(twice, "one softmax of queries and keys in a block", "other blocks")
        found[block] = _prove(model, block, kernel.widened())
    except UnsupportedModelError as error:
        found[block] = error
    return kernel.beneath()


def _prove(model: Model, block: int, kernel: Kernel) -> int:
    """Softmax on the edit's way gives what the model's kernel gives, to the rounding of its dtype. Returns the heads."""
    given, value = _given(kernel, tuple(range(kernel.query.shape[1])))
    output, _ = kernel.compute(kernel.query, kernel.key, kernel.value, kernel.mask)
    off = float((operator_weights(Softmax(), given) @ value - output).abs().max())
    largest = float((given.logits * given.seen).abs().max())
    bound = (16 + 8 * largest) * torch.finfo(output.dtype).eps * float(value.abs().max())
    if not off <= bound:
        raise UnsupportedModelError(
            f"Attention recomputed for block {block} of {model.name} is off by {off:.2g}",
            "what the model's kernel gives",
            "another family; this one does more to its logits than scaling, soft caps, windows and sinks",
        )
    return kernel.query.shape[1]


def _require_proof(model: Model, block: int, found: int | UnsupportedModelError | None) -> int:
    if found is None:
        words = f"The attention of block {block} of {model.name} was not seen"
        raise UnsupportedModelError(words, "a softmax of queries and keys that runs", "other blocks, or an edit of the block")
    if isinstance(found, UnsupportedModelError):
        raise UnsupportedModelError(found.found, found.needed, found.hint)
    return found
