"""The Three-Phase transformer: Llama's attention and MLP on a residual stream in N phases.

    h = embedding + (1/(position + 1) − mean over channels)·1        the horn, once
    for every block:
        h = h + attention(norm of each phase of h)
        h = rotation of each phase of h, phase i by θ + 2πi/N        in the place of h
        h = h + mlp(norm of each phase of h)
    logits = head(norm of each phase of h)

Everything else, attention kernels, rotary tables, masks, cache and generation, is transformers' own.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers import initialization as init
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRotaryEmbedding,
)

from lens.models.three_phase.configuration import ThreePhaseConfig


class PhaseRMSNorm(nn.Module):
    """Root mean square norm of each phase by itself; with one phase, Llama's norm.

    Args:
        width: channels of the stream, of which phase i has those from `i · width / phases`.
        phases: N.
        epsilon: added to the mean square, inside the root.
    """

    def __init__(self, width: int, phases: int, epsilon: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.phases, self.epsilon = phases, epsilon

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        wide = states.to(_at_least_float32(states.dtype)).unflatten(-1, (self.phases, -1))
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return self.weight * normed.flatten(-2).to(states.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, phases={self.phases}, epsilon={self.epsilon}"


class PhaseRotation(nn.Module):
    """Rotation of the stream: pair k of phase i, the channels 2k and 2k + 1 of it, turns by θ[k] + 2πi/N.

    The angles are real numbers, not reduced to a turn, and the offset 2πi/N is a constant.

    Args:
        width: channels of the stream.
        phases: N.
        angle: that all pairs start from, radians.
        tied: one θ for all pairs instead of one for each.
        learned: False keeps θ as a buffer.
    """

    def __init__(self, width: int, phases: int, angle: float, *, tied: bool = False, learned: bool = True):
        super().__init__()
        self.phases, self.pairs, self.angle = phases, width // (2 * phases), angle
        theta = torch.full((1 if tied else self.pairs,), angle)
        if learned:
            self.theta = nn.Parameter(theta)
        else:
            self.register_buffer("theta", theta)

    def angles(self) -> Float[Tensor, "phase pair"]:
        """θ + 2πi/N, radians, in θ's dtype or float32, whichever is wider."""
        theta = self.theta.to(_at_least_float32(self.theta.dtype))
        offset = 2 * math.pi / self.phases * torch.arange(self.phases, dtype=theta.dtype, device=theta.device)
        return offset[:, None] + theta.expand(self.pairs)

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return turn_phases(states, self.angles())

    def matrix(self) -> Float64[Tensor, "width width"]:
        """The orthogonal matrix R with R·h the rotated state."""
        width = 2 * self.phases * self.pairs
        angles = self.angles().detach().double()
        return turn_phases(torch.eye(width, dtype=torch.float64, device=angles.device), angles).T

    def extra_repr(self) -> str:
        return f"phases={self.phases}, pairs={self.pairs}, angle={self.angle:.6g}"


def turn_phases(states: Float[Tensor, "*batch width"], angles: Float[Tensor, "phase pair"]) -> Float[Tensor, "*batch width"]:
    """Turn pairs of adjacent channels counter-clockwise, in the wider of both dtypes; the result has the states' own."""
    wide = states.to(torch.promote_types(states.dtype, angles.dtype)).unflatten(-1, (*angles.shape, 2))
    turn = torch.polar(torch.ones_like(angles), angles)  # of complex numbers: one kernel for a product instead of seven
    turned = torch.view_as_real(torch.view_as_complex(wide.contiguous()) * turn)
    return turned.flatten(-3).to(states.dtype)


class Horn(nn.Module):
    """Puts 1/(position + 1), or another number for each position, in the place of the mean over all channels.

    Args:
        kind: `fixed`, `learned`, `centred` or `none`, see `ThreePhaseConfig`.
        positions: of the learned numbers, from 0; no other may occur.
    """

    def __init__(self, kind: str, positions: int):
        super().__init__()
        self.kind = kind
        if kind == "learned":
            self.profile = nn.Parameter(harmonic(torch.arange(positions)))

    def forward(
        self, embedded: Float[Tensor, "batch position width"], position_ids: Int64[Tensor, "... position"]
    ) -> Float[Tensor, "batch position width"]:
        if self.kind == "none":
            return embedded
        wide = embedded.to(_at_least_float32(embedded.dtype))
        shifted = wide - wide.mean(-1, keepdim=True)
        if self.kind != "centred":
            shifted = shifted + self.at(position_ids, wide.dtype)[..., None]
        return shifted.to(embedded.dtype)

    def at(self, position_ids: Int64[Tensor, "... position"], dtype: torch.dtype) -> Float[Tensor, "... position"]:
        """The mean over channels that each position gets."""
        if self.kind == "learned":
            return self.profile[position_ids].to(dtype)
        return harmonic(position_ids, dtype)

    def extra_repr(self) -> str:
        return self.kind


