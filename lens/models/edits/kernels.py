"""Where a model computes attention, and how an edit steps in: every block's kernel can be asked to give something else.

The three ways are those of `lens.models.attention_calls`: transformers' attention interface, a method of the block's own
(GPT-J, CodeGen), torch's kernel (Falcon).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from lens.base.errors import UnsupportedModelError
from lens.models.anatomy import hooks_on
from lens.models.attention_calls import own_eager
from lens.models.model import Model
from lens.models.run import EDITED

Given = tuple[Tensor, Tensor | None]  # output `[sequence, head, position, width]`, weights `[sequence, head, query, key]` or None


@dataclass(frozen=True, eq=False)
class Kernel:
    """One call of one block's kernel, with its batch axis.

    Attributes:
        query: `[sequence, head, position, width]`. key, value: `[sequence, kv_head, position, width]`.
        mask: `[sequence or 1, 1, query, key]`, additive or boolean, or None where the kernel is plainly causal.
        scaling: of the logits.
        softcap: of the scaled logits, or None.
        window: keys that a query sees at most where there is no mask, or None.
        sinks: `[head]`, or None.
        weighs: whether weights are asked for.
        half: whether the kernel takes half precision alone.
        compute: the model's own kernel, of queries, keys, values and mask.
        beneath: what the block goes on with where nobody steps in here.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None
    window: int | None
    sinks: Tensor | None
    weighs: bool
    half: bool
    compute: Callable[[Tensor, Tensor, Tensor, Tensor | None], Given]
    beneath: Callable[[], Given]

    def widened(self) -> Kernel:
        """The same call in float32, where it is in less and the kernel takes it."""
        if self.half or self.query.dtype in (torch.float32, torch.float64):
            return self
        mask = self.mask
        if mask is not None and mask.dtype != torch.bool:  # its lowest number stands for minus infinity
            hidden = mask == torch.finfo(mask.dtype).min
            mask = mask.float().masked_fill(hidden, torch.finfo(torch.float32).min)
        return replace(self, query=self.query.float(), key=self.key.float(), value=self.value.float(), mask=mask)


StepIn = Callable[[Kernel], Given]


@contextmanager
def stepping_in(model: Model, steps: Mapping[int, StepIn]) -> Iterator[None]:
    """Have functions called in the place of the kernels of some blocks. Of several in one block the one entered last is.

    What it finds `beneath` is the one entered before it, and at last the model's own kernel.

    Raises:
        UnsupportedModelError: a family whose attention cannot be reached.
    """
    lists = _route(model)
    for block, step in steps.items():
        lists[block].append(step)
    try:
        yield
    finally:
        for block, step in steps.items():
            lists[block].remove(step)
        if not any(lists):
            _ROUTES.pop(model.module)[1].close()


# Of every model with a live edit: what steps in for each block, and all that takes the way there out again.
_ROUTES: weakref.WeakKeyDictionary[nn.Module, tuple[list[list[StepIn]], ExitStack]] = weakref.WeakKeyDictionary()


def _route(model: Model) -> list[list[StepIn]]:
    if model.module in _ROUTES:
        return _ROUTES[model.module][0]
    lists: list[list[StepIn]] = [[] for _ in model.anatomy.blocks]
    attention = [block.attention for block in model.anatomy.blocks]
    with ExitStack() as stack:
        if model.module._can_set_attn_implementation():
            stack.enter_context(_interface(model, lists))
        elif all(callable(getattr(part, "_attn", None)) and hasattr(part, "scale_attn") for part in attention):
            for part, steps in zip(attention, lists, strict=True):
                stack.enter_context(_own_method(part, steps))
        elif None not in attention and model.module.config._attn_implementation == "sdpa":
            for part, steps in zip(attention, lists, strict=True):
                stack.enter_context(_torch_kernel(part, steps))
        else:
            raise UnsupportedModelError(
                f"The attention of {type(model.module).__name__} is computed in code of its own",
                "a family that uses transformers' attention interface, or torch's kernel",
                "another family",
            )
        _ROUTES[model.module] = lists, stack.pop_all()
    return lists


def edited_blocks(model: Model) -> frozenset[int]:
    """Blocks whose kernel does not have the last word on their attention."""
    if model.module not in _ROUTES:
        return frozenset()
    return frozenset(block for block, steps in enumerate(_ROUTES[model.module][0]) if steps)


def _ask(steps: Sequence[StepIn], kernel: Kernel) -> Given:
    """The last step, with all before it beneath."""
    for step in steps:
        kernel = replace(kernel, beneath=partial(step, kernel))
    return kernel.beneath()


# -- transformers' attention interface ------------------------------------------------------------

