"""Settings of the Three-Phase transformer, and of every variant that tells its parts apart."""

from __future__ import annotations

import math
from typing import Any, no_type_check

from transformers import LlamaConfig

from lens.base.errors import InputError

HORNS = ("fixed", "learned", "centred", "none")
ROTATIONS = ("learned", "frozen", "tied", "off")


@no_type_check  # a configuration takes any other argument, too, and its generated signature does not say so
class ThreePhaseConfig(LlamaConfig):
    """A Llama configuration with phases; the defaults are the published model of 123 million parameters.

    The published baseline is `num_phases=1, phase_norm=False, phase_rotation="off", horn="none",
    embedding_multiplier=math.sqrt(hidden_size)`; without that multiplier it is a Llama.

    Source: M. R. Abu Ayyash, "Three-Phase Transformer", arXiv 2604.14430 (2026), and its reference implementation.

    Args:
        num_phases: N contiguous parts of the residual stream; twice it divides `hidden_size`.
        phase_norm: True norms each phase by itself; False norms the whole stream, as Llama does.
        phase_rotation: of the stream between attention and MLP: `learned` angles, `frozen` ones (a buffer), `tied`, one learned
            angle for a whole block, or `off`.
        residual_rotation: True adds the rotated stream to the stream; False, as published, puts it in its place.
        initial_angles: of each block, radians; by default `(block + 1) π / (2 · blocks)`.
        horn: what the mean over channels of the embedded token becomes: `fixed`, 1/(position + 1); `learned`, starting
            from that; `centred`, 0; or `none`, left as it is.
        embedding_multiplier: of the embedding; √`hidden_size` in the published baseline, 1 in the published model.
        initializer_range: standard deviation of the embedding alone. Linear maps start uniform within 1/√(their inputs).
        use_rope: False leaves queries and keys as they are.
        align_heads: True asks that `num_phases` divides the numbers of query and of key heads. No computation depends on it.

    All other arguments are those of `LlamaConfig`.

    Raises:
        InputError: a width, a number of heads or a list of angles that does not fit, or an unknown variant.
    """

    model_type = "three_phase"

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_key_value_heads: int | None = 3
    max_position_embeddings: int = 1024
    initializer_range: float = 1.0

    num_phases: int = 3
    phase_norm: bool = True
    phase_rotation: str = "learned"
    residual_rotation: bool = False
    initial_angles: list[float] | None = None
    horn: str = "fixed"
    embedding_multiplier: float = 1.0
    use_rope: bool = True
    align_heads: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        _require_one_of(self.phase_rotation, ROTATIONS, "phase rotation")
        _require_one_of(self.horn, HORNS, "horn")
        _require_phases(self.hidden_size, self.num_phases)
        _require_heads(self)
        if self.initial_angles is not None and len(self.initial_angles) != self.num_hidden_layers:
            found = f"There are {len(self.initial_angles)} initial angles"
            raise InputError(found, f"{self.num_hidden_layers}, one for each block", "initial_angles=None")
        if not self.use_rope:
            self.rope_parameters = None  # what reads the configuration must not find a table that nobody uses

    def angle_of(self, block: int) -> float:
        """Angle that all pairs of a block start from, radians."""
        if self.initial_angles is not None:
            return self.initial_angles[block]
        return (block + 1) * math.pi / (2 * self.num_hidden_layers)


def _require_one_of(value: str, known: tuple[str, ...], what: str) -> None:
    if value not in known:
        raise InputError(f"The {what} is {value!r}", f"one of {', '.join(known)}", known[0])


def _require_phases(width: int, phases: int) -> None:
    if phases < 1 or width % (2 * phases):
        fitting = [n for n in range(1, width // 2 + 1) if width % (2 * n) == 0]
        shown = ", ".join(map(str, fitting[:12])) or "none"
        raise InputError(f"{phases} phases of a stream of {width} channels", "an even number of channels in each phase", shown)


def _require_heads(config: ThreePhaseConfig) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    if heads % kv_heads:
        raise InputError(
            f"{heads} query heads and {kv_heads} key heads", "as many query heads for each key head", "other numbers"
        )
    if config.align_heads and (heads % config.num_phases or kv_heads % config.num_phases):
        found = f"{heads} query heads and {kv_heads} key heads for {config.num_phases} phases"
        raise InputError(found, "numbers that the phases divide", "align_heads=False, which changes no computation")