def harmonic(position_ids: Int64[Tensor, "*batch"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*batch"]:
    """1/(position + 1)."""
    return 1 / (position_ids.to(dtype) + 1)


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


class ThreePhaseRotaryEmbedding(LlamaRotaryEmbedding):
    """Llama's cosines and sines; for states in float64 computed in float64."""

    def forward(self, x: Tensor, position_ids: Int64[Tensor, "... position"]) -> tuple[Tensor, Tensor]:
        if x.dtype != torch.float64 or self.rope_type != "default":
            return super().forward(x, position_ids)
        angles = position_ids[..., None].double() * self.inv_freq.double().repeat(2)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


class NoRotary(nn.Module):
    """Cosines of one and sines of zero, which leave queries and keys as they are."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones((1, 1, 1), dtype=x.dtype, device=x.device)
        return one, torch.zeros_like(one)


class ThreePhaseLayer(LlamaDecoderLayer):
    """A block: attention added, the stream rotated, MLP added."""

    def __init__(self, config: ThreePhaseConfig, layer_idx: int):
        super(LlamaDecoderLayer, self).__init__()  # Llama's own would draw weights for parts that are not used
        width, phases = config.hidden_size, config.num_phases
        self.self_attn = LlamaAttention(config=config, layer_idx=layer_idx)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = _norm(config)
        self.post_attention_layernorm = _norm(config)
        self.residual_rotation = config.residual_rotation
        self.phase_rotation: PhaseRotation | None = None
        if config.phase_rotation != "off":
            tied, learned = config.phase_rotation == "tied", config.phase_rotation != "frozen"
            self.phase_rotation = PhaseRotation(width, phases, config.angle_of(layer_idx), tied=tied, learned=learned)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:  # type: ignore[override]
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        states = hidden_states + attended
        if self.phase_rotation is not None:
            turned = self.phase_rotation(states)
            states = states + turned if self.residual_rotation else turned
        return states + self.mlp(self.post_attention_layernorm(states))


def _norm(config: ThreePhaseConfig) -> PhaseRMSNorm:
    return PhaseRMSNorm(config.hidden_size, config.num_phases if config.phase_norm else 1, config.rms_norm_eps)


class ThreePhasePreTrainedModel(LlamaPreTrainedModel):
    """What both models below share: how weights are drawn, and what stays in float32."""

    config: ThreePhaseConfig  # type: ignore[assignment]
    config_class = ThreePhaseConfig
    _no_split_modules: ClassVar = ["ThreePhaseLayer"]
    _can_record_outputs: ClassVar = {"hidden_states": ThreePhaseLayer, "attentions": LlamaAttention}
    # An angle of 1.5 in bfloat16 is a multiple of 0.008, more than most angles move in a training.
    _keep_in_fp32_modules_strict: ClassVar = ["phase_rotation", "horn"]  # type: ignore[misc]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws nothing for what only some variants have, so that one seed gives all variants the same weights."""
        if isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, 0.0, self.config.initializer_range)
        elif isinstance(module, PhaseRotation):
            init.constant_(module.theta, module.angle)
        elif isinstance(module, Horn) and module.kind == "learned":
            init.copy_(module.profile, harmonic(torch.arange(len(module.profile))))
        else:
            super()._init_weights(module)


class ThreePhaseModel(ThreePhasePreTrainedModel, LlamaModel):  # type: ignore[misc]
    """The stack without its head. Its first hidden state is the embedded token with its horn."""

    def __init__(self, config: ThreePhaseConfig):
        super(LlamaModel, self).__init__(config)  # Llama's own would build Llama's layers
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        # The published buffers have one entry more than the windows are long, which no window reaches.
        self.horn = Horn(config.horn, config.max_position_embeddings + 1)
        self.layers = nn.ModuleList([ThreePhaseLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = _norm(config)
        self.rotary_emb = ThreePhaseRotaryEmbedding(config=config) if config.use_rope else NoRotary()
        self.gradient_checkpointing = False
        self.post_init()

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Any = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `LlamaModel.forward`; `inputs_embeds` get multiplier and horn, too.

        The horn of a token is that of its `position_ids`, which count on under a cache and behind padding.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Exactly one of input_ids and inputs_embeds is needed")
        embedded = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            seen = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(seen, seen + embedded.shape[1], device=embedded.device)[None]
        if self.config.embedding_multiplier != 1:
            embedded = embedded * self.config.embedding_multiplier
        return super().forward(
            inputs_embeds=self.horn(embedded, position_ids), attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, **kwargs,
        )  # fmt: skip


class ThreePhaseForCausalLM(ThreePhasePreTrainedModel, LlamaForCausalLM):  # type: ignore[misc]
    """The Three-Phase transformer with its head: logits, loss, generation, saving and opening as in transformers."""

    def __init__(self, config: ThreePhaseConfig):
        super(LlamaForCausalLM, self).__init__(config)  # Llama's own would build Llama's model
        self.model = ThreePhaseModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
