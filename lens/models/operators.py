"""Attention operators: softmax, and what has been proposed in its place, from the same logits, queries and keys.

What a trained model does under another operator is a shift of what it knows, not what a model trained with that
operator could do.

Learned sinks (gpt-oss), an outcome without a key, take their share under `Softmax`, `UniversalRelative`, `Alibi` and
`LowRank`, which are softmax at heart; a temperature divides them, too. All others give the whole weight to keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lens.base.errors import InputError
from lens.models.attention_input import AttentionInput, Operator, operator_name, operator_weights, weights
from lens.models.log_normal_kernel import log_weights, matched_scales

__all__ = [
    "OPERATORS",
    "Alibi",
    "AttentionInput",
    "FirstToken",
    "Identity",
    "LogNormal",
    "LowRank",
    "Operator",
    "PreviousToken",
    "ReweightedSoftplus",
    "Softmax",
    "Softplus",
    "Uniform",
    "UniversalRelative",
    "alibi_slopes",
    "halved_every_32",
    "operator_name",
    "operator_weights",
    "weights",
]

ByDistance = Tensor | Sequence[float] | Callable[[Tensor], Tensor]


class _Named:
    """Parameters in short, so that a long tensor stays one line."""

    name: ClassVar[str]
    bytes_per_weight: ClassVar[int] = 28  # measured at the peak, logits and weights included

    def __repr__(self) -> str:
        given = ", ".join(f"{field.name}={_short(getattr(self, field.name))}" for field in fields(self))  # type: ignore[arg-type]
        return f"{type(self).__name__}({given})"


def _short(value: Any) -> str:
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    if not isinstance(value, (Tensor, list, tuple)):
        return repr(value)
    flat = torch.as_tensor(value).flatten().tolist()
    shown = ", ".join(f"{number:.4g}" for number in flat[:4])
    return f"[{shown}{f', … {len(flat)} in all' if len(flat) > 4 else ''}]"


# -- softmax and its kin --------------------------------------------------------------------------


def _softmax(logits: Tensor, seen: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Over keys that are seen; zeros where none is. A sink, if there is one, takes its share."""
    logits = logits.masked_fill(~seen, -torch.inf)
    top = logits.amax(-1, keepdim=True)
    top = top if sinks is None else top.maximum(sinks.to(logits)[:, None, None])
    top = top.masked_fill(top == -torch.inf, 0.0)
    found = (logits - top).exp()
    total = found.sum(-1, keepdim=True)
    total = total if sinks is None else total + (sinks.to(logits)[:, None, None] - top).exp()
    return found / total.masked_fill(total == 0, 1.0)


@dataclass(frozen=True, eq=False, repr=False)
class Softmax(_Named):
    """exp(S / temperature) over its row sum."""

    temperature: float | int = 1.0
    name: ClassVar[str] = "softmax"

    def __post_init__(self) -> None:
        _require_positive(self.temperature, "temperature")

    def __call__(self, given: AttentionInput) -> Tensor:
        sinks = None if given.sinks is None else given.sinks / self.temperature
        return _softmax(given.logits / self.temperature, given.seen, sinks)


@dataclass(frozen=True, eq=False, repr=False)
class UniversalRelative(_Named):
    """URPE, softmax(S + B) ⊙ C with Toeplitz B and C (Luo et al., arXiv 2205.13401). Rows need not sum to one.

    Attributes:
        c: factor of each distance, 0 first: `[distance]`, or `[head, distance]` for all heads of a block, or a function
            of the distances `[query, key]`. A key after its query takes that of the same distance before it.
        b: added to the logits in the same way, or None.
    """

    c: ByDistance
    b: ByDistance | None = None
    name: ClassVar[str] = "universal relative (URPE)"

    def __call__(self, given: AttentionInput) -> Tensor:
        logits = given.logits if self.b is None else given.logits + _by_distance(self.b, given, "b")
        return _softmax(logits, given.seen, given.sinks) * _by_distance(self.c, given, "c")


def _by_distance(values: ByDistance, given: AttentionInput, what: str) -> Tensor:
    distance = given.distance.abs()
    if callable(values) and not isinstance(values, Tensor):
        found = values(distance.to(given.logits.dtype))
        return torch.as_tensor(found).to(given.logits)
    table = torch.as_tensor(values).to(given.logits)
    if table.shape[-1] <= int(distance.max()) or table.ndim not in (1, 2):
        found = f"{what} has shape {tuple(table.shape)} for {given.logits.shape[-1]} keys"
        raise InputError(found, "[distance] or [head, distance], with a number for every distance", "a longer one, or a function")
    return (table if table.ndim == 1 else given.of_heads(table, what))[..., distance]


