"""What each head computes from the stream, as matrices: queries, keys and values read, outputs written.

Families keep these matrices in one, two or three pieces, by head or by kind, with either orientation. No family is known by
name: what a projection gave in a real pass is compared, dimension by dimension, with what the kernel was given, and the rows of
the weights follow. Then all is proved: queries, keys and values recomputed from the normed states are the kernel's, and the sum
over heads of what their patterns carry is what the attention module gives.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from lens.base.errors import UnsupportedModelError
from lens.models.anatomy import Block, hooks_on
from lens.models.frequency_kinds import Lanes
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model, evaluation_mode
from lens.models.norms import NormMap, norm_map
from lens.models.offload import stored_weight
from lens.models.run import require_memory

SIDES = ("query", "key", "value")
_TOKENS = 24  # of the pass that tells the rows of the weights apart; fewer than Llama 4 attends to in one chunk
_ALIKE = 1e-3  # 1 − |cosine| of two columns that are the same up to half precision; the proof afterwards is tight


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """One block's matrices, in float64, for states as rows: `query = states @ weights.query[head] + weights.query_bias[head]`.

    `states` are what the attention module is given: the stream after `norm`.

    Attributes:
        block: which.
        query: `[head, d, width]`.
        key: `[kv_head, d, width]`. value: `[kv_head, d, width of values]`.
        output: `[head, width of values, d]`.
        query_bias, key_bias, value_bias: `[head or kv_head, width]`, zero where the model has none.
        output_bias: `[d]`, zero where the model has none.
        normed: of `query`, `key` and `value`, those that the model divides by a length of their own at each position (norms of
            queries and keys in Qwen 3 or Gemma 3). Their matrices hold the norm's gain; the positive factor that differs
            between positions is left out.
        norm: between the stream and the attention module; the identity where there is none (OLMo 2).
        after: norm between what the attention module gives and the stream (Gemma 2), or None.
        written: factor with which the stream adds what the attention module gives; None where it is not a sum, as behind a norm.
        layout, rotary, theta, attention_factor, scaling, softcap: as in `HeadStates`.
    """

    block: int
    query: Float64[np.ndarray, "head d width"]
    key: Float64[np.ndarray, "kv_head d width"]
    value: Float64[np.ndarray, "kv_head d value_width"]
    output: Float64[np.ndarray, "head value_width d"]
    query_bias: Float64[np.ndarray, "head width"]
    key_bias: Float64[np.ndarray, "kv_head width"]
    value_bias: Float64[np.ndarray, "kv_head value_width"]
    output_bias: Float64[np.ndarray, " d"]
    normed: tuple[str, ...]
    norm: NormMap
    after: NormMap | None
    written: float | None
    layout: str
    rotary: tuple[int, int]
    theta: Lanes
    attention_factor: float
    scaling: float
    softcap: float | None

    def __repr__(self) -> str:
        heads, d, width = self.query.shape
        return f"HeadWeights(block {self.block}, {heads} heads of {width}, {len(self.key)} of keys, d={d})"

    def kv_head_of(self, head: int) -> int:
        """The key and value head that a query head reads."""
        return head // (len(self.query) // len(self.key))

    def reading(self, side: str, head: int) -> Float64[np.ndarray, "d width"]:
        """Matrix from the stream itself, with the norm's gain in it and, where the norm takes the mean away, that too.

        What is left out is the norm's division by a length, one positive factor a position, and its shift.

        Args:
            side: `query`, `key` or `value`.
            head: query head; keys and values are those that it reads.
        """
        matrix = getattr(self, side)[head if side == "query" else self.kv_head_of(head)]
        return self.norm.fold(matrix)

    def writing(self, head: int) -> Float64[np.ndarray, "value_width d"]:
        """Matrix to the stream, with the gain of a norm behind the attention module where there is one."""
        matrix = self.output[head] * (1.0 if self.written is None else self.written)
        return matrix if self.after is None else self.after.apply_linear(matrix)


def head_weights(model: Model, blocks: Sequence[int] | None = None) -> tuple[HeadWeights, ...]:
    """Matrices of every head, found by comparing what projections give with what kernels are given, and proved.

    Args:
        model: the model. Live edits are in force.
        blocks: which, in any order; None for all.

    Memory: `8 · d · (heads · (width + width of values) + kv_heads · (width + width of values))` bytes a block, refused above
    1 GiB in all. Cost: three passes over 24 tokens, and two products of the projections' sizes a block.

    Raises:
        InputError: no such block. MemoryEstimateError: too large.
        UnsupportedModelError: queries, keys, values or outputs that no matrix explains, such as DeepSeek's, whose latent states
            are normed between two projections, or norms of queries that shift them (Persimmon).
    """
    size = model.anatomy.embedding.weight.shape[0]
    ids = [(7 * i + 1) % size for i in range(min(_TOKENS, model.context or _TOKENS))]
    with model.lock.hold(f"reading weights of heads of {model.name}"), evaluation_mode(model.module):
        states = head_states(model, ids, blocks)
        _require_memory(model, states)
        seen = _watch(model, ids, [one.block for one in states])
        return tuple(_weights(model, one, seen[one.block]) for one in states)


def _require_memory(model: Model, states: Sequence[HeadStates]) -> None:
    sizes = [8 * model.d_model * (len(one.query) + len(one.key)) * (one.query.shape[-1] + one.value.shape[-1]) for one in states]
    require_memory("Weights of heads in float64", sum(sizes), "fewer blocks, such as blocks=[0]")


# -- one pass -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Projection:
    """A linear layer inside the attention module, and what entered and left it: `[position, width]` float64."""

    weight: np.ndarray
    bias: np.ndarray
    taken: np.ndarray
    given: np.ndarray


@dataclass(eq=False)
class _Seen:
    """One block in one pass: states that enter and leave modules, by module."""

    taken: dict[nn.Module, Tensor]
    given: dict[nn.Module, Tensor]


def _watch(model: Model, ids: Sequence[int], blocks: Sequence[int]) -> dict[int, _Seen]:
    found = {block: _Seen({}, {}) for block in blocks}
    handles = []
    for block in blocks:
        parts = model.anatomy.blocks[block]
        ends = () if parts.mlp is None else parts.mlp
        inner = () if parts.attention is None else parts.attention.modules()
        for module in dict.fromkeys((parts.module, *inner, *parts.norms, *ends)):
            handles.append(module.register_forward_hook(partial(_note, found[block]), with_kwargs=True))
    tokens = torch.tensor([list(ids)], device=model.device)
    with torch.no_grad(), hooks_on(handles):
        model.module.base_model(input_ids=tokens, use_cache=False)
    return found


def _note(seen: _Seen, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    taken = args[0] if args else kwargs.get("hidden_states")
    given = output[0] if isinstance(output, (tuple, list)) else output
    if isinstance(taken, Tensor) and isinstance(given, Tensor):
        seen.taken[module], seen.given[module] = taken.detach().clone(), given.detach().clone()


def _rows(states: Tensor) -> np.ndarray:
    """`[position, width]` float64 of states with a batch axis, or flattened."""
    return states.reshape(-1, states.shape[-1]).to("cpu", torch.float64).numpy()


def _projections(model: Model, block: Block, seen: _Seen) -> Iterator[_Projection]:
    """Linear layers of the attention module, with their weights as `[in, out]`."""
    assert block.attention is not None  # checked by the caller
    for name, module in block.attention.named_modules():
        weight = getattr(module, "weight", None)
        if module not in seen.taken or not isinstance(weight, Tensor) or weight.ndim != 2:
            continue
        path = f"{_path(model, block.attention)}.{name}"
        taken, given = _rows(seen.taken[module]), _rows(seen.given[module])
        matrix = _values(model, weight, f"{path}.weight")
        bias = getattr(module, "bias", None)
        shift = np.zeros(given.shape[-1]) if bias is None else _values(model, bias, f"{path}.bias")
        for candidate in (matrix.T, matrix):  # torch's orientation, and GPT-2's
            if candidate.shape == (taken.shape[-1], given.shape[-1]) and _near(taken @ candidate + shift, given, weight.dtype):
                yield _Projection(candidate, shift, taken, given)
                break


def _path(model: Model, module: nn.Module) -> str:
    return next(name for name, part in model.module.named_modules() if part is module)


def _values(model: Model, weight: Tensor, name: str) -> np.ndarray:
    found = stored_weight(model.module, name).to(weight.dtype) if weight.is_meta else weight.detach()
    return found.to("cpu", torch.float64).numpy()


def _near(one: np.ndarray, other: np.ndarray, dtype: torch.dtype, slack: float = 64) -> bool:
    scale = np.abs(other).max()
    return bool(np.abs(one - other).max() <= slack * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * scale)


# -- rows of the weights --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Side:
    """Queries, keys or values: `weight[head, d, width]`, `bias[head, width]`; `normed` where each position has its own length."""

    weight: np.ndarray
    bias: np.ndarray
    normed: bool = False


def _weights(model: Model, states: HeadStates, seen: _Seen) -> HeadWeights:
    block = model.anatomy.blocks[states.block]
    if block.attention is None or block.attention not in seen.taken:
        raise _refuse(model, states, "has no module that states enter and leave")
    projections = list(_projections(model, block, seen))
    given = _rows(seen.taken[block.attention])
    reading = [one for one in projections if np.array_equal(one.taken, given)]
    sides = {name: _side(model, states, name, reading) for name in SIDES}
    carried = _carried(states)
    output, output_bias = _output(model, states, projections, carried)
    norm, after = _norms(model, states, block, seen)
    found = HeadWeights(
        block=states.block,
        **{name: side.weight for name, side in sides.items()},
        output=output,
        **{f"{name}_bias": side.bias for name, side in sides.items()},
        output_bias=output_bias,
        normed=tuple(name for name, side in sides.items() if side.normed),
        norm=norm,
        after=after,
        written=None if after is not None else _written(block, seen),
        layout=states.layout,
        rotary=states.rotary,
        theta=states.theta,
        attention_factor=states.attention_factor,
        scaling=states.scaling,
        softcap=states.softcap,
    )
    _prove(model, found, states, given, carried, _rows(seen.given[block.attention]))
    return found


def _refuse(model: Model, states: HeadStates, what: str) -> UnsupportedModelError:
    needed = "queries, keys, values and outputs that are matrices times the states, up to a norm's length"
    return UnsupportedModelError(f"The attention of block {states.block} of {model.name} {what}", needed, "another family")


def _side(model: Model, states: HeadStates, name: str, projections: Sequence[_Projection]) -> _Side:
    wanted = getattr(states, name).to(torch.float64).numpy()  # [head, position, width]
    for find in (_same_rows, _rows_up_to_a_length):
        for one in projections:
            side = find(wanted, one)
            if side is not None:
                return side
    raise _refuse(model, states, f"has a {name} that none of its {len(projections)} projections of the states gives")


def _same_rows(wanted: np.ndarray, one: _Projection) -> _Side | None:
    """Each dimension of each head is one column of what the projection gave, times one factor (OPT scales its queries)."""
    heads, positions, width = wanted.shape
    columns = wanted.transpose(1, 0, 2).reshape(positions, -1)
    places = _matching(columns, one.given)
    if places is None:
        return None
    found = one.given[:, places]
    factors = (found * columns).sum(0) / (found * found).sum(0)
    factor = float(np.median(factors))
    if np.abs(factors - factor).max() > 0.05 * abs(factor):
        return None
    factor = 1.0 if abs(factor - 1) < 1e-3 else factor
    weight = factor * one.weight[:, places].reshape(-1, heads, width).transpose(1, 0, 2)
    return _Side(np.ascontiguousarray(weight), factor * one.bias[places].reshape(heads, width))


def _matching(wanted: np.ndarray, given: np.ndarray) -> np.ndarray | None:
    """For each wanted column the given one that points the same way, or None where one has none."""
    lengths, norms = np.linalg.norm(wanted, axis=0), np.linalg.norm(given, axis=0)
    if not lengths.all():
        return None
    cosine = (wanted / lengths).T @ (given / np.where(norms > 0, norms, 1))
    places = cosine.argmax(-1)
    return places if (cosine.max(-1) > 1 - _ALIKE).all() else None


def _rows_up_to_a_length(wanted: np.ndarray, one: _Projection) -> _Side | None:
    """Heads lie one after the other; each position's vector is divided by a length, its head's or all heads', and has a gain."""
    heads, positions, width = wanted.shape
    size = heads * width
    target = wanted.transpose(1, 0, 2)
    for start in range(0, one.given.shape[-1] - size + 1, width):
        given = one.given[:, start : start + size].reshape(positions, heads, width)
        for axes in ((1, 2), (2,)):
            gain = _gain(target, given, axes)
            if gain is not None:
                columns = slice(start, start + size)
                weight = one.weight[:, columns].reshape(-1, heads, width) * gain
                bias = one.bias[columns].reshape(heads, width) * gain
                return _Side(np.ascontiguousarray(weight.transpose(1, 0, 2)), bias, normed=True)
    return None


