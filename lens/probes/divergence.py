"""KL(final‖lens) over texts: its mean for any lens, and as a loss with the gradient of a tuned lens's maps.

Logits of one layer and a few hundred tokens exist at a time, whatever the number of layers and tokens;
the gradient is made beside the value, so that nothing of the model is kept for a later backward pass.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from lens.collect import in_batches
from lens.models.model import Model, evaluation_mode
from lens.models.readout import Readout
from lens.models.run import residual_states
from lens.probes.translator import Translator

_BATCH_TOKENS = 2048
_LOGIT_BYTES = 96 * 2**20


class Translators(nn.Module):
    """The maps of a tuned lens as trainable parameters."""

    def __init__(self, weights: Mapping[int, Tensor], biases: Mapping[int, Tensor]):
        super().__init__()
        self.layers = tuple(sorted(weights))
        self.weight = nn.ParameterList([weights[layer].clone() for layer in self.layers])
        self.bias = nn.ParameterList([biases[layer].clone() for layer in self.layers])

    def maps(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Weights and biases by layer, on the CPU."""
        weights, biases = (
            {layer: value.detach().cpu().clone() for layer, value in zip(self.layers, part, strict=True)}
            for part in (self.weight, self.bias)
        )
        return weights, biases


class DivergenceLoss:
    """The loss of step 0, 1, …: for every layer the mean over the step's tokens of KL(final‖lens), in nats.

    Args:
        model: read through; its parameters get no gradients.
        translators: the maps.
        windows: token ids; position 0 of each is left out.
        per_step: how many windows a step takes.
        seed: of their order.
        check: called before every block.
    """

    def __init__(
        self,
        model: Model,
        translators: Translators,
        windows: Sequence[list[int]],
        per_step: int,
        seed: int,
        check: Callable[[], None] | None,
    ):
        self.model, self.translators, self.windows = model, translators, windows
        self.per_step, self.seed, self.check = per_step, seed, check

    def __call__(self, step: int) -> dict[str, Tensor]:
        windows = step_windows(self.windows, self.per_step, step, self.seed)
        parameters = [*self.translators.weight, *self.translators.bias]
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        layers, count = self.translators.layers, 0
        values = torch.zeros(len(layers), dtype=torch.float64, device=parameters[0].device)
        with self.model.lock.hold("training a tuned lens", self.check), evaluation_mode(self.model.module), torch.no_grad():
            for states, final in _pieces(self.model, windows, self.check):
                count += len(final)
                for index, layer in enumerate(layers):
                    values[index] += self._add(states[layer], final, index, gradients)
        for gradient in gradients:
            gradient /= count
        terms = _WithGradients.apply(values / count, gradients, *parameters)
        return {f"layer {layer}": term for layer, term in zip(layers, terms, strict=True)}

    def _add(self, states: Tensor, final: Tensor, index: int, gradients: list[Tensor]) -> Tensor:
        """Sum of the divergences of one layer; its gradients are added to `gradients`."""
        wide = states.float()
        weight, bias = self.translators.weight[index], self.translators.bias[index]
        carried = wide + (wide @ weight + bias)
        with torch.enable_grad():
            leaf = carried.requires_grad_()
            divergence = _divergence(self.model.readout, leaf.to(states.dtype), final)
            (slope,) = torch.autograd.grad(divergence, leaf)
        gradients[index].addmm_(wide.T, slope)
        gradients[index + len(gradients) // 2].add_(slope.sum(0))
        return divergence.detach()


class _WithGradients(torch.autograd.Function):
    """Values `[term]` whose gradients are known: term i depends on parameters i and i + terms."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, gradients: list[Tensor], *_parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return values.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        terms = len(upstream)
        return None, None, *(gradient * upstream[i % terms] for i, gradient in enumerate(ctx.gradients))


def mean_divergence(
    model: Model,
    windows: Sequence[list[int]],
    lenses: Sequence[Translator | None],
    layers: Sequence[int],
    check: Callable[[], None] | None = None,
) -> Float[Tensor, "lens layer"]:
    """Mean over tokens of KL(final‖lens), in nats, float64.

    Args:
        model: the model.
        windows: token ids; position 0 of each is left out.
        lenses: what carries states to the last layer; None reads them as they are.
        layers: residual states.
        check: called before every block.
    """
    total, count = torch.zeros((len(lenses), len(layers)), dtype=torch.float64), 0
    with model.lock.hold("scoring lenses", check), evaluation_mode(model.module), torch.no_grad():
        for states, final in _pieces(model, windows, check):
            count += len(final)
            for row, lens in enumerate(lenses):
                for column, layer in enumerate(layers):
                    carried = states[layer] if lens is None else lens.translate(layer, states[layer])
                    total[row, column] += _divergence(model.readout, carried, final).item()
    return total / count


def _divergence(readout: Readout, carried: Float[Tensor, "token d"], final: Float[Tensor, "token vocab"]) -> Tensor:
    """Sum over tokens of KL(final‖lens), from the final log-probabilities."""
    read = readout(carried).float().log_softmax(-1)
    return functional.kl_div(read, final, reduction="sum", log_target=True)


def _pieces(
    model: Model, windows: Sequence[list[int]], check: Callable[[], None] | None
) -> Iterator[tuple[Float[Tensor, "layer token d"], Float[Tensor, "token vocab"]]]:
    """Residual states and final log-probabilities of a few hundred tokens at a time, position 0 of every window left out."""
    rows = max(1, _LOGIT_BYTES // (4 * model.vocab_size))
    for batch in in_batches(windows, _BATCH_TOKENS):
        states = residual_states(model.module, model.anatomy, batch, check)[:, :, 1:].flatten(1, 2)
        for piece in states.split(rows, dim=1):
            yield piece, model.readout(piece[-1]).float().log_softmax(-1)


def step_windows(windows: Sequence[list[int]], per_step: int, step: int, seed: int) -> list[list[int]]:
    """Windows of one step: all of them once in a drawn order, then all of them again in another."""
    places = (divmod(place, len(windows)) for place in range(step * per_step, (step + 1) * per_step))
    return [windows[_order(len(windows), seed, turn)[index]] for turn, index in places]


@lru_cache(maxsize=2)  # a step reaches into two turns at most, unless there are fewer windows than it takes
def _order(count: int, seed: int, turn: int) -> list[int]:
    return random.Random(f"{seed} {turn}").sample(range(count), count)
