"""A model without its skip connections: x + f(x) becomes f(x).

The sum is never taken, so that nothing is lost where the stream is thousands of times the size of what a part adds to it,
as it is at the first token of most models.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.anatomy import hooks_on
from lens.models.edits.blocks import beneath, in_place_of, part_modules
from lens.models.model import Model, evaluation_mode

SkipPart = Literal["both", "attention", "mlp"]
_ADDITIONS = ("add", "add_")


@dataclass(frozen=True)
class SkipChange:
    """What `remove_skips` removed.

    Attributes:
        part: `both`, `attention` or `mlp`.
        blocks: where.
        parallel: those of them that add attention and MLP to the stream in one sum, which has one skip.
    """

    part: str
    blocks: tuple[int, ...]
    parallel: tuple[int, ...]


@contextmanager
def remove_skips(model: Model, part: str = "both", blocks: Sequence[int] | None = None) -> Iterator[SkipChange]:
    """Take the stream out of the sums that add attention and MLP to it, for the body of the `with`.

    What a part computes is handed on as it is, with whatever the family does to it before the sum (a multiplier, a norm) and
    after it (a norm, in families that have it there). Norms in front of the parts stay. Where both skips go, a block hands on
    `mlp(norm(attention(norm(x))))`, or `attention(norm(x)) + mlp(norm(x))` in families whose parts stand side by side.

    Entering for the first time runs a few tokens, and every chosen block once more. That proves where the sums are, and that
    without them, and with attention and MLP silent, nothing of the stream leaves a block.

    Args:
        model: the model, which is held for the whole body.
        part: whose skips go: of `attention`, of the `mlp`, or of `both`.
        blocks: which; None for all.

    Yields:
        What was removed.

    Raises:
        InputError: no such part or block.
        UnsupportedModelError: a block without attention or MLP of its own, one whose sums are not found, or one side of a
            block that adds both sides in one sum.
    """
    if part not in get_args(SkipPart):
        raise InputError(f"The part is {part!r}", f"one of {', '.join(get_args(SkipPart))}", "part='both'")
    wanted = tuple(range(model.n_layers)) if blocks is None else tuple(dict.fromkeys(int(block) for block in blocks))
    if not wanted:
        raise InputError("No block was asked for", f"some of 0 to {model.n_layers - 1}", "blocks=None, for all")
    parallel = parallel_blocks(model, wanted)
    if parallel and part != "both":
        found = f"Block {parallel[0]} of {model.name} adds attention and MLP to the stream in one sum"
        raise UnsupportedModelError(found, "a skip of each", "part='both'")
    what = "skips" if part == "both" else f"{part} skips"
    with model.lock.edit(f"{what} of {_counted(wanted, model)} removed"), ExitStack() as stack:
        for block in wanted:
            watch = _Watch(model, block, frozenset((part,)) if part != "both" else frozenset(get_args(SkipPart)))
            stack.enter_context(hooks_on(watch.hooks()))
            stack.enter_context(in_place_of(watch.module, watch.forward))
        yield SkipChange(part, wanted, parallel)


# By module: whether each proved block has one sum for both; valid on the device, in the dtype and under the edits of the proof.
_PROVED: weakref.WeakKeyDictionary[nn.Module, tuple[Any, dict[int, bool]]] = weakref.WeakKeyDictionary()


def parallel_blocks(model: Model, blocks: Sequence[int] | None = None) -> tuple[int, ...]:
    """The blocks that add attention and MLP to the stream in one sum, after the proof that `remove_skips` describes.

    Raises:
        InputError: no such block. UnsupportedModelError: a block whose sums are not found.
    """
    wanted = range(model.n_layers) if blocks is None else blocks
    with model.lock.hold(f"looking for skips of {model.name}"), evaluation_mode(model.module), torch.no_grad():
        weight = model.anatomy.embedding.weight
        state = (weight.device, weight.dtype, frozenset(model.lock.edits))
        known = _PROVED.get(model.module)
        proved = dict(known[1]) if known is not None and known[0] == state else {}
        proved |= _prove(model, [block for block in wanted if block not in proved])
        _PROVED[model.module] = (state, proved)
    return tuple(block for block in wanted if proved[block])


def _prove(model: Model, blocks: Sequence[int]) -> dict[int, bool]:
    """Whether each block has one sum for both of its parts, from one pass and one more call of each block."""
    if not blocks:
        return {}
    watches = {block: _Watch(model, block, frozenset()) for block in blocks}
    calls: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = {}
    with ExitStack() as stack:
        for block, watch in watches.items():
            stack.enter_context(hooks_on([*watch.hooks(), _keep_call(watch.module, calls, block)]))
            stack.enter_context(in_place_of(watch.module, watch.forward))
        size = model.anatomy.embedding.weight.shape[0]
        ids = torch.tensor([[(7 * i + 1) % size for i in range(8)]], device=model.device)
        model.module.base_model(input_ids=ids, use_cache=False)
    for block, watch in watches.items():
        _require_sums(watch)
        _require_silence(model, block, watch.sums, *calls[block])
    return {block: watch.sums == ["both"] for block, watch in watches.items()}


def _counted(blocks: Sequence[int], model: Model) -> str:
    if len(blocks) == model.n_layers:
        return "all blocks"
    return f"block{'s' * (len(blocks) > 1)} {', '.join(map(str, blocks))}"


def _keep_call(module: nn.Module, calls: dict[int, Any], block: int) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[block] = (args, kwargs)

    return module.register_forward_pre_hook(hook, with_kwargs=True)


class _Watch:
    """One block: which additions of its `forward` have the stream as one side, and what to give in their place.

    A sum before the MLP is entered is that of attention, and the MLP reads what became of it. One after it is that of the
    MLP, if the MLP's way began at the first sum, and of both if there was none.

    Attributes:
        sums: of the latest call, in order: `attention`, `mlp`, or `both`.
        mlp_input: of the latest call.
    """

    def __init__(self, model: Model, block: int, removed: frozenset[str]):
        self.attention, _ = part_modules(model, block, "attention")
        self.mlp, self.mlp_end = part_modules(model, block, "mlp")
        self.module, self.removed = model.anatomy.blocks[block].module, removed
        self.place = f"block {block} of {model.name} ({type(self.module).__name__})"
        self.sums: list[str] = []
        self.mlp_input: Tensor | None = None
        # Kept while the block runs, because the memory of a tensor that is gone is given to others.
        self._streams: list[Tensor] = []
        self._mlp_output: Tensor | None = None

    def hooks(self) -> list[Any]:
        return [
            self.attention.register_forward_pre_hook(self._enter_attention, with_kwargs=True),
            self.mlp.register_forward_pre_hook(self._enter_mlp, with_kwargs=True),
            self.mlp_end.register_forward_hook(self._leave_mlp),
        ]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.sums, self.mlp_input = [], None
        self._streams = [_states(args, kwargs)]
        try:
            with _Additions(self.replaced):
                return beneath(self.module, self.forward)(*args, **kwargs)
        finally:
            self._streams, self._mlp_output = [], None

    def replaced(self, one: Tensor, other: Tensor, add: Callable[[], Tensor]) -> Tensor:
        """The sum, or one side of it where the other is the stream whose skip is removed."""
        branch = self._beside_stream(one, other)
        if branch is None:
            return add()
        kind = "attention" if self.mlp_input is None else "mlp" if self.sums == ["attention"] else "both"
        self.sums.append(kind)
        kept = branch.clone() if kind in self.removed else None  # some families add in place
        given = add()  # of another edit of the same block, which follows its stream by this very tensor
        if kept is not None:
            given.copy_(kept)
        if kind == "attention":
            self._streams = [given]
        return given

    def _beside_stream(self, one: Tensor, other: Tensor) -> Tensor | None:
        """The side of a sum that is not the stream, or None where none is: first of all the stream as it came here."""
        if one.shape != other.shape:
            return None
        for stream in self._streams:
            if _same(one, stream):
                return other
            if _same(other, stream):
                return one
        return next((side for side in (one, other) if self._mlp_output is not None and _same(side, self._mlp_output)), None)

    def _enter_attention(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._streams.append(_states(args, kwargs))  # which some families add their parts to (BLOOM, by its configuration)

    def _enter_mlp(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.mlp_input = _states(args, kwargs)
        if self.sums == ["attention"]:
            self._streams.append(self.mlp_input)  # the same (OPT, where norms follow the sums)

    def _leave_mlp(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if self.sums == ["attention"]:  # one by one: what the MLP gives is added to the stream, whatever came between
            self._mlp_output = output[0] if isinstance(output, (tuple, list)) else output


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors, possibly of different shapes, are the same numbers at the same place."""
    return one.data_ptr() == other.data_ptr() and one.numel() == other.numel() and one.dtype == other.dtype


