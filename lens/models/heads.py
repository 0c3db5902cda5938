"""Queries, keys and values of a model's heads before rotation, and attention recomputed from them.

What the model's own kernels were given is turned back by the table that really stands in the model. How lanes
lie in a head, and which of its dimensions turn, is proved on the model: with the same states at several
positions, rotation is all that tells its queries apart. Recomputed attention is proved against the kernel's output.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Complex128, Float, Float64
from torch import Tensor, nn

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.anatomy import hooks_on
from lens.models.attention_calls import AttentionCall, attention_calls
from lens.models.edits.kernels import edited_blocks
from lens.models.frequency_kinds import Lanes
from lens.models.model import Model, evaluation_mode
from lens.models.rotary import Rotary, rotary_of_blocks
from lens.models.run import require_memory

Layout = Literal["half", "interleaved"]
_PROBES = 32  # positions that the same states are put at, so that slow tables turn visibly, too


def to_lanes(x: Tensor | np.ndarray, layout: str) -> Complex128[np.ndarray, "*axes lane"]:
    """Rotary dimensions as complex lanes.

    Args:
        x: real, `[..., 2 · lane]`.
        layout: `half`, lane i from dimensions i and i + lanes (Llama, NeoX); `interleaved`, from 2i and 2i + 1
            (GPT-J, DeepSeek). They differ by a permutation, and the wrong one gives lanes that look real.
    """
    _require_layout(layout)
    values = _float64(x)
    if values.shape[-1] % 2:
        raise InputError(f"There are {values.shape[-1]} dimensions", "an even number, two for each lane", "the rotary ones only")
    lanes = values.shape[-1] // 2
    return values[..., :lanes] + 1j * values[..., lanes:] if layout == "half" else values[..., ::2] + 1j * values[..., 1::2]


def from_lanes(z: Complex128[np.ndarray, "*axes lane"], layout: str) -> Float64[np.ndarray, "*axes width"]:
    """Real dimensions `[..., 2 · lane]` of complex lanes; undoes `to_lanes`."""
    _require_layout(layout)
    if layout == "half":
        return np.concatenate([np.real(z), np.imag(z)], axis=-1)
    return np.stack([np.real(z), np.imag(z)], axis=-1).reshape(*z.shape[:-1], 2 * z.shape[-1])


def _float64(x: Tensor | np.ndarray) -> np.ndarray:
    return x.detach().to("cpu", torch.float64).numpy() if isinstance(x, Tensor) else np.asarray(x, dtype=np.float64)


def _require_layout(layout: str) -> None:
    if layout not in get_args(Layout):
        raise InputError(f"The layout is {layout!r}", f"one of {', '.join(get_args(Layout))}", "the layout of HeadStates")


@dataclass(frozen=True, eq=False)
class HeadStates:
    """One block of one text.

    Attributes:
        block: which.
        query: `[head, position, width]` float32, before rotation, after any norm of queries.
        key: `[kv_head, position, width]` float32, before rotation.
        value: `[kv_head, position, width of values]` float32.
        theta: float64, radians a token of each lane as they stood in the model; empty for a block without RoPE.
        attention_factor: what multiplied cos and sin both.
        layout: `half` or `interleaved`, proved on the model.
        rotary: first of the rotary dimensions in a head, and the one after the last.
        scaling: of the logits, as the model does it.
        softcap: c where logits become c · tanh(logit / c), or None.
        window: keys that a query sees, itself included, or None for all before it.
        sinks: `[head]` learned logits of an outcome without a key (gpt-oss), or None.
    """

    block: int
    query: Float[Tensor, "head position width"]
    key: Float[Tensor, "kv_head position width"]
    value: Float[Tensor, "kv_head position value_width"]
    theta: Lanes
    attention_factor: float
    layout: str
    rotary: tuple[int, int]
    scaling: float
    softcap: float | None
    window: int | None
    sinks: Float[Tensor, " head"] | None

    def __repr__(self) -> str:
        heads, positions, width = self.query.shape
        return f"HeadStates(block {self.block}, {heads} heads of {width}, {positions} positions, {len(self.theta)} lanes)"

    def kv_head_of(self, head: int) -> int:
        """The key and value head that a query head reads."""
        if not 0 <= head < len(self.query):
            raise InputError(f"Head {head}", f"0 to {len(self.query) - 1}, the heads of block {self.block}", "another head")
        return head // (len(self.query) // len(self.key))

    def query_lanes(self) -> Complex128[np.ndarray, "head position lane"]:
        """Rotary dimensions of the queries as complex lanes, before rotation."""
        return to_lanes(self.query[..., slice(*self.rotary)], self.layout)

    def key_lanes(self) -> Complex128[np.ndarray, "kv_head position lane"]:
        """Rotary dimensions of the keys as complex lanes, before rotation."""
        return to_lanes(self.key[..., slice(*self.rotary)], self.layout)

    def logits(
        self, head: int, theta: Lanes | None = None, attention_factor: float | int | None = None
    ) -> Float64[np.ndarray, "query key"]:
        """Scaled and soft-capped logits of one head, before any mask: `logit[m, n]` with queries m and keys n.

        Args:
            head: query head.
            theta: another frequency table; exact for this block with its inputs as they are.
            attention_factor: another one, or None for the model's.
        """
        key, table = self.key[self.kv_head_of(head)], self._table(theta, attention_factor)
        turned = [turn_lanes(side, self.rotary, self.layout, *table) for side in (self.query[head], key)]
        logits = turned[0] @ turned[1].T * self.scaling
        return logits if self.softcap is None else self.softcap * np.tanh(logits / self.softcap)

    def pattern(
        self, head: int, theta: Lanes | None = None, attention_factor: float | int | None = None
    ) -> Float64[np.ndarray, "query key"]:
        """Attention weights of one head, causal, with the block's window and sinks; see `logits`.

        Rows sum to one, or to less where a sink takes its share.
        """
        return self.softmax(head, self.logits(head, theta, attention_factor))

    def softmax(self, head: int, logits: Float64[np.ndarray, "query key"]) -> Float64[np.ndarray, "query key"]:
        """Attention weights that this head makes of its logits, as `pattern` does of those that `logits` gives."""
        logits = np.where(self.seen(), logits, -np.inf)
        sink = -np.inf if self.sinks is None else float(self.sinks[head])
        top = np.maximum(logits.max(-1, keepdims=True), sink)
        weights = np.exp(logits - top)
        return weights / (weights.sum(-1, keepdims=True) + np.exp(sink - top))

    def seen(self) -> Bool[np.ndarray, "query key"]:
        """Which keys each query sees: itself and those before it, as far as the window reaches."""
        positions = np.arange(self.query.shape[1])
        distance = positions[:, None] - positions
        return (distance >= 0) & (distance < (self.window or len(positions)))

    def _table(self, theta: Lanes | None, attention_factor: float | int | None) -> tuple[np.ndarray, float]:
        table = self.theta if theta is None else np.asarray(theta, dtype=np.float64)
        if table.shape != self.theta.shape:
            found = f"A table of shape {table.shape} for block {self.block}"
            raise InputError(found, f"{len(self.theta)} lanes, as the block has", "one frequency for each lane")
        return table, float(self.attention_factor if attention_factor is None else attention_factor)


def turn_lanes(
    states: Tensor | np.ndarray, rotary: tuple[int, int], layout: str, theta: Lanes, factor: float, *, back: bool = False
) -> Float64[np.ndarray, "*axes position width"]:
    """Rotate states `[..., position, width]` to their positions 0, 1, …, or back, in float64."""
    values = _float64(states).copy()
    if len(theta):
        turn = _turns(values.shape[-2], np.asarray(theta, dtype=np.float64).tobytes(), float(factor))
        lanes = to_lanes(values[..., slice(*rotary)], layout)
        values[..., slice(*rotary)] = from_lanes(lanes / turn if back else lanes * turn, layout)
    return values


@lru_cache(maxsize=8)
def _turns(positions: int, theta: bytes, factor: float) -> np.ndarray:
    """Of every position and lane; all heads of a block share it."""
    found = factor * np.exp(1j * np.arange(positions)[:, None] * np.frombuffer(theta))
    found.flags.writeable = False
    return found


def head_states(
    model: Model,
    text: str | Sequence[Any] | Tensor,
    blocks: Sequence[int] | None = None,
    *,
    check: Callable[[], None] | None = None,
) -> tuple[HeadStates, ...]:
    """Queries, keys and values of every head for one text, from one pass with the model's own kernels.

    The first call for a model also runs a few tokens twice, to prove how its heads are laid out.

    Args:
        model: the model. Live edits are in force: lanes are turned back by the table that really stands there.
        text: a text or token ids, as for `Model.run`.
        blocks: which, in any order; None for all.
        check: called before every block; raising from it stops the pass.

    Memory: `4 · positions · (heads · width + kv_heads · (width + width of values))` bytes a block, refused above
    1 GiB in all; about twice that while the model runs.

    Raises:
        InputError: an unusable text, or no such block. MemoryEstimateError: too large.
        UnsupportedModelError: attention that cannot be seen, that no layout explains, that queries and keys do not explain,
            or that another operator stands in for.
    """
    ids = model.encode(text)
    wanted = list(range(model.n_layers)) if blocks is None else [int(block) for block in blocks]
    wrong = next((block for block in wanted if not 0 <= block < model.n_layers), None)
    if wrong is not None or not wanted:
        found = "No block was asked for" if wrong is None else f"Block {wrong}"
        raise InputError(found, f"0 to {model.n_layers - 1}, the blocks of {model.name}", "blocks=None, for all")
    with model.lock.hold(f"reading heads of {model.name}"), evaluation_mode(model.module):
        for block in sorted(edited_blocks(model).intersection(wanted)):
            raise UnsupportedModelError(
                f"Block {block} of {model.name} has another attention operator",
                "the model's own softmax, which heads are read by",
                "model.run(…, attention=True), for the weights that are really used",
            )
        proved = _places(model)
        places = {block: _require_place(proved[block]) for block in wanted}
        size = sum(4 * len(ids) * place.values for place in places.values())
        require_memory("Queries, keys and values", size, "fewer blocks, such as blocks=[0], or a shorter text")
        calls = _calls(model, ids, wanted, check)
        tables = rotary_of_blocks(model)
        return tuple(_states(block, _one(calls, block, model), tables[block], places[block]) for block in wanted)


# -- one pass -------------------------------------------------------------------------------------


def _calls(
    model: Model,
    ids: Sequence[int],
    blocks: Sequence[int],
    check: Callable[[], None] | None = None,
    *,
    same_states: bool = False,
) -> Mapping[int, list[AttentionCall]]:
    """Calls of the kernels of some blocks in one pass.

    With `same_states` every block is given the first position's states at all positions.
    """
    calls: dict[int, list[AttentionCall]] = {block: [] for block in blocks}
    handles = []
    for block in model.anatomy.blocks:
        if check is not None:
            handles.append(block.module.register_forward_pre_hook(lambda *_: check()))
        if same_states:
            handles.append(block.module.register_forward_pre_hook(_spread, with_kwargs=True))
    tokens = torch.tensor([list(ids)], device=model.device)
    with torch.no_grad(), hooks_on(handles), attention_calls(model, blocks, lambda block, call: calls[block].append(call)):
        model.module.base_model(input_ids=tokens, use_cache=False)
    return calls


def _one(calls: Mapping[int, Sequence[AttentionCall]], block: int, model: Model) -> AttentionCall:
    if len(calls[block]) != 1:
        seen = "was not seen" if not calls[block] else f"was seen {len(calls[block])} times"
        found = f"The attention of block {block} of {model.name} {seen}"
        raise UnsupportedModelError(
            found, "one softmax of queries and keys in a block", "other blocks: head_states(…, blocks=[…])"
        )
    return calls[block][0]


def _spread(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def first(states: Tensor) -> Tensor:
        return states[:, :1].expand_as(states).contiguous()

    if args:
        return (first(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": first(kwargs["hidden_states"])}


def _states(block: int, call: AttentionCall, table: Rotary | None, place: _Place) -> HeadStates:
    theta = np.zeros(0) if table is None else table.theta
    factor = 1.0 if table is None else table.attention_factor
    query, key = (
        torch.tensor(turn_lanes(side, place.rotary, place.layout, theta, factor, back=True), dtype=torch.float32)
        for side in (call.query, call.key)
    )
    return HeadStates(
        block=block,
        query=query,
        key=key,
        value=call.value.detach().cpu().float().clone(),
        theta=theta,
        attention_factor=factor,
        layout=place.layout,
        rotary=place.rotary,
        scaling=call.scaling,
        softcap=None if call.softcap is None else float(call.softcap),
        window=_window(call, block),
        sinks=None if call.sinks is None else call.sinks.detach().cpu().float().flatten().clone(),
    )


def _window(call: AttentionCall, block: int) -> int | None:
    """Keys that a query sees, from the mask that was in force."""
    length = call.query.shape[-2]
    if call.mask is None:
        return call.window
    mask = call.mask[-length:, :length].cpu()
    allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    offset = torch.arange(length)[:, None] - torch.arange(length)
    width = int(allowed[-1].sum())
    band = torch.equal(allowed, (offset >= 0) & (offset < width))
    if not band or (mask.dtype != torch.bool and bool(mask[allowed].any())):
        found = f"The mask of block {block} is neither causal nor a sliding window, or adds a bias"
        raise UnsupportedModelError(found, "one of the two", "another block, or a text shorter than its chunks")
    if width < length:
        return width
    return call.window if call.window is not None and call.window >= length else None


# -- proofs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """How lanes lie in the heads of one block, and how many values a position takes."""

    layout: str
    rotary: tuple[int, int]
    values: int


# By module; valid in the dtype and under the edits that the model was proved with.
_Proved = dict[int, _Place | UnsupportedModelError]
_PROVED: weakref.WeakKeyDictionary[nn.Module, tuple[Any, frozenset[str], _Proved]] = weakref.WeakKeyDictionary()


def _places(model: Model) -> _Proved:
    """Of every block, or why it has none: some blocks of a hybrid model have no attention."""
    weight = model.anatomy.embedding.weight
    state, live = (weight.device, weight.dtype), frozenset(model.lock.edits)
    known = _PROVED.get(model.module)
    if known is not None and known[0] == state and known[1] <= live:
        return known[2]
    blocks = range(model.n_layers)
    rotary_of_blocks(model)  # finds them with a run of its own; below, tables are as the last run left them
    alike = _calls(model, [1 % weight.shape[0]] * min(_PROBES, model.context or _PROBES), blocks, same_states=True)
    turned = rotary_of_blocks(model)
    different = _calls(model, [(7 * i + 1) % weight.shape[0] for i in range(8)], blocks)
    tables = rotary_of_blocks(model)
    places: _Proved = {}
    for block in blocks:
        try:
            place = _prove_place(model, block, _one(alike, block, model), turned[block])
            call = _one(different, block, model)
            _prove_attention(model, call, _states(block, call, tables[block], place))
            places[block] = place
        except UnsupportedModelError as error:
            places[block] = error
    _PROVED[model.module] = (state, live, places)
    return places


def _require_place(found: _Place | UnsupportedModelError) -> _Place:
    if isinstance(found, UnsupportedModelError):
        raise UnsupportedModelError(found.found, found.needed, found.hint)
    return found


def _prove_place(model: Model, block: int, call: AttentionCall, table: Rotary | None) -> _Place:
    """Which layout and place turn the first position's query and key into all others', when their states are the same."""
    (heads, _, width), (kv_heads, _, value_width) = call.query.shape, call.value.shape
    values = heads * width + kv_heads * (width + value_width)
    sides = [_float64(side) for side in (call.query, call.key)]
    lanes = 0 if table is None else len(table.theta)
    theta, factor = (np.zeros(0), 1.0) if table is None else (table.theta, table.attention_factor)
    starts = [start for start in dict.fromkeys((0, width - 2 * lanes)) if start >= 0]
    places = [_Place(layout, (start, start + 2 * lanes), values) for start in starts for layout in get_args(Layout)]
    fits = [place for place in places if _explains(sides, call.query.dtype, place, theta, factor)]
    if len(fits) == 1 or (fits and lanes == 0) or (lanes == 1 and len({place.rotary for place in fits}) == 1):
        return fits[0]  # one lane lies the same in both layouts
    if lanes and not theta.any():
        found = f"All rotary lanes of block {block} of {model.name} stand still"
        raise UnsupportedModelError(found, "a lane that turns, to see the layout by", "head_states once before the edit")
    count = "More than one" if fits else "No"
    found = f"{count} layout of {lanes} rotary lanes explains how queries of block {block} of {model.name} turn"
    raise UnsupportedModelError(found, "lanes in halves or in pairs, at one end of a head", "another model")


def _explains(sides: Sequence[np.ndarray], dtype: torch.dtype, place: _Place, theta: Lanes, factor: float) -> bool:
    bound = max(64 * torch.finfo(torch.float32).eps, 8 * torch.finfo(dtype).eps)
    for side in sides:
        still = turn_lanes(side, place.rotary, place.layout, theta, factor, back=True)
        if np.abs(still - still[:, :1]).max() > bound * np.abs(side).max():
            return False
    return True


def _prove_attention(model: Model, call: AttentionCall, states: HeadStates) -> None:
    """Recomputed patterns times values are what the kernel gave, to the rounding of its dtype."""
    eps = max(torch.finfo(call.query.dtype).eps, torch.finfo(torch.float32).eps)  # float64 goes through float32 in its softmax
    output = _float64(call.output)
    for head in range(len(states.query)):
        value = _float64(states.value[states.kv_head_of(head)])
        logits = np.abs(states.logits(head)).max()
        off = np.abs(states.pattern(head) @ value - output[head]).max()
        if not off <= (16 + 8 * logits) * eps * np.abs(value).max():
            raise UnsupportedModelError(
                f"Attention recomputed for head {head} of block {states.block} of {model.name} is off by {off:.2g}",
                "what the model's kernel gives",
                "another family; this one does more to its logits than scaling, soft caps, windows and sinks",
            )
