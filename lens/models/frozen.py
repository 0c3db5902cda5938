"""A model as one affine map of a prompt's token embeddings: attention weights, norm scales and gates stay what they are there.

All that a transformer does to its stream is of the form A(x) · x, with factors A(x) that it computes from x: attention weights,
one over the length of a state, the slope of an activation. With these factors kept at the values that they have for one prompt,
what is left is matrix products and sums. The model's own code runs, and every function that makes a factor gives back the one
that it gave for the prompt. Nothing is known of families: that the result is the model at the prompt, and affine everywhere, is
proved for every prompt.

After Elhage et al. 2021, A Mathematical Framework for Transformer Circuits (frozen attention), and Golden 2025, Equivalent Linear
Mappings of Large Language Models (arXiv 2505.24293: norms and gates as well).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.anatomy import hooks_on
from lens.models.model import Model, evaluation_mode
from lens.models.run import eager_kernel, require_memory

TOLERANCE = 2e-5
"""Largest error of the frozen model's final states, and of its logits, over the largest of them. In float64, too: many families
compute norms and attention weights in float32 whatever they are in."""

_CONSTANTS = ("softmax", "sigmoid", "tanh", "rsqrt", "sqrt")  # given back as they were
_ACTIVATIONS = ("silu", "gelu", "relu", "leaky_relu", "hardswish", "mish", "clamp")  # x times what f(x) / x was
_PRODUCTS = ("mul", "mul_")
_COPIES = 32  # of the prompt in one pass
_AT_ZERO = 1e-6  # where f(x) / x is read for x = 0


@dataclass(frozen=True, eq=False)
class FrozenStates:
    """What the frozen model gives for embeddings; part of the graph of derivatives.

    Attributes:
        residual: `[copy, position, d]` for each layer, from the input of the first block to the output of the last.
        hidden: `[copy, position, e]`, what the head reads.
    """

    residual: tuple[Tensor, ...]
    hidden: Tensor


@dataclass(frozen=True, eq=False)
class FrozenModel:
    """A model frozen at one prompt, from `freeze`.

    Attributes:
        model: the model; nothing in it is changed between two calls.
        token_ids: the prompt.
        embedding: `[position, d]`, what the embedding gives for it (its scale included, where it has one).
        logits: `[position, vocab]`, the model's own.
        hidden: `[position, e]`, what the head reads.
        forward_error: of the frozen model's logits against these, over the largest.
        linear_error: by how much the map fails to be affine, over its largest final state.
    """

    model: Model
    token_ids: tuple[int, ...]
    embedding: Float[Tensor, "position e"]
    logits: Float[Tensor, "position vocab"]
    hidden: Float[Tensor, "position hidden"]
    forward_error: float = 0.0
    linear_error: float = 0.0
    _factors: list[tuple[str, Tensor]] = field(default_factory=list, repr=False)
    _together: bool = True  # several inputs fit in one pass
    _edits: frozenset[str] = frozenset()  # live edits of the module, by name

    def __repr__(self) -> str:
        return f"FrozenModel({self.model.name!r}, {len(self.token_ids)} tokens)"

    def __call__(self, embeddings: Float[Tensor, "copy position e"], *, check: Callable[[], None] | None = None) -> FrozenStates:
        """The frozen model's states for any embeddings in the place of the prompt's.

        Args:
            embeddings: several inputs at a time; derivatives are those of the frozen map.
            check: called before every block; raising from it stops the pass.

        Memory: as a pass of as many texts; a graph of derivatives adds little, because it shares the frozen factors.

        Raises:
            InputError: embeddings of another shape, or a model that is edited otherwise than when it was frozen.
        """
        wanted = (len(embeddings), *self.embedding.shape)
        if tuple(embeddings.shape) != wanted:
            raise InputError(f"Embeddings of shape {tuple(embeddings.shape)}", f"{wanted}", "embedding[None]")
        with _quiet(self.model, "running a frozen map"):
            if frozenset(self.model.lock.edits) != self._edits:
                raise InputError(
                    f"{self.model.name} is edited otherwise than when it was frozen", "the same model", "freezing again"
                )
            parts = [embeddings] if self._together else list(embeddings.split(1))
            found = [
                _pass(self.model, self.token_ids, part, _Factors(self._factors, keep=False, copies=len(part)), check)
                for part in parts
            ]
        if len(found) == 1:
            return found[0]
        layers = zip(*(one.residual for one in found), strict=True)
        return FrozenStates(tuple(torch.cat(layer) for layer in layers), torch.cat([one.hidden for one in found]))

    def unfrozen(self, embeddings: Float[Tensor, "copy position e"], *, check: Callable[[], None] | None = None) -> FrozenStates:
        """The model itself, nothing of it frozen, on embeddings in the place of the prompt's; derivatives are its own."""
        with _quiet(self.model, "running embeddings"):
            return _pass(self.model, self.token_ids, embeddings, None, check)

    @torch.enable_grad()  # also where the caller has gradients off
    def transposed(
        self, position: int, rows: int, *, check: Callable[[], None] | None = None
    ) -> Callable[[Float[Tensor, "row hidden"]], Float[Tensor, "row position e"]]:
        """The map from its other side: by what each embedding is multiplied where a row reads the hidden state of a position.

        Args:
            position: whose hidden state.
            rows: how many there will be at a time; more are done one lot after the other.
            check: called before every block of the pass and before every lot.

        Cost: one pass of up to 32 copies of the prompt, and one way back for every lot of as many rows.
        """
        copies = min(_COPIES, rows)
        given = self.embedding.expand(copies, -1, -1).clone().requires_grad_()
        hidden = self(given, check=check).hidden[:, position]

        def pull_back(rows: Tensor) -> Tensor:
            found = []
            for part in rows.to(hidden).split(copies):
                if check is not None:
                    check()
                padded = torch.cat([part, part.new_zeros(copies - len(part), part.shape[1])])
                found.append(torch.autograd.grad(hidden, given, padded, retain_graph=True)[0][: len(part)])
            return torch.cat(found)

        return pull_back

    def push_forward(
        self, directions: Float[Tensor, "direction position e"], position: int, *, check: Callable[[], None] | None = None
    ) -> Float[Tensor, "direction hidden"]:
        """The map times directions: what directions of the embeddings do to the hidden state of a position."""
        found = []
        for part in directions.to(self.embedding).split(_COPIES):
            states = torch.cat([part, torch.zeros_like(part[:1])])
            hidden = self(states, check=check).hidden[:, position].detach()
            found.append(hidden[:-1] - hidden[-1])
        return torch.cat(found)

    def direction(self, weights: Float[Tensor, " vocab"], position: int) -> tuple[Float[Tensor, " hidden"], float]:
        """Row and constant by which the hidden state of a position gives a weighted sum of its logits, `hidden @ row + constant`.

        Where the model does something to its logits (a cap, a scale), what that makes of each is one more frozen factor.
        """
        head = self.model.anatomy.head
        with torch.no_grad():
            bare = head(self.hidden[position])
            done = self.model.readout.transform(bare)
            weights = weights.to(bare) * torch.where(bare == 0, torch.ones_like(bare), done / bare)
            return weights @ head.weight, 0.0 if head.bias is None else float(weights.double() @ head.bias.double())


