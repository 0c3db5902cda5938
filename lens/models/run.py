"""One forward pass and what it left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from lens.base.errors import AnatomyError, MemoryEstimateError, UnsupportedModelError
from lens.models.anatomy import Anatomy, hooks_on
from lens.models.sites import SiteCapture, sites

if TYPE_CHECKING:
    from lens.models.model import Model

GIB = 2**30
EDITED = "_edited"  # ends the name of a kernel that an edit of the attention has put in the place of another


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that one forward pass of one text gave. No tensor has a batch axis.

    Attributes:
        model: the model that was run.
        text: the text, or None where token ids were given.
        token_ids: `[position]` int64, on the CPU.
        tokens: text of each token, special tokens included.
        residual: `[layer, position, d]`, layer 0 the input of the first block, layer ℓ the output of
            block ℓ, always before the final norm; in the model's dtype, on the head's device.
        logits: `[position, vocab]`, or None where they were not asked for.
        attention: `[block, head, query, key]` weights, or None where they were not asked for.
        seconds: wall time of the pass.
    """

    model: Model
    text: str | None
    token_ids: Int64[Tensor, " position"]
    tokens: tuple[str, ...]
    residual: Float[Tensor, "layer position d"]
    logits: Float[Tensor, "position vocab"] | None
    attention: Float[Tensor, "block head query key"] | None
    seconds: float

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        return f"Run({self.model.name!r}, {len(self)} tokens, {self.residual.shape[0]} residual states)"