@dataclass(frozen=True, eq=False, repr=False)
class Alibi(_Named):
    """softmax(S − slope · distance) (Press et al., arXiv 2108.12409).

    Attributes:
        slopes: one for each head of the block; None for the published ones, 2^(−8(h+1)/heads) for a power of two.
    """

    slopes: Tensor | Sequence[float] | None = None
    name: ClassVar[str] = "linear biases (ALiBi)"

    def __call__(self, given: AttentionInput) -> Tensor:
        count = given.logits.shape[-3] if given.n_heads is None else given.n_heads
        table = torch.as_tensor(alibi_slopes(count) if self.slopes is None else self.slopes).to(given.logits)
        slopes = given.of_heads(table.reshape(-1), "slopes")[:, None, None]
        return _softmax(given.logits - slopes * given.distance.abs(), given.seen, given.sinks)


def alibi_slopes(heads: int) -> list[float]:
    """The published slopes: a geometric series for a power of two, and every second one of the next series for more heads."""
    power = 2 ** int(math.log2(heads))
    series = [2.0 ** (-8.0 * (head + 1) / power) for head in range(power)]
    return series if power == heads else series + alibi_slopes(2 * power)[::2][: heads - power]


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(_Named):
    """Softmax, then the best approximation of each head's pattern by one of a lower rank (Eckart and Young), in float64.

    Rows no longer sum to one, and weights can be negative. The approximation knows of no mask: it gives weight to later
    keys unless `masked` puts zeros there again, after which the rank can be higher.

    Attributes:
        rank: 1 or more; of all positions it is softmax itself.
        masked: put zeros where keys are not seen.
    """

    rank: int
    masked: bool = False
    name: ClassVar[str] = "low rank"
    bytes_per_weight: ClassVar[int] = 48

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"The rank is {self.rank}", "1 or more", "rank=1")

    def __call__(self, given: AttentionInput) -> Tensor:
        pattern = _softmax(given.logits, given.seen, given.sinks)
        left, values, right = torch.linalg.svd(pattern.detach().to("cpu").double(), full_matrices=False)
        kept = (left[..., : self.rank] * values[..., None, : self.rank]) @ right[..., : self.rank, :]
        return kept.to(pattern) * given.seen if self.masked else kept.to(pattern)


# -- without an exponential of logits -------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Softplus(_Named):
    """LSSA: softplus(ln d · ln n · cos(q, k)) over its row sum, n the keys that a query sees (arXiv 2501.13428)."""

    name: ClassVar[str] = "softplus (LSSA)"

    def __call__(self, given: AttentionInput) -> Tensor:
        cosine = normalize(given.query, dim=-1) @ normalize(given.key, dim=-1).mT
        scale = math.log(given.query.shape[-1]) * given.visible.clamp(min=1.0).log()
        found = torch.logaddexp(scale * cosine, cosine.new_zeros(())) * given.seen
        return found / found.sum(-1, keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)


@dataclass(frozen=True, eq=False, repr=False)
class ReweightedSoftplus(_Named):
    """LSSAR: ReLU(n·A − O)^power over its row sum, of LSSA's weights A (arXiv 2501.13428).

    O is 1 where a query sees more than three keys, and else 0 (the paper's first three rows). A uniform row, of which
    nothing would be left, stays as it is.

    Attributes:
        power: 3 is published as best at the length of training, 15 for longer texts.
    """

    power: float | int = 3
    name: ClassVar[str] = "re-weighted softplus (LSSAR)"

    def __post_init__(self) -> None:
        _require_positive(self.power, "power")

    def __call__(self, given: AttentionInput) -> Tensor:
        plain, visible = Softplus()(given), given.visible
        above = (visible * plain - (visible > 3).to(plain)).clamp(min=0.0)
        # Rounding alone lifts entries of a uniform row by some ulps of one, which the power would make much of.
        above = above.where(above > 64 * torch.finfo(plain.dtype).eps, 0.0)
        left = (above > 0) & given.seen
        return torch.where(left.any(-1, keepdim=True), _softmax(self.power * above.log(), left), plain)


