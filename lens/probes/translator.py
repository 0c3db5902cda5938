"""What carries a residual state to the last layer, where the model's own read-out understands it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lens.base.errors import InputError
from lens.models.model import Model


@runtime_checkable
class Translator(Protocol):
    """Maps from layers of one model to its last layer: shortcut maps, or a tuned lens.

    Attributes:
        kind: `shortcut` or `tuned`; how the lens through it is called.
        layers: the layers that it can carry, in ascending order, the last one not among them.
        source: what it was fitted on (model, corpus, tokens, …), plain values.
    """

    @property
    def kind(self) -> str: ...

    @property
    def layers(self) -> tuple[int, ...]: ...

    @property
    def source(self) -> Mapping[str, Any]: ...

    def require_model(self, model: Model) -> None:
        """Raise `InputError` for another model than the one it was fitted on."""
        ...

    def translate(self, layer: int, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """States of `layer` as they would be at the last layer, in the given dtype and on the given device."""
        ...


def kind_of(translator: Translator | None) -> str:
    """Name of the lens through a translator; without one, states are read as they are: the plain lens."""
    return "plain" if translator is None else translator.kind


def readable_layers(translator: Translator | None, last: int, layers: Iterable[int] | None = None) -> tuple[int, ...]:
    """Layers that a lens can read, the last one always among them.

    Args:
        translator: the lens; None reads every layer.
        last: number of blocks, which is the last layer.
        layers: the ones wanted; all that can be read by default.

    Raises:
        InputError: a wanted layer that is not there or that the translator cannot carry.
    """
    known = set(range(last) if translator is None else translator.layers)
    chosen = known if layers is None else set(layers) - {last}
    if missing := sorted(chosen - known):
        needed = f"some of {', '.join(map(str, sorted(known))) or 'none'} and {last}"
        raise InputError(
            f"The {kind_of(translator)} lens cannot read layers {missing}", needed, "layers=None for all it can read"
        )
    return (*sorted(chosen), last)


def carry(
    translator: Translator | None, residual: Float[Tensor, "layer position d"], layers: Iterable[int] | None = None
) -> tuple[tuple[int, ...], Float[Tensor, "some position d"]]:
    """States of the readable layers, each carried to the last one.

    Args:
        translator: the lens; None leaves states as they are.
        residual: all residual states of a run.
        layers: the ones wanted; all that can be read by default.

    Returns:
        The layers, and their states in the same order; the last layer's own come last, unchanged.
    """
    last = residual.shape[0] - 1
    chosen = readable_layers(translator, last, layers)
    if translator is None:
        return chosen, residual if len(chosen) == last + 1 else residual[list(chosen)]
    return chosen, torch.stack([*(translator.translate(layer, residual[layer]) for layer in chosen[:-1]), residual[last]])