def forward(
    module: Any,
    anatomy: Anatomy,
    token_ids: Sequence[int],
    *,
    logits: bool = True,
    attention: bool = False,
    check: Callable[[], None] | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run a module once and keep its residual stream.

    Args:
        module: the causal language model, in evaluation mode.
        anatomy: its parts.
        token_ids: the prompt.
        logits: False runs the stack without its head.
        attention: True collects the patterns through the eager kernel.
        check: called before every block; raising from it stops the pass.

    Returns:
        residual `[layer, position, d]`, logits `[position, vocab]` or None, attention
        `[block, head, query, key]` or None.
    """
    ids = torch.tensor([list(token_ids)], device=anatomy.embedding.weight.device)
    states = _Capture(anatomy, ids.shape, check)
    runner = module if logits else module.base_model
    with torch.no_grad(), hooks_on(states.handles), eager_kernel(module, attention):
        output = runner(input_ids=ids, use_cache=False, **({"output_attentions": True} if attention else {}))
    patterns = _stack_attention(module, output, anatomy) if attention else None
    return states.residual[:, 0], output.logits[0] if logits else None, patterns


def residual_states(
    module: Any, anatomy: Anatomy, token_ids: Int64[Tensor, "sequence position"], check: Callable[[], None] | None = None
) -> Float[Tensor, "layer sequence position d"]:
    """Residual stream of several texts of one length, without the head; see `block_states`."""
    return block_states(module, anatomy, token_ids, ("residual",), check)["residual"]


def block_states(
    module: Any,
    anatomy: Anatomy,
    token_ids: Int64[Tensor, "sequence position"],
    parts: Sequence[str],
    check: Callable[[], None] | None = None,
) -> dict[str, Float[Tensor, "state sequence position d"]]:
    """Residual stream, and inputs and outputs of parts of the blocks, for several texts of one length, without the head.

    Args:
        module: the causal language model, in evaluation mode.
        anatomy: its parts.
        token_ids: one text a row.
        parts: `residual`, and any of `lens.models.sites.block_parts`.
        check: called before every block; raising from it stops the pass.

    Returns:
        For `residual`, the states of all layers; for a part of the blocks, what enters it in every block and then
        what leaves it in every block.

    Memory: `(blocks + 1) · sequences · positions · d` values in the model's dtype for the stream, and
    `2 · blocks · sequences · positions · d` for each part.

    Raises:
        InputError: a part that some block does not have. AnatomyError: one that runs twice, or not on the stream.
    """
    ids = token_ids.to(anatomy.embedding.weight.device)
    found = {part: sites(anatomy, part) for part in parts if part != "residual"}  # before any hook is set, because it can refuse
    stream = _Capture(anatomy, ids.shape, check)
    captured = {part: SiteCapture(places, ids.shape, anatomy.head.weight.device) for part, places in found.items()}
    handles = [handle for capture in (stream, *captured.values()) for handle in capture.handles]
    with torch.no_grad(), hooks_on(handles):
        module.base_model(input_ids=ids, use_cache=False)
    return {part: captured[part].states if part in captured else stream.residual for part in ("residual", *captured)}


class _Capture:
    """Hooks that copy the stream into one preallocated tensor: a later in-place edit cannot reach it."""

    def __init__(self, anatomy: Anatomy, shape: Sequence[int], check: Callable[[], None] | None):
        self.shape, self.check = tuple(shape), check
        self.layers = len(anatomy.blocks) + 1
        self.device = anatomy.head.weight.device
        self._residual: Tensor | None = None
        self.handles: list[Any] = []
        for layer, block in enumerate(anatomy.blocks):
            if layer == 0 or check is not None:
                self.handles.append(block.module.register_forward_pre_hook(partial(self._before, layer), with_kwargs=True))
            self.handles.append(block.module.register_forward_hook(partial(self._after, layer + 1)))

    @property
    def residual(self) -> Tensor:
        assert self._residual is not None  # anatomy was proved on this module: the blocks ran
        return self._residual

    def _before(self, layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.check is not None:
            self.check()
        if layer == 0:
            self._keep(0, args[0] if args else kwargs["hidden_states"])

    def _after(self, layer: int, _module: nn.Module, _args: Any, output: Any) -> None:
        self._keep(layer, output[0] if isinstance(output, (tuple, list)) else output)

    def _keep(self, layer: int, state: Any) -> None:
        shape = tuple(getattr(state, "shape", ()))
        known = self._residual
        width = known.shape[-1] if known is not None else next(reversed(shape), None)
        if shape != (*self.shape, width):
            raise AnatomyError(
                f"A block handles states of shape {shape}",
                f"one residual stream, {(*self.shape, 'd')}",
                "a family with a single stream, or naming the blocks: anatomy={'blocks': …}",
            )
        if self._residual is not None and state.dtype.itemsize > self._residual.dtype.itemsize:
            self._residual = self._residual.to(state.dtype)  # some families widen their stream inside the stack
        if self._residual is None:
            shape = (self.layers, *self.shape, state.shape[-1])
            self._residual = torch.empty(shape, dtype=state.dtype, device=self.device)
        self._residual[layer].copy_(state)


@contextmanager
def eager_kernel(module: Any, wanted: bool = True) -> Iterator[None]:
    """Use the eager attention kernel, the only one that returns its weights, then the former one again."""
    former = module.config._attn_implementation
    eager = f"eager{EDITED}" if former.endswith(EDITED) else "eager"
    if not wanted or former == eager:
        yield
        return
    _set_kernel(module, eager)
    try:
        yield
    finally:
        _set_kernel(module, former)


def _set_kernel(module: Any, name: str) -> None:
    if module._can_set_attn_implementation():
        module.set_attn_implementation(name)
    else:
        # Families with attention code of their own (Falcon) read the configuration at every call. Left at
        # "sdpa" they would return weights computed without the causal mask.
        module.config._attn_implementation = name


def _stack_attention(module: nn.Module, output: Any, anatomy: Anatomy) -> Tensor:
    patterns = [a for a in (getattr(output, "attentions", None) or ()) if a is not None]
    if len(patterns) != len(anatomy.blocks) or len({a.shape for a in patterns}) != 1:
        raise UnsupportedModelError(
            f"{type(module).__name__} returned {len(patterns)} attention patterns",
            f"one of the same shape for each of its {len(anatomy.blocks)} blocks",
            "attention=False",
        )
    stacked = torch.stack([a[0].to(patterns[-1].device) for a in patterns])
    ahead = stacked.triu(1).abs().max().item() if stacked.shape[-1] > 1 else 0.0
    if ahead > 0:
        raise UnsupportedModelError(
            f"{type(module).__name__} returned attention of {ahead:.2g} to later tokens",
            "patterns of the causal attention that the model really uses",
            "attention=False",
        )
    return stacked


def require_memory(what: str, size: int, hint: str, limit: int = GIB) -> None:
    """Refuse a tensor of more than `limit` bytes before it is made."""
    if size > limit:
        raise MemoryEstimateError(f"{what} would take {size / GIB:.2f} GiB", f"at most {limit / GIB:.0f} GiB", hint)