def _gain(target: np.ndarray, given: np.ndarray, axes: tuple[int, ...]) -> np.ndarray | None:
    """Gain `[head, width]` with target = length · gain · given, the length the same along `axes`; None where there is none."""
    length = 1 / np.sqrt((given**2).mean(axes, keepdims=True))
    gain = np.ones(given.shape[1:])
    for _ in range(3):  # the norm's epsilon, or a length of another kind, is in neither of the two at first
        gain = (target * length * given).sum(0) / ((length * given) ** 2).sum(0)
        shaped = gain * given
        length = (target * shaped).sum(axes, keepdims=True) / (shaped**2).sum(axes, keepdims=True)
    off = np.abs(length * gain * given - target).max()
    return gain if (length > 0).all() and off <= _ALIKE * np.abs(target).max() else None


def _carried(states: HeadStates) -> np.ndarray:
    """What each head's pattern carries, `[position, head, width of values]`."""
    values = states.value.to(torch.float64).numpy()
    return np.stack([states.pattern(head) @ values[states.kv_head_of(head)] for head in range(len(states.query))], 1)


def _output(
    model: Model, states: HeadStates, projections: Sequence[_Projection], carried: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    _, heads, width = carried.shape
    columns = carried.reshape(len(carried), -1)
    for one in projections:
        if one.taken.shape[-1] == heads * width:
            places = _matching(columns, one.taken)
            if places is not None and len(set(places.tolist())) == len(places):
                return one.weight[places].reshape(heads, width, -1), one.bias
    raise _refuse(model, states, "has no projection of what its heads carry")


# -- between the stream and the attention module --------------------------------------------------


def _norms(model: Model, states: HeadStates, block: Block, seen: _Seen) -> tuple[NormMap, NormMap | None]:
    attention: Any = block.attention
    entering, leaving = seen.taken[attention], seen.given[attention]
    before = next((norm for norm in block.norms if norm in seen.given and _same(seen.given[norm], entering)), None)
    if before is None and not _same(seen.taken[block.module], entering):
        raise _refuse(model, states, "is given neither the stream nor what a norm of the block makes of it")
    after = next((norm for norm in block.norms if norm in seen.taken and _same(seen.taken[norm], leaving)), None)
    first = NormMap.identity(entering.shape[-1]) if before is None else norm_map(before, seen.taken[before])
    return first, None if after is None else norm_map(after, seen.taken[after])


def _same(one: Tensor, other: Tensor) -> bool:
    return one.numel() == other.numel() and bool(torch.equal(one.reshape(-1), other.reshape(-1)))


def _written(block: Block, seen: _Seen) -> float | None:
    """Factor of the attention module's output in what the block adds to the stream, if that is it and the MLP's output."""
    attention, ends = block.attention, block.mlp
    if ends is None or ends[1] not in seen.given or attention is None:
        return None
    parts = np.stack([_rows(seen.given[attention]).ravel(), _rows(seen.given[ends[1]]).ravel()], 1)
    added = (_rows(seen.given[block.module]) - _rows(seen.taken[block.module])).ravel()
    factors, *_ = np.linalg.lstsq(parts, added, rcond=None)
    stream = np.abs(_rows(seen.given[block.module])).max()
    dtype = seen.given[block.module].dtype
    if np.abs(parts @ factors - added).max() > 64 * torch.finfo(dtype).eps * max(stream, np.abs(parts).max()):
        return None
    return 1.0 if abs(factors[0] - 1) < 1e-3 else float(factors[0])


# -- proofs ---------------------------------------------------------------------------------------


def _prove(
    model: Model, found: HeadWeights, states: HeadStates, given: np.ndarray, carried: np.ndarray, output: np.ndarray
) -> None:
    dtype = model.anatomy.head.weight.dtype
    for name in SIDES:
        wanted = getattr(states, name).to(torch.float64).numpy()
        made = given @ getattr(found, name) + getattr(found, f"{name}_bias")[:, None]
        if name in found.normed:
            made *= (wanted * made).sum(-1, keepdims=True) / (made * made).sum(-1, keepdims=True)
        if not _near(made, wanted, dtype):
            raise _refuse(model, states, f"has a {name} that is off by {np.abs(made - wanted).max():.2g} from its weights'")
    made = np.einsum("phw,hwd->pd", carried, found.output) + found.output_bias
    size = np.abs(carried).sum((1, 2)).max() * np.abs(found.output).max()
    bound = 64 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * max(size, np.abs(output).max())
    if not np.abs(made - output).max() <= bound:
        raise _refuse(model, states, f"gives states that differ by {np.abs(made - output).max():.2g} from its heads' sum")