def freeze(model: Model, text: str | Sequence[Any] | Tensor, *, check: Callable[[], None] | None = None) -> FrozenModel:
    """Freeze a model's attention weights, norm scales and gates at a prompt.

    Of a gated MLP the activated side is frozen; GELU(x) is x · Φ(x) with Φ frozen, ReLU a mask. Rotations of queries and keys
    are behind the frozen weights. Biases, shifts of norms and position embeddings make the map affine rather than linear.

    Proved here: the frozen model gives the model's own logits, and it is affine: f(2x) − f(0) = 2 (f(x) − f(0)) and
    f(x + y) − f(x) = f(y) − f(0) with another prompt's embeddings y, at all positions, within `TOLERANCE`.

    Args:
        model: in float32 or float64.
        text: a text or token ids.
        check: called before every block of the passes; raising from it stops the work.

    Memory: the factors, about `layers · positions · (heads · positions + width of the MLP)` values.

    Raises:
        InputError: an unusable text. MemoryEstimateError: a text whose attention weights take more than 1 GiB.
        UnsupportedModelError: half precision, or a model that does something else to its stream than what is frozen here.
    """
    dtype = model.anatomy.head.weight.dtype
    if dtype not in (torch.float32, torch.float64):
        raise UnsupportedModelError(f"{model.name} is in {model.dtype_name}", "float32 or float64", "dtype='float32'")
    ids = tuple(model.encode(text))
    heads = getattr(model.module.config.get_text_config(), "num_attention_heads", 1)
    require_memory("The frozen attention", model.n_layers * heads * len(ids) ** 2 * dtype.itemsize, "a shorter text")
    with model.lock.hold(f"freezing a prompt of {model.name}"):
        edits = frozenset(model.lock.edits)
        logits = model.run(ids, check=check).logits
        assert logits is not None  # asked for
        factors = _Factors([], keep=True, copies=1)
        with _quiet(model, "freezing a prompt"):
            embedding = _embedded(model, ids)
            here = _pass(model, ids, embedding[None].clone(), factors, check).hidden.detach()[0]
        with torch.no_grad():
            ours = model.readout.transform(model.anatomy.head(here))
        found = FrozenModel(model, ids, embedding, logits, here, _factors=factors.kept, _edits=edits)
        return _proved(found, float((ours - logits).abs().max() / logits.abs().max()), check)