def _states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


class _Additions(TorchFunctionMode):
    """Every sum of two tensors, as `replaced` gives it."""

    def __init__(self, replaced: Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]):
        super().__init__()
        self._replaced = replaced

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _ADDITIONS and not kwargs and len(args) == 2:
            one, other = args
            if isinstance(one, Tensor) and isinstance(other, Tensor):
                return self._replaced(one, other, lambda: func(one, other))
        return func(*args, **kwargs)


# -- proofs -------------------------------------------------------------------------------------------------------------


def _require_sums(watch: _Watch) -> None:
    if watch.sums not in (["attention", "mlp"], ["both"]):
        found = f"{watch.place[0].upper()}{watch.place[1:]} adds to its stream {len(watch.sums)} times: {watch.sums}"
        raise UnsupportedModelError(found, "once for attention and once for the MLP, or once for both", "other blocks")


def _require_silence(model: Model, block: int, sums: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Without skips, attention and MLP, what leaves a block is the same at every position, whatever came in."""
    watch = _Watch(model, block, frozenset(get_args(SkipPart)))
    silent = [part.register_forward_hook(_silence) for part in (watch.attention, watch.mlp_end)]  # before the watch sees them
    with hooks_on([*silent, *watch.hooks()]), in_place_of(watch.module, watch.forward):
        output = watch.module(*args, **kwargs)
    output = output[0] if isinstance(output, (tuple, list)) else output
    taken = _states(args, kwargs)
    entering = [] if sums == ["both"] else [watch.mlp_input]  # where it comes after attention, it has nothing to read either
    for states in (output, *entering):
        assert states is not None  # the MLP ran: its sum was found
        rows = states.reshape(-1, states.shape[-1])
        off = float((rows - rows[0]).abs().max())
        if not off <= 8 * torch.finfo(taken.dtype).eps * float(taken.abs().max()):
            found = f"Without its skips, and with silent attention and MLP, {watch.place} still hands on {off:.2g} of its stream"
            raise UnsupportedModelError(found, "nothing", "other blocks")


def _silence(_module: nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, (tuple, list)):
        return type(output)([torch.zeros_like(output[0]), *output[1:]])
    return torch.zeros_like(output)
