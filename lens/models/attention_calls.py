"""What a model's attention kernels are given: queries, keys and values after projection, norm and rotation.

Nothing is recomputed from weights, so that every family's own way to its queries and keys is the one that is
seen. Most families call transformers' attention interface; Falcon calls torch's kernel, GPT-J and CodeGen a
method of their own. The model's kernel runs as ever, so that the pass is the same to the bit.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from lens.base.errors import UnsupportedModelError
from lens.models.anatomy import hooks_on
from lens.models.model import Model


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """One call of one block's kernel, without a batch axis.

    Attributes:
        query: `[head, position, width]`. key: `[kv_head, position, width]`. value: `[kv_head, position, width]`.
        mask: `[query, key]`, additive or boolean, or None where the kernel is plainly causal.
        scaling: of the logits.
        softcap: of the scaled logits, or None.
        window: keys that a query sees at most, as the kernel is told, or None.
        sinks: `[head]` learned logits of an outcome without a key, or None.
        output: `[head, position, width]`, what the kernel gave.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None
    window: int | None
    sinks: Tensor | None
    output: Tensor


Note = Callable[[AttentionCall], None]


@contextmanager
def attention_calls(model: Model, blocks: Sequence[int], note: Callable[[int, AttentionCall], None]) -> Iterator[None]:
    """Have `note` called with every call of the kernels of some blocks, while the body runs the model.

    Raises:
        UnsupportedModelError: a family whose attention cannot be seen.
    """
    with ExitStack() as stack:
        parts = {part: index for index in blocks for part in model.anatomy.blocks[index].module.modules()}
        if model.module._can_set_attn_implementation():
            stack.enter_context(_through_interface(model.module, parts, note))
        else:
            stack.enter_context(_through_own_code(model, blocks, note))
        yield


# -- transformers' attention interface ------------------------------------------------------------

_NOTES: weakref.WeakKeyDictionary[nn.Module, Note] = weakref.WeakKeyDictionary()


@contextmanager
def _through_interface(module: Any, parts: dict[nn.Module, int], note: Callable[[int, AttentionCall], None]) -> Iterator[None]:
    former = module.config._attn_implementation
    name = f"{former}_noted"
    AttentionInterface.register(name, partial(_noted, former))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[former])
    _NOTES.update({part: partial(note, index) for part, index in parts.items()})
    try:
        module.set_attn_implementation(name)
        yield
    finally:
        module.set_attn_implementation(former)
        for part in parts:
            _NOTES.pop(part, None)


def _noted(
    kernel: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """A kernel of the interface: the one that the model uses, and a note of what it was given."""
    run = own_eager(module) if kernel == "eager" else ALL_ATTENTION_FUNCTIONS[kernel]
    given = run(module, query, key, value, attention_mask, **kwargs)
    note = _NOTES.get(module)
    if note is None:
        return given
    if kwargs.get("position_bias") is not None:
        found = f"{type(module).__name__} adds a bias of its own to its logits"
        raise UnsupportedModelError(found, "logits of queries and keys alone", "another family")
    scaling, window = kwargs.get("scaling"), kwargs.get("sliding_window")
    masks = attention_mask is not None or "flash" in kernel or (window is not None and window >= query.shape[-2])
    note(
        AttentionCall(
            query=query[0],
            key=key[0],
            value=value[0],
            mask=_first_mask(module, attention_mask),
            scaling=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
            softcap=kwargs.get("softcap"),
            window=int(window) if window is not None and masks else None,  # without a mask nobody heeds it
            sinks=kwargs.get("s_aux"),
            output=given[0][0].transpose(0, 1),
        )
    )
    return given


def own_eager(module: nn.Module) -> Callable[..., Any]:
    """The eager kernel of a module's own family, which the interface does not hold.

    Raises:
        UnsupportedModelError: a family without one.
    """
    for base in type(module).__mro__:
        found = getattr(sys.modules[base.__module__], "eager_attention_forward", None)
        if found is not None:
            return found
    raise UnsupportedModelError(f"{type(module).__name__} has no eager kernel", "a family of transformers", "the sdpa kernel")


def _first_mask(module: nn.Module, mask: Tensor | None) -> Tensor | None:
    if mask is None:
        return None
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise UnsupportedModelError(
            f"{type(module).__name__} has a mask of shape {tuple(mask.shape)}, of its own for each head",
            "one mask for all heads, without a bias such as ALiBi's",
            "another family",
        )
    return mask[0, 0]


# -- families with attention code of their own ----------------------------------------------------


@contextmanager
def _through_own_code(model: Model, blocks: Sequence[int], note: Callable[[int, AttentionCall], None]) -> Iterator[None]:
    attention = {index: model.anatomy.blocks[index].attention for index in blocks}
    if all(callable(getattr(part, "_attn", None)) and hasattr(part, "scale_attn") for part in attention.values()):
        with ExitStack() as stack:
            for index, part in attention.items():
                stack.enter_context(_own_method(part, partial(note, index)))
            yield
        return
    if None in attention.values() or model.module.config._attn_implementation != "sdpa":
        raise UnsupportedModelError(
            f"The attention of {type(model.module).__name__} is computed in code of its own",
            "a family that uses transformers' attention interface, or torch's kernel",
            "another family",
        )
    watch = _TorchKernel(note)
    handles = []
    for index, part in attention.items():
        assert part is not None  # refused above
        handles.append(part.register_forward_pre_hook(partial(watch.enter, index)))
        handles.append(part.register_forward_hook(watch.leave))
    with hooks_on(handles), watch:
        yield


@contextmanager
def _own_method(part: Any, note: Note) -> Iterator[None]:
    """GPT-J and CodeGen: the method `_attn` of queries, keys, values and mask."""
    own, former = part._attn, part.__dict__.get("_attn")  # an edit of the attention leaves one there

    def noted(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Any:
        given = own(query, key, value, attention_mask)
        mask = _first_mask(part, attention_mask)
        note(AttentionCall(query[0], key[0], value[0], mask, 1 / float(part.scale_attn), None, None, None, given[0][0]))
        return given

    part.__dict__["_attn"] = noted
    try:
        yield
    finally:
        if former is None:
            del part.__dict__["_attn"]
        else:
            part.__dict__["_attn"] = former


class _TorchKernel(TorchFunctionMode):
    """Calls of torch's attention kernel while a block that is watched runs."""

    def __init__(self, note: Callable[[int, AttentionCall], None]):
        super().__init__()
        self._note, self._block = note, None

    def enter(self, index: int, *_: Any) -> None:
        self._block = index

    def leave(self, *_: Any) -> None:
        self._block = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = func(*args, **kwargs)
        if func is torch.nn.functional.scaled_dot_product_attention and self._block is not None:
            query, key, value = args[:3]
            mask, scale = kwargs.get("attn_mask"), kwargs.get("scale")
            if mask is not None and (mask.ndim != 4 or mask.shape[1] != 1):
                raise UnsupportedModelError(
                    f"The attention of block {self._block} adds a bias for each head", "no bias such as ALiBi's", "another model"
                )
            scaling = float(query.shape[-1] ** -0.5 if scale is None else scale)
            first = None if mask is None else mask[0, 0]
            self._note(self._block, AttentionCall(query[0], key[0], value[0], first, scaling, None, None, None, given[0]))
        return given