# What steps in, by every module of a block: kernels are called with one of them.
_STEPS: weakref.WeakKeyDictionary[nn.Module, list[StepIn]] = weakref.WeakKeyDictionary()


@contextmanager
def _interface(model: Model, lists: Sequence[list[StepIn]]) -> Iterator[None]:
    module: Any = model.module
    former = module.config._attn_implementation
    for kernel in {former, "eager"}:  # the latter for runs that ask for weights
        AttentionInterface.register(f"{kernel}{EDITED}", partial(_asked, kernel))
        AttentionMaskInterface.register(f"{kernel}{EDITED}", ALL_MASK_ATTENTION_FUNCTIONS[kernel])
    parts = {part: steps for block, steps in zip(model.anatomy.blocks, lists, strict=True) for part in block.module.modules()}
    _STEPS.update(parts)
    try:
        module.set_attn_implementation(f"{former}{EDITED}")
        yield
    finally:
        module.set_attn_implementation(former)
        for part in parts:
            _STEPS.pop(part, None)


def _asked(
    name: str, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """A kernel of the interface, for an edited model."""
    run = own_eager(module) if name == "eager" else ALL_ATTENTION_FUNCTIONS[name]
    steps = _STEPS.get(module)
    if not steps:
        return run(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("position_bias") is not None:
        found = f"{type(module).__name__} adds a bias of its own to its logits"
        raise UnsupportedModelError(found, "logits of queries and keys alone", "another family")

    def compute(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Given:
        output, weights = run(module, query, key, value, mask, **kwargs)
        return output.transpose(1, 2), weights

    scaling = kwargs.get("scaling")
    output, weights = _ask(
        steps,
        Kernel(
            query=query,
            key=key,
            value=value,
            mask=attention_mask,
            scaling=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
            softcap=kwargs.get("softcap"),
            window=kwargs.get("sliding_window") if "flash" in name else None,  # the others heed masks alone
            sinks=kwargs.get("s_aux"),
            weighs=name == "eager",
            half="flash" in name,
            compute=compute,
            beneath=lambda: compute(query, key, value, attention_mask),
        ),
    )
    return output.transpose(1, 2).contiguous(), weights


# -- families with attention code of their own ----------------------------------------------------


@contextmanager
def _own_method(part: Any, steps: Sequence[StepIn]) -> Iterator[None]:
    """GPT-J and CodeGen: the method `_attn` of queries, keys, values and mask."""
    own = part._attn

    def asked(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> Given:
        def beneath() -> Given:
            return own(query, key, value, attention_mask)

        scaling = 1 / float(part.scale_attn)
        return _ask(steps, Kernel(query, key, value, attention_mask, scaling, None, None, None, True, False, own, beneath))

    part.__dict__["_attn"] = asked
    try:
        yield
    finally:
        del part.__dict__["_attn"]


@contextmanager
def _torch_kernel(part: Any, steps: Sequence[StepIn]) -> Iterator[None]:
    """Falcon: torch's kernel, watched for while the attention of a block runs.

    Where a run asks for weights, the family would compute them elsewhere. It is kept on its way here, and is handed them.
    """
    running: list[tuple[_TorchKernel, str]] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not steps:
            return None
        former = part.config._attn_implementation
        mode = _TorchKernel(steps, weighs=former != "sdpa")
        running.append((mode, former))
        mode.__enter__()
        part.config._attn_implementation = "sdpa"
        return args, {**kwargs, "output_attentions": False}

    def leave(_module: nn.Module, _args: Any, output: Any) -> Any:
        if not running:
            return None
        mode, former = running.pop()
        mode.__exit__(None, None, None)
        part.config._attn_implementation = former
        return (output[0], mode.weights, *output[2:]) if mode.weighs and output is not None else None

    handles = [
        part.register_forward_pre_hook(enter, with_kwargs=True),
        part.register_forward_hook(leave, always_call=True),
    ]
    with hooks_on(handles):
        yield


class _TorchKernel(TorchFunctionMode):
    """Torch's attention kernel, for one call of a block that is edited."""

    def __init__(self, steps: Sequence[StepIn], *, weighs: bool):
        super().__init__()
        self._steps, self.weighs = steps, weighs
        self.weights: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not scaled_dot_product_attention:
            return func(*args, **kwargs)
        query, key, value = args[:3]
        mask, scale = kwargs.get("attn_mask"), kwargs.get("scale")

        def compute(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Given:
            return func(query, key, value, *args[3:], **(kwargs | {"attn_mask": mask})), None

        def beneath() -> Given:
            return compute(query, key, value, mask)

        scaling = float(query.shape[-1] ** -0.5 if scale is None else scale)
        kernel = Kernel(query, key, value, mask, scaling, None, None, None, self.weighs, False, compute, beneath)
        output, self.weights = _ask(self._steps, kernel)
        return output
