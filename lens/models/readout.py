"""From the residual stream to logits: final norm, head, and what the model does to its logits.

Some families multiply, divide or soft-cap the head's output. Which, and by how much, is not believed
from a configuration: the head's output is replaced once by a ramp from −60 to 60, and the logits the
model makes of it must be reproduced by one of the formulas that the configuration suggests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens.base.errors import AnatomyError, UnsupportedModelError
from lens.models.anatomy import Anatomy, hooks_on

# Largest |difference| over largest |logit| between our read-out and the model's own logits.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
_RAMP = 60.0


@dataclass(frozen=True)
class LogitTransform:
    """What the model does to the head's output: nothing, `z·value`, `z/value`, or `value·tanh(z/value)`."""

    kind: Literal["none", "multiply", "divide", "softcap"] = "none"
    value: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        if self.kind == "multiply":
            return logits * self.value
        if self.kind == "divide":
            return logits / self.value
        if self.kind == "softcap":
            return torch.tanh(logits / self.value) * self.value
        return logits


@dataclass(frozen=True)
class Readout:
    """The real final norm and head of a model, as a function of any state of its residual stream."""

    tail: tuple[nn.Module, ...]
    head: nn.Linear
    transform: LogitTransform

    @property
    def vocab_size(self) -> int:
        return self.head.weight.shape[0]

    def normalise(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows e"]:
        """Everything between the last block and the head, in the model's own dtype and on its device."""
        hidden = states.to(self.head.weight.device)
        for part in self.tail:
            hidden = part(hidden)
        return hidden.to(self.head.weight.dtype)  # some families carry a wider stream than their head reads

    def __call__(self, states: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows vocab"]:
        """Logits `[..., vocab]` of states `[..., d]`."""
        return self.transform(self.head(self.normalise(states)))

    def columns(self, hidden: Float[Tensor, "*rows e"], start: int, stop: int) -> Float[Tensor, "*rows some"]:
        """Logits of vocabulary entries `start..stop−1` of normalised states, without the others."""
        bias = None if self.head.bias is None else self.head.bias[start:stop]
        return self.transform(nn.functional.linear(hidden, self.head.weight[start:stop], bias))


@dataclass(frozen=True)
class ReadoutCheck:
    """The proof: largest difference between read-out and logits, relative to the largest logit."""

    relative_error: float
    tolerance: float
    largest_logit: float

    @property
    def passed(self) -> bool:
        return self.relative_error <= self.tolerance


def build_readout(module: nn.Module, anatomy: Anatomy, token_ids: Tensor) -> Readout:
    """Read-out of a model, its logit transform found by experiment.

    Raises:
        AnatomyError: the model treats its logits in a way that none of the known formulas gives.
    """
    weight = anatomy.head.weight
    if weight.device.type == "meta":
        raise UnsupportedModelError(
            "The output head is offloaded to CPU memory or disk",
            "a head that stays on its device",
            "a device_map that keeps the head on a device",
        )
    return Readout(anatomy.tail, anatomy.head, _find_transform(module, anatomy.head, token_ids))


def _find_transform(module: nn.Module, head: nn.Linear, token_ids: Tensor) -> LogitTransform:
    ramp = torch.linspace(-_RAMP, _RAMP, head.weight.shape[0], device=head.weight.device, dtype=head.weight.dtype)

    def replace(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return ramp.expand_as(output).clone()

    with hooks_on([head.register_forward_hook(replace)]), torch.no_grad():
        image = module(input_ids=token_ids, use_cache=False).logits[0, -1].to(ramp.device)
    for transform in _candidates(module):
        expected = transform(ramp).to(image.dtype)
        if image.shape == expected.shape and torch.allclose(image, expected, rtol=4 * torch.finfo(ramp.dtype).eps, atol=0):
            return transform
    known = ", ".join(f"{t.kind} {t.value:g}" for t in _candidates(module))
    raise AnatomyError(
        f"{type(module).__name__} turns a head output of 60 into a logit of {image[-1].item():.6g}",
        f"one of the known treatments of logits ({known})",
        "a model of another family; this one's logits would be misread",
    )


def _candidates(module: nn.Module) -> Iterator[LogitTransform]:
    """Formulas that the configuration's numbers suggest. Names differ, and one name is used both ways."""
    yield LogitTransform()
    config = getattr(module, "config", None)
    fields = vars(config.get_text_config()) if config is not None else {}
    for name, value in sorted(fields.items()):
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        if numeric and ("logit" in name or "lm_head" in name):
            if "cap" in name:
                yield LogitTransform("softcap", float(value))
            else:
                yield LogitTransform("multiply", float(value))
                yield LogitTransform("divide", float(value))


def check_readout(readout: Readout, last_state: Tensor, logits: Tensor) -> ReadoutCheck:
    """Compare the read-out of the last residual state with the model's own logits."""
    ours = readout(last_state).to(logits.device)
    largest = logits.abs().max().item()
    error = (ours - logits).abs().max().item() / max(largest, 1e-30)
    return ReadoutCheck(error, TOLERANCE.get(readout.head.weight.dtype, 1e-5), largest)