def _embedded(model: Model, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        return model.anatomy.embedding(torch.tensor([list(ids)], device=model.anatomy.embedding.weight.device))[0]


def _proved(found: FrozenModel, forward: float, check: Callable[[], None] | None) -> FrozenModel:
    linear = _departure(found, check)
    if not linear <= TOLERANCE:  # a mixture of experts sorts its positions, so that those of several inputs lie mixed
        found = replace(found, _together=False)
        linear = _departure(found, check)
    for what, off in (("is off its own logits by", forward), ("is no affine map: it fails by", linear)):
        if not off <= TOLERANCE:
            raise UnsupportedModelError(
                f"{found.model.name} with frozen attention, norms and gates {what} {off:.2g} of the largest",
                f"at most {TOLERANCE:g}",
                "another family; this one does more to its stream than attention, norms and gates",
            )
    return replace(found, forward_error=forward, linear_error=linear)


def _departure(found: FrozenModel, check: Callable[[], None] | None) -> float:
    """Largest failure of f to be affine, over its largest final state; infinite where it cannot take such inputs."""
    x, here = found.embedding, found.hidden
    y = x.flip(0) + x.mean(0)
    try:
        zero, double, both, other = found(torch.stack([0 * x, 2 * x, x + y, y]), check=check).hidden.detach()
    except RuntimeError:  # factors of another shape
        return float("inf")
    size = max(float(one.abs().max()) for one in (here, double, both, other))
    off = max(float((double - 2 * here + zero).abs().max()), float((both - here - other + zero).abs().max()))
    return off / size


# -- one pass -------------------------------------------------------------------------------------


@contextmanager
def _quiet(model: Model, purpose: str) -> Iterator[None]:
    """Hold the model, ready for derivatives with respect to states alone."""
    asking = [weight for weight in model.module.parameters() if weight.requires_grad]
    with model.lock.hold(f"{purpose} of {model.name}"), evaluation_mode(model.module), torch.enable_grad():
        for weight in asking:
            weight.requires_grad_(False)
        try:
            with eager_kernel(model.module):
                yield
        finally:
            for weight in asking:
                weight.requires_grad_(True)


def _pass(
    model: Model, ids: Sequence[int], embeddings: Tensor, factors: _Factors | None, check: Callable[[], None] | None
) -> FrozenStates:
    """One pass of the model's own code from embeddings, with its factors kept, given back or left alone."""
    given = embeddings if embeddings.requires_grad else embeddings.clone().requires_grad_()
    tokens = torch.tensor([list(ids)], device=model.anatomy.embedding.weight.device).expand(len(given), -1)
    stream: list[Tensor] = []

    def enter(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if check is not None:
            check()
        if not stream:
            stream.append(args[0] if args else kwargs["hidden_states"])

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        stream.append(output[0] if isinstance(output, (tuple, list)) else output)

    handles: list[Any] = [model.anatomy.embedding.register_forward_hook(lambda _module, _args, _output: given)]
    for block in model.anatomy.blocks:
        handles += [
            block.module.register_forward_pre_hook(enter, with_kwargs=True),
            block.module.register_forward_hook(leave),
        ]
    if factors is not None:
        handles += [part.register_forward_hook(factors.activated) for part in _own_activations(model)]
    with hooks_on(handles), nullcontext() if factors is None else factors:
        model.module.base_model(input_ids=tokens, use_cache=False)
        hidden = model.readout.normalise(stream[-1])
    if factors is not None:
        factors.finish()
    return FrozenStates(tuple(stream), hidden)


def _own_activations(model: Model) -> list[nn.Module]:
    """Activations that are written out in a module of their own, and not one of torch's functions."""
    return [
        part
        for block in model.anatomy.blocks
        for name, part in block.module.named_modules()
        if not list(part.parameters()) and not list(part.children()) and not type(part).__module__.startswith("torch.")
        and ("act" in name.rsplit(".", 1)[-1].lower() or "gelu" in name.rsplit(".", 1)[-1].lower())
    ]  # fmt: skip


class _Factors(TorchFunctionMode):
    """Functions that make factors: what they give is kept in order, or what was kept in that order is given back."""

    def __init__(self, kept: list[tuple[str, Tensor]], *, keep: bool, copies: int):
        super().__init__()
        self.kept, self._keep, self._copies = kept, keep, copies
        self._place = 0
        self._newest: Tensor | None = None  # constant
        self._activated: tuple[Tensor, Tensor] | None = None  # what the newest activation gave, and the same without derivative

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if not any(isinstance(one, Tensor) and one.requires_grad for one in args):
            return func(*args, **kwargs)
        if name in _CONSTANTS or (name == "pow" and len(args) > 1 and not isinstance(args[1], Tensor) and args[1] < 0):
            self._newest = self._factor(name, lambda: func(*args, **kwargs))
            return self._newest
        if name in _ACTIVATIONS:
            return self._activation(name, args[0], lambda x: func(x, *args[1:], **kwargs))
        if name in ("layer_norm", "rms_norm"):
            return self._norm(name, *args, **kwargs)
        if name in _PRODUCTS and len(args) == 2 and not kwargs:
            return self._product(func, *args)
        return func(*args, **kwargs)

    def activated(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """A forward hook of an activation that may be no function of torch."""
        known = self._activated is not None and output is self._activated[0]
        if known or len(args) != 1 or not isinstance(output, Tensor) or args[0].shape != output.shape:
            return None
        return self._activation("activation", args[0], lambda x: module.forward(x))

    def finish(self) -> None:
        """After a pass: all factors were asked for."""
        self._newest = self._activated = None
        if not self._keep and self._place != len(self.kept):
            raise self._strange("stops early")

    def _factor(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        if self._keep:
            with torch.no_grad():
                self.kept.append((name, make().detach()))
        elif self._place >= len(self.kept) or self.kept[self._place][0] != name:
            raise self._strange(f"comes to {name}")
        value = self.kept[self._place][1]
        self._place += 1
        # Only attention weights are reshaped on their way; everything else is spread over copies where it is used.
        return value if self._copies == 1 or name != "softmax" else value.repeat(self._copies, *(1,) * (value.ndim - 1))

    def _activation(self, name: str, x: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        def slope() -> Tensor:
            known = torch.where(x == 0, torch.full_like(x, _AT_ZERO), x).detach()
            return make(known) / known

        given = x * self._factor(name, slope)
        self._activated = (given, given.detach())
        return given

    def _product(self, func: Callable[..., Tensor], one: Any, other: Any) -> Tensor:
        """A product. Of two states the activated one is frozen; a state times its sigmoid or tanh is an activation."""
        if not all(isinstance(side, Tensor) and side.requires_grad for side in (one, other)):
            given = func(one, other)
            if any(side is self._newest for side in (one, other)):
                self._activated = (given, given.detach())
            return given
        if self._activated is None or not any(side is self._activated[0] for side in (one, other)):
            return func(one, other)  # and the proof will tell
        output, value = self._activated
        gate = self._factor("gate", lambda: value)
        return func(gate, other) if one is output else func(one, gate)

    def _norm(self, name: str, x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: Any = None) -> Tensor:
        axes = tuple(range(-len(shape), 0))
        kept = x - x.mean(axes, keepdim=True) if name == "layer_norm" else x
        small = torch.finfo(x.dtype).eps if eps is None else eps
        normed = kept * self._factor(name, lambda: torch.rsqrt(kept.pow(2).mean(axes, keepdim=True) + small))
        normed = normed if weight is None else normed * weight
        return normed if bias is None else normed + bias

    def _strange(self, what: str) -> UnsupportedModelError:
        found = f"A second pass {what} after {self._place} factors, where the first one did not"
        return UnsupportedModelError(found, "the same steps for every input", "another family")