@dataclass(frozen=True, eq=False, repr=False)
class LogNormal(_Named):
    """LLN: φ(q)·φ(k) over its row sum, φ(q) = exp(alpha·q) and φ(k) = exp(beta·k) (arXiv 2311.13541), in float64.

    Its weights are near log-normal while exponents are small. At the spread that matches moments, the largest product
    rules each sum, and logarithms of weights are skewed to the right.

    Attributes:
        alpha: of the queries. None for both matches moments, head by head: what alpha gives the queries and beta the keys
            has the same spread, and logarithms of the weights have the variance of the logits, over the keys of a row on
            average. These two numbers come from the whole text, later tokens included.
        beta: of the keys.
        diagonal: positions of a block of "+Diag", the mean with softmax inside such blocks; None for LLN alone.
    """

    alpha: float | int | None = None
    beta: float | int | None = None
    diagonal: int | None = None
    name: ClassVar[str] = "linear log-normal (LLN)"
    bytes_per_weight: ClassVar[int] = 48

    def __post_init__(self) -> None:
        if (self.alpha is None) != (self.beta is None):
            raise InputError(f"alpha is {self.alpha} and beta is {self.beta}", "both or none", "neither, to match moments")
        if self.diagonal is not None and self.diagonal < 1:
            raise InputError(f"Blocks of {self.diagonal} positions", "1 or more", "diagonal=None, without them")

    def scales(self, given: AttentionInput) -> tuple[Tensor, Tensor]:
        """alpha and beta, `[..., head, 1, 1]` float64 or single numbers."""
        if self.alpha is None or self.beta is None:
            logits = _exact(given.logits)
            return matched_scales(logits, _exact(given.query), _exact(given.key), given.seen.to(logits.device))
        return torch.tensor(float(self.alpha)), torch.tensor(float(self.beta))

    def __call__(self, given: AttentionInput) -> Tensor:
        query, key = _exact(given.query), _exact(given.key)
        alpha, beta = (scale.to(query) for scale in self.scales(given))
        linear = _softmax(log_weights(alpha * query, beta * key), given.seen.to(query.device)).to(given.logits)
        if self.diagonal is None:
            return linear
        place = torch.arange(given.logits.shape[-1], device=given.logits.device) // self.diagonal
        near = place[-given.logits.shape[-2] :, None] == place
        return (linear + _softmax(given.logits, given.seen & near)) / 2


def _exact(states: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return (states.cpu() if states.device.type == "mps" else states).double()


# -- without queries and keys ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Uniform(_Named):
    """The same weight for every key that is seen."""

    name: ClassVar[str] = "uniform"

    def __call__(self, given: AttentionInput) -> Tensor:
        return _softmax(torch.zeros_like(given.logits), given.seen)


@dataclass(frozen=True, eq=False, repr=False)
class FirstToken(_Named):
    """All weight on the first key that a query sees: the first token, or the end of its window."""

    name: ClassVar[str] = "first token"

    def __call__(self, given: AttentionInput) -> Tensor:
        return _one_key(given, given.distance.new_zeros(()))


@dataclass(frozen=True, eq=False, repr=False)
class PreviousToken(_Named):
    """All weight on the token before, and the first token's on itself."""

    name: ClassVar[str] = "previous token"

    def __call__(self, given: AttentionInput) -> Tensor:
        return _one_key(given, (given.distance[:, :1] - 1).clamp(min=0))


@dataclass(frozen=True, eq=False, repr=False)
class Identity(_Named):
    """Every token reads itself."""

    name: ClassVar[str] = "identity"

    def __call__(self, given: AttentionInput) -> Tensor:
        return _one_key(given, given.distance[:, :1])


def _one_key(given: AttentionInput, wanted: Tensor) -> Tensor:
    """One for the key that is wanted, or for the first one seen after it where it is hidden; zeros where there is none."""
    seen = given.seen.expand(given.logits.shape)
    place = torch.arange(seen.shape[-1], device=seen.device)
    after = seen & (place >= wanted)
    return (after & (after.cumsum(-1) == 1)).to(given.logits)


def _require_positive(value: float | int, what: str) -> None:
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"The {what} is {value:g}", "a number above zero", f"{what}=1")


def halved_every_32(distance: Tensor) -> Tensor:
    """2^(−distance / 32): an example of C, not a trained one."""
    return torch.exp2(-distance / 32)


OPERATORS: Mapping[str, Callable[[], Operator]] = {
    "softmax": Softmax,
    "softplus": Softplus,
    "re-weighted softplus": ReweightedSoftplus,
    "log-normal": LogNormal,
    "log-normal + diagonal": lambda: LogNormal(diagonal=32),
    "universal relative": lambda: UniversalRelative(halved_every_32),
    "alibi": Alibi,
    "uniform": Uniform,
    "first token": FirstToken,
    "previous token": PreviousToken,
    "identity": Identity,
    "low rank": lambda: LowRank(8),
    "low rank, masked": lambda: LowRank(8, masked=True),
}
