"""The Three-Phase transformer does what it is said to do, and is a transformers model like any other."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import lens
from lens.base.errors import InputError, UnsupportedModelError
from lens.models import edits
from lens.models.three_phase import (
    PhaseRMSNorm,
    PhaseRotation,
    ThreePhaseConfig,
    ThreePhaseForCausalLM,
    absorb_rotation,
    stream_angles,
    transported_direction,
)
from lens.models.three_phase.configuration import ROTATIONS
from lens.models.three_phase.modeling import Horn, turn_phases
from tests.models.families import build

SMALL = {
    "vocab_size": 10000,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "max_position_embeddings": 128,
}
SIX = {"num_attention_heads": 6, "num_key_value_heads": 3}
TINY = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "max_position_embeddings": 32,
    **SIX,
}
IDS = torch.tensor([[3, 1, 41, 5, 9, 26, 53, 58, 9, 7, 9, 3], [2, 7, 18, 28, 18, 28, 45, 9, 0, 45, 23, 53]])


def tiny(seed: int = 0, **options: Any) -> ThreePhaseForCausalLM:
    """As it is drawn, in float64."""
    torch.manual_seed(seed)
    return ThreePhaseForCausalLM(ThreePhaseConfig(**{**TINY, **options})).double().eval()


def shaken(seed: int = 0, **options: Any) -> ThreePhaseForCausalLM:
    """With gains and angles that are not what they start from."""
    model = tiny(seed, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def size(**options: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in ThreePhaseForCausalLM(ThreePhaseConfig(**options)).parameters())


def gap(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


# -- sizes and starts ------------------------------------------------------------------------------


def test_parameter_counts_are_the_published_ones():
    baseline = {"num_phases": 1, "phase_norm": False, "phase_rotation": "off", "horn": "none"}
    assert size(**baseline) == 123_489_024
    assert size() == 123_490_560 == 123_489_024 + 12 * 128
    assert size(num_phases=1) == 123_493_632
    assert size(**SMALL, **baseline, num_attention_heads=4, num_key_value_heads=2) == 5_463_744
    sweep = {1: 5_464_128, 2: 5_463_936, 3: 5_463_872, 4: 5_463_840, 6: 5_463_808, 8: 5_463_792, 12: 5_463_776}
    assert {n: size(**SMALL, **SIX, num_phases=n, align_heads=False) for n in sweep} == sweep
    horned = {**SMALL, "horn": "learned"}
    assert size(**horned, **SIX) == 5_464_001  # 129 more than the fixed horn
    assert size(**SMALL, **SIX, phase_rotation="tied") == 5_463_744 + 4
    assert size(**SMALL, **SIX, phase_rotation="frozen") == 5_463_744


def test_the_stated_sizes_of_phases_are_those_of_the_sweep():
    for phases, (width, pairs) in {1: (192, 96), 2: (96, 48), 3: (64, 32), 8: (24, 12), 12: (16, 8)}.items():
        rotation = PhaseRotation(192, phases, 0.1)
        assert (192 // phases, rotation.pairs, len(rotation.theta)) == (width, pairs, pairs)


@pytest.mark.parametrize(("blocks", "first_degrees"), [(4, 22.5), (12, 7.5)])
def test_angles_start_in_equal_steps_up_to_a_right_angle(blocks: int, first_degrees: float):
    model = tiny(num_hidden_layers=blocks)
    starts = [layer.phase_rotation.theta for layer in model.model.layers]
    for block, theta in enumerate(starts):
        assert torch.equal(theta, torch.full_like(theta, (block + 1) * math.pi / (2 * blocks), dtype=torch.float32).double())
    assert math.degrees(starts[0][0].item()) == pytest.approx(first_degrees, abs=1e-5)
    assert starts[-1][0].item() == pytest.approx(math.pi / 2, abs=1e-7)
    angles = stream_angles(model)[:, 0, 0]
    assert angles[-1].item() == pytest.approx({4: 5, 12: 13}[blocks] * math.pi / 4, abs=1e-6)


def test_angles_start_where_they_are_asked_to():
    model = tiny(initial_angles=[0.5, -2.0, 7.0])
    assert [round(layer.phase_rotation.theta[3].item(), 6) for layer in model.model.layers] == [0.5, -2.0, 7.0]


def test_the_loss_starts_at_the_logarithm_of_the_vocabulary_and_a_sixth():
    torch.manual_seed(1)
    model = ThreePhaseForCausalLM(ThreePhaseConfig(**SMALL, **SIX)).eval()
    assert model.model.embed_tokens.weight.std().item() == pytest.approx(1, abs=2e-3)
    ids = torch.randint(0, 10000, (4, 128))
    with torch.no_grad():
        output = model(ids, labels=ids)
    assert output.loss.item() == pytest.approx(math.log(10000) + 1 / 6, abs=0.05)
    assert output.logits.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.01)


def test_one_seed_gives_all_variants_the_same_weights_and_the_same_next_random_number():
    variants = [{}, {"num_phases": 1}, {"phase_rotation": "off"}, {"phase_rotation": "tied"}, {"phase_rotation": "frozen"}]
    variants += [{"horn": "learned"}, {"horn": "none"}, {"embedding_multiplier": 6.9}, {"residual_rotation": True}]
    drawn = []
    for options in variants:
        model = tiny(5, **options)
        own = {n: v for n, v in model.named_parameters() if "rotation" not in n and "horn" not in n}
        drawn.append((own, torch.rand(1)))
    (first, after), *others = drawn
    for weights, following in others:
        assert weights.keys() == first.keys()
        assert all(torch.equal(weights[name], first[name]) for name in first)
        assert torch.equal(following, after)
    smaller = dict(tiny(5, initializer_range=0.02).named_parameters())
    assert gap(smaller["model.embed_tokens.weight"], 0.02 * first["model.embed_tokens.weight"]) < 1e-8
    assert torch.equal(smaller["lm_head.weight"], first["lm_head.weight"])


def test_linear_maps_start_uniform_within_the_root_of_their_inputs():
    for name, part in tiny().named_modules():
        if isinstance(part, nn.Linear):
            bound = 1 / math.sqrt(part.in_features)
            assert 0.99 * bound < part.weight.abs().max().item() <= bound, name
            assert part.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 50, "num_phases": 3, "num_attention_heads": 5, "num_key_value_heads": 5}, "3 phases of a stream of 50"),
        ({"num_attention_heads": 4, "num_key_value_heads": 4}, "4 query heads and 4 key heads for 3 phases"),
        ({"num_phases": 16, "align_heads": False}, "16 phases of a stream of 48"),
        ({"num_phases": 0}, "0 phases"),
        ({"num_attention_heads": 8}, "8 query heads and 3 key heads"),
        ({"horn": "loud"}, "The horn is 'loud'"),
        ({"phase_rotation": "left"}, "The phase rotation is 'left'"),
        ({"initial_angles": [0.1]}, "There are 1 initial angles"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        ThreePhaseConfig(**{**TINY, **options})


# -- the norm of phases ----------------------------------------------------------------------------


def test_the_norm_of_phases_is_one_norm_for_each():
    torch.manual_seed(2)
    states, gain = torch.randn(2, 5, 48, dtype=torch.float64), torch.randn(48, dtype=torch.float64)
    norm = PhaseRMSNorm(48, 3, 1e-6).double()
    norm.weight.data.copy_(gain)
    parts = [
        part / (part.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * g
        for part, g in zip(states.split(16, -1), gain.split(16), strict=True)
    ]
    assert gap(norm(states), torch.cat(parts, -1)) < 1e-14


def test_one_phase_is_rmsnorm_to_the_bit():
    states = torch.randn(2, 5, 48)
    ours, llama = PhaseRMSNorm(48, 1, 1e-6), LlamaRMSNorm(48, 1e-6)
    assert torch.equal(ours(states), llama(states))
    assert torch.equal(ours.bfloat16()(states.bfloat16()), llama.bfloat16()(states.bfloat16()))


def test_the_scale_of_a_phase_does_not_matter_to_the_norm_of_phases_alone():
    states = torch.randn(4, 48, dtype=torch.float64)
    scaled = torch.cat([states[:, :16], 7.0 * states[:, 16:32], states[:, 32:]], -1)
    assert gap(PhaseRMSNorm(48, 3, 0.0).double()(scaled), PhaseRMSNorm(48, 3, 0.0).double()(states)) < 1e-12
    assert gap(PhaseRMSNorm(48, 1, 0.0).double()(scaled), PhaseRMSNorm(48, 1, 0.0).double()(states)) > 0.5


# -- the rotation ----------------------------------------------------------------------------------


def random_rotation(phases: int, width: int = 48, **options: Any) -> PhaseRotation:
    rotation = PhaseRotation(width, phases, 0.3, **options).double()
    rotation.theta.data.copy_(torch.randn(rotation.theta.shape))
    return rotation


def looped(rotation: PhaseRotation, states: Tensor) -> Tensor:
    """As the published code does it: one phase, one pair after the other."""
    turned = states.clone()
    width = states.shape[-1] // rotation.phases
    theta = rotation.theta.expand(rotation.pairs)
    for phase in range(rotation.phases):
        for pair in range(rotation.pairs):
            a, b = phase * width + 2 * pair, phase * width + 2 * pair + 1
            angle = theta[pair] + 2 * math.pi * phase / rotation.phases
            turned[..., a] = states[..., a] * angle.cos() - states[..., b] * angle.sin()
            turned[..., b] = states[..., a] * angle.sin() + states[..., b] * angle.cos()
    return turned


@pytest.mark.parametrize("phases", [1, 2, 3, 4, 6, 8, 12])
def test_the_rotation_is_the_loop_over_phases_and_the_dense_matrix(phases: int):
    for rotation in (random_rotation(phases), random_rotation(phases, tied=True)):
        states = torch.randn(2, 5, 48, dtype=torch.float64)
        turned, matrix = rotation(states), rotation.matrix()
        assert gap(turned, looped(rotation, states)) < 1e-14
        assert gap(turned, states @ matrix.T) < 1e-13
        assert gap(matrix @ matrix.T, torch.eye(48, dtype=torch.float64)) < 1e-14
        assert torch.linalg.det(matrix).item() == pytest.approx(1, abs=1e-12)
        norms = [part.unflatten(-1, (phases, -1)).norm(dim=-1) for part in (turned, states)]
        assert gap(*norms) < 1e-12
        assert gap(turn_phases(turned, -rotation.angles()), states) < 1e-14


def test_a_hand_value():
    rotation = PhaseRotation(6, 3, 0.0).double()
    turned = rotation(torch.tensor([1.0, 0, 1, 0, 1, 0], dtype=torch.float64))
    assert turned.tolist() == pytest.approx([1, 0, -0.5, 0.8660254, -0.5, -0.8660254], abs=5e-8)
    assert abs(turned[0::2].mean()) < 1e-15
    assert abs(turned[1::2].mean()) < 1e-15


def test_two_phases_are_a_rotation_and_its_opposite():
    matrix = random_rotation(2).matrix()
    assert gap(matrix[:24, :24], -matrix[24:, 24:]) < 1e-14
    assert matrix[:24, 24:].abs().max() == 0


@pytest.mark.parametrize("phases", [1, 2, 3, 4, 6, 8, 12])
def test_equal_channels_lose_their_mean_with_two_phases_or_more(phases: int):
    rotation = random_rotation(phases)
    mean = rotation(torch.ones(48, dtype=torch.float64)).mean().item()
    expected = rotation.theta.cos().mean().item() if phases == 1 else 0.0
    assert mean == pytest.approx(expected, abs=1e-14)


def test_angles_of_phases_are_evenly_apart_whatever_was_learned():
    """So the three clusters of a trained model are no finding."""
    model = shaken()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        model(IDS, labels=IDS).loss.backward()
        optimiser.step()
    for layer in model.model.layers:
        angles = layer.phase_rotation.angles()
        offsets = 2 * math.pi / 3 * torch.arange(3, dtype=torch.float64)[:, None]
        assert gap(angles - angles[:1], offsets) < 1e-14
        assert gap(layer.phase_rotation.theta, torch.full((8,), layer.phase_rotation.angle)) > 0.01


def test_gradients_of_the_angles_are_those_of_differences():
    states = torch.randn(2, 12, dtype=torch.float64)
    rotation = random_rotation(3, 12)

    def turned(theta: Tensor) -> Tensor:
        return torch.func.functional_call(rotation, {"theta": theta}, (states,))

    assert torch.autograd.gradcheck(turned, (rotation.theta.detach().requires_grad_(),))


# -- the horn --------------------------------------------------------------------------------------


def test_the_mean_over_channels_is_the_horn_and_the_rest_is_left_alone():
    embedded, positions = torch.randn(2, 128, 192, dtype=torch.float64), torch.arange(128)[None]
    horn = Horn("fixed", 129)
    put = horn(embedded, positions)
    assert gap(put.mean(-1), (1 / (positions + 1).double()).expand(2, -1)) < 1e-15
    assert gap(put - put.mean(-1, keepdim=True), embedded - embedded.mean(-1, keepdim=True)) < 1e-15
    assert (put - embedded).std(-1).max() < 1e-15
    assert gap(horn(put, positions), put) < 1e-15
    single = horn(embedded.float(), positions)
    assert gap(single.double().mean(-1), (1 / (positions + 1).double()).expand(2, -1)) < 1e-6
    assert 1 / (positions[0, 127] + 1) == pytest.approx(0.0078125)
    assert horn.at(torch.tensor([1023, 1024]), torch.float64).tolist() == pytest.approx([0.00097656, 0.00097561], abs=5e-9)


def test_the_other_horns_centre_and_do_nothing():
    embedded, positions = torch.randn(1, 6, 48, dtype=torch.float64), torch.arange(6)[None]
    assert Horn("centred", 7)(embedded, positions).mean(-1).abs().max() < 1e-15
    assert Horn("none", 7)(embedded, positions) is embedded
    learned = Horn("learned", 7)
    assert gap(learned(embedded, positions), Horn("fixed", 7)(embedded, positions)) < 1e-7
    learned.profile.data.copy_(torch.tensor([3.0, 1, 4, 1, 5, 9, 2]))
    assert gap(learned(embedded, positions).mean(-1), torch.tensor([[3.0, 1, 4, 1, 5, 9]])) < 1e-14


def test_the_horn_does_not_know_the_number_of_phases():
    first = [
        tiny(3, num_phases=n, align_heads=False).model(IDS, output_hidden_states=True).hidden_states[0] for n in (1, 2, 3, 12)
    ]
    assert all(torch.equal(first[0], other) for other in first[1:])


@pytest.mark.parametrize(
    ("phases", "length", "residual", "penalty"),
    [(3, 128, 0.12733938498, 0.11511225), (3, 1024, 0.02199953810, 0.01444885), (1, 1024, 0.00733317937, 0.01444885 / 9)],
)
def test_the_zero_sum_residual_of_a_horn_is_a_harmonic_number(phases: int, length: int, residual: float, penalty: float):
    put = Horn("fixed", 1)(torch.randn(2, length, 12, dtype=torch.float64), torch.arange(length)[None])
    sums = put.unflatten(-1, (phases, -1)).mean(-1).sum(-1)
    assert sums.mean().item() == pytest.approx(residual, abs=5e-12)
    assert sums.pow(2).mean().item() == pytest.approx(penalty, abs=5e-9)


def test_the_energy_of_the_horn_falls_with_the_square_of_the_position():
    energy = Horn("fixed", 1).at(torch.tensor([0, 1, 2, 3, 9, 99]), torch.float64) ** 2  # an embedded channel's is 1
    shares = 100 * energy / (1 + energy)
    assert [round(share, 2) for share in shares.tolist()] == [50, 20, 10, 5.88, 0.99, 0.01]


_FAR = {
    (4, 1): [0.9239, 0.3827, -0.7071, -0.7071], (4, 2): [0, 0.3827, 0, -0.7071], (4, 3): [0, 0, -0.7071, 0],
    (4, 4): [0, 0, 0, -0.7071], (4, 6): [0] * 4, (4, 12): [0] * 4,
    (12, 1): [0.9914, 0.9239, 0.7071, 0.2588, -0.3827, -0.9239, -0.8660, 0, 0.9239, 0.6088, -0.7071, -0.7071],
    (12, 3): [0, 0, 0.7071, 0, 0, -0.9239, 0, 0, 0.9239, 0, 0, -0.7071],
}  # fmt: skip


@pytest.mark.parametrize("shape", _FAR)
def test_the_horn_leaves_its_direction_with_the_first_rotation(shape: tuple[int, int]):
    blocks, phases = shape
    model = tiny(num_hidden_layers=blocks, num_phases=phases, align_heads=False)
    carried = [transported_direction(model, layer) * math.sqrt(48) for layer in range(blocks + 1)]
    assert [round(float(u.mean()), 4) + 0.0 for u in carried[1:]] == _FAR[shape]
    angles = stream_angles(model)
    for layer, u in enumerate(carried):
        assert u.norm().item() == pytest.approx(math.sqrt(48), abs=1e-12)
        assert gap(u.unflatten(0, (phases, -1)).mean(1), angles[layer, :, 0].cos()) < 1e-12


# -- the whole model -------------------------------------------------------------------------------


def llama_of(model: ThreePhaseForCausalLM, **options: Any) -> LlamaForCausalLM:
    """Llama with the same weights."""
    fields = {name: getattr(model.config, name) for name in (*TINY, "rms_norm_eps", "rope_parameters")}
    twin = LlamaForCausalLM(LlamaConfig(**{**fields, **options})).eval()
    missing = twin.load_state_dict({k: v for k, v in model.state_dict().items() if "rotation" not in k})
    assert not missing.missing_keys
    assert not missing.unexpected_keys
    return twin


@pytest.mark.parametrize(
    "options", [{}, {"phase_rotation": "off"}, {"phase_rotation": "off", "use_rope": True, "phase_norm": False}]
)
def test_one_phase_that_stands_still_without_a_horn_is_llama_to_the_bit(options: dict[str, Any]):
    model = build_float32(num_phases=1, horn="none", **options)
    for layer in model.model.layers:
        if layer.phase_rotation is not None:
            layer.phase_rotation.theta.data.zero_()
    assert torch.equal(model(IDS).logits, llama_of(model)(IDS).logits)


def build_float32(**options: Any) -> ThreePhaseForCausalLM:
    return shaken(**options).float()


def test_the_data_flow_is_the_stated_one():
    """Written out once more, with plain matrices."""
    model = shaken(embedding_multiplier=1.7)
    hidden = model.model.embed_tokens(IDS) * 1.7
    hidden = hidden + (1 / (torch.arange(12.0, dtype=torch.float64) + 1) - hidden.mean(-1))[..., None]
    cosines, sines = model.model.rotary_emb(hidden, torch.arange(12)[None])
    for layer in model.model.layers:
        normed = phase_norm(hidden, layer.input_layernorm.weight)
        hidden = hidden + attended(layer.self_attn, normed, cosines, sines)
        hidden = hidden @ layer.phase_rotation.matrix().T
        normed = phase_norm(hidden, layer.post_attention_layernorm.weight)
        mlp = layer.mlp
        hidden = hidden + mlp.down_proj(nn.functional.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed))
    logits = phase_norm(hidden, model.model.norm.weight) @ model.lm_head.weight.T
    assert gap(model(IDS).logits, logits) < 1e-12


def phase_norm(hidden: Tensor, gain: Tensor) -> Tensor:
    parts = hidden.unflatten(-1, (3, 16))
    return (parts / (parts.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()).flatten(-2) * gain


def attended(attention: Any, normed: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Grouped queries: query head q reads key head ⌊q · kv_heads / heads⌋."""

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cosines + torch.cat([-second, first], -1) * sines

    projected = [part(normed).unflatten(-1, (-1, 8)) for part in (attention.q_proj, attention.k_proj, attention.v_proj)]
    outputs = []
    for head in range(6):
        query, key = turned(projected[0][:, :, head]), turned(projected[1][:, :, head * 3 // 6])
        logits = query @ key.mT / math.sqrt(8)
        weights = logits.masked_fill(torch.ones(12, 12).triu(1).bool(), -torch.inf).softmax(-1)
        outputs.append(weights @ projected[2][:, :, head * 3 // 6])
    return attention.o_proj(torch.cat(outputs, -1))


def test_residual_rotation_adds_the_rotated_stream():
    model = shaken(num_hidden_layers=1, residual_rotation=True)
    layer, seen = model.model.layers[0], {}
    layer.phase_rotation.register_forward_hook(lambda _m, given, out: seen.update(given=given[0], out=out))
    layer.post_attention_layernorm.register_forward_hook(lambda _m, given, _out: seen.update(after=given[0]))
    model(IDS)
    assert torch.equal(seen["after"], seen["given"] + seen["out"])


def test_the_embedding_multiplier_comes_before_the_horn():
    plain, times = tiny(embedding_multiplier=1.0), tiny(embedding_multiplier=math.sqrt(48))
    states = [model.model(IDS, output_hidden_states=True).hidden_states[0] for model in (plain, times)]
    free = [state - state.mean(-1, keepdim=True) for state in states]
    assert gap(free[1], math.sqrt(48) * free[0]) < 1e-13
    assert gap(states[0].mean(-1), states[1].mean(-1)) < 1e-14


def test_attention_does_not_know_the_number_of_phases():
    normed = torch.randn(1, 12, 48, dtype=torch.float64)
    given = []
    for phases in (1, 2, 3, 4, 6):
        model = tiny(4, num_phases=phases, align_heads=False)
        turns = model.model.rotary_emb(normed, torch.arange(12)[None])
        given.append(model.model.layers[1].self_attn(normed, position_embeddings=turns)[0])
    assert all(torch.equal(given[0], other) for other in given[1:])


def test_later_tokens_leave_earlier_logits_alone():
    model, other = shaken(), IDS.clone()
    other[:, 7] = (other[:, 7] + 1) % 64
    logits, changed = model(IDS).logits, model(other).logits
    assert gap(logits[:, :7], changed[:, :7]) < 1e-14
    assert gap(logits[:, 7], changed[:, 7]) > 1e-3


def test_positions_matter_by_their_differences_but_for_the_horn():
    shift = torch.arange(5, 17)[None]
    for horn, moved in {"none": False, "centred": False, "fixed": True, "learned": True}.items():
        model = shaken(horn=horn)
        difference = gap(model(IDS).logits, model(IDS, position_ids=shift).logits)
        assert (difference > 1e-3) if moved else (difference < 1e-10), horn


def test_without_rotary_embeddings_order_matters_through_the_horn_alone():
    """Attention without positions sees a set: the last token's logits do not change with the order of those before."""
    swapped = IDS[:, [1, 0, *range(2, 12)]]
    for horn, matters in {"none": False, "fixed": True}.items():
        model = shaken(horn=horn, use_rope=False, num_hidden_layers=1)
        difference = gap(model(IDS).logits[:, -1], model(swapped).logits[:, -1])
        assert (difference > 1e-3) if matters else (difference < 1e-12)


# -- cache and generation --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"horn": "learned"}, {"use_rope": False}])
def test_cached_steps_are_the_whole_pass(options: dict[str, Any]):
    model = shaken(**options)
    whole = model(IDS).logits
    prompt = model(IDS[:, :5], use_cache=True)
    steps, cache = [prompt.logits], prompt.past_key_values
    for place in range(5, 12):
        step = model(IDS[:, place : place + 1], past_key_values=cache, use_cache=True)
        steps.append(step.logits)
    assert gap(torch.cat(steps, 1), whole) < 1e-12


def test_the_published_code_gives_every_cached_token_the_horn_of_the_first():
    model = shaken()
    whole = model(IDS).logits
    cache = model(IDS[:, :5], use_cache=True).past_key_values
    model.model.horn.register_forward_pre_hook(lambda _m, given: (given[0], torch.zeros_like(given[1])))
    step = model(IDS[:, 5:6], past_key_values=cache, use_cache=True)
    assert gap(step.logits, whole[:, 5:6]) > 1e-2


def test_generation_is_the_same_with_and_without_cache_and_behind_padding():
    model = shaken()
    greedy: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    prompt = IDS[:1, :6]
    cached = model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=True, **greedy)
    assert torch.equal(cached, model.generate(prompt, attention_mask=torch.ones_like(prompt), use_cache=False, **greedy))
    ids = prompt
    for _ in range(12):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(cached, ids)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), prompt], 1)
    mask = (torch.arange(9) >= 3).long()[None]
    assert torch.equal(model.generate(padded, attention_mask=mask, **greedy)[:, 3:], cached)


def test_sequences_beyond_the_stated_length_go_on():
    """The published buffers end; 1/(position + 1) does not."""
    model = tiny(max_position_embeddings=8)
    assert torch.isfinite(model(IDS).logits).all()


# -- the rotation absorbed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"num_phases": 1}, {"num_phases": 6, "align_heads": False}, {"phase_rotation": "frozen"}, {"phase_rotation": "tied"},
     {"phase_norm": False}, {"horn": "learned"}, {"embedding_multiplier": 3.0}, {"tie_word_embeddings": True},
     {"attention_bias": True, "mlp_bias": True}, {"use_rope": False}, {"phase_rotation": "off"}],
)  # fmt: skip
def test_the_rotation_can_be_absorbed(options: dict[str, Any]):
    model = shaken(**options)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twin = absorb_rotation(model)
    logits = model(IDS).logits
    assert gap(twin(IDS).logits, logits) < 1e-12 * max(1.0, logits.abs().max().item())
    names = [name for name, _ in (*twin.named_parameters(), *twin.named_buffers())]
    assert not [name for name in names if "theta" in name]
    gains = [value for name, value in twin.named_parameters() if "norm" in name]
    assert all(bool((gain == 1).all()) for gain in gains)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert twin.config.phase_rotation == "off"
    assert model.config.phase_rotation == options.get("phase_rotation", "learned")


def test_an_absorbed_model_is_saved_and_opened_without_angles(tmp_path: Path):
    model = shaken()
    absorb_rotation(model).save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert gap(opened(IDS).logits, model(IDS).logits) < 1e-11
    assert gap(absorb_rotation(model.float())(IDS).logits, model(IDS).logits) < 1e-4


def test_what_cannot_be_absorbed_is_refused():
    with pytest.raises(UnsupportedModelError, match="stretches"):
        absorb_rotation(tiny(residual_rotation=True))
    with pytest.raises(UnsupportedModelError, match="LlamaForCausalLM has no phases"):
        absorb_rotation(llama_of(build_float32(num_phases=1, horn="none")))
    with pytest.raises(InputError, match="Layer 4"):
        transported_direction(tiny(), 4)


def trained(model: ThreePhaseForCausalLM, optimiser: type[torch.optim.Optimizer], **options: Any) -> np.ndarray:
    """Losses of 30 steps with angles and gains as they are."""
    free = [p for name, p in model.named_parameters() if "theta" not in name and "norm" not in name]
    steps = optimiser(free, **options)
    losses = []
    for _ in range(30):
        logits = model(IDS).logits[:, :-1]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), IDS[:, 1:].flatten())  # transformers' own is in float32
        losses.append(loss.item())
        steps.zero_grad()
        loss.backward()
        steps.step()
    return np.array(losses)


def with_gains(model: ThreePhaseForCausalLM) -> ThreePhaseForCausalLM:
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.copy_(1 + 0.5 * torch.rand(len(parameter)))
    return model


def test_gradient_descent_trains_a_model_and_its_absorbed_twin_alike_and_adam_does_not():
    sgd: dict[str, Any] = {"lr": 0.3, "momentum": 0.9, "weight_decay": 0.01}
    losses = []
    for model, optimiser, options in (
        (tiny(num_hidden_layers=2), torch.optim.SGD, sgd),
        (tiny(num_hidden_layers=2), torch.optim.AdamW, {"lr": 0.003}),
        (with_gains(tiny(num_hidden_layers=2)), torch.optim.SGD, sgd),
    ):
        twin = absorb_rotation(model)
        pair = trained(model, optimiser, **options), trained(twin, optimiser, **options)
        assert pair[0][0] == pytest.approx(pair[1][0], abs=1e-12)
        assert pair[0][-1] < pair[0][0] - 0.5  # something was learned
        losses.append(np.abs(pair[0] - pair[1]).max())
    assert losses[0] < 1e-9
    assert losses[1] > 1e-3
    assert losses[2] > 1e-3


# -- a model of transformers -----------------------------------------------------------------------


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("horn", ["fixed", "learned"])
def test_saving_and_opening_gives_the_same_model(tmp_path: Path, rotation: str, horn: str):
    model = build_float32(phase_rotation=rotation, horn=horn, initial_angles=[0.1, 0.2, 0.3])
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert isinstance(opened, ThreePhaseForCausalLM)
    kept = model.config.to_dict() | {"_name_or_path": str(tmp_path), "architectures": ["ThreePhaseForCausalLM"]}
    assert opened.config.to_dict() | {"_name_or_path": str(tmp_path)} == kept
    assert torch.equal(opened(IDS).logits, model(IDS).logits)
    trained_angles = [name for name, p in opened.named_parameters() if "theta" in name and p.requires_grad]
    assert len(trained_angles) == (3 if rotation in ("learned", "tied") else 0)


def test_half_precision_keeps_angles_and_horn_whole(tmp_path: Path):
    model = build_float32(horn="learned")
    model.save_pretrained(tmp_path / "single")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "single", dtype=torch.bfloat16).eval()
    assert half.lm_head.weight.dtype == torch.bfloat16
    for name, value in half.named_parameters():
        if "theta" in name or "horn" in name:
            assert torch.equal(value, dict(model.named_parameters())[name]), name
    logits, exact = half(IDS).logits, model(IDS).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - exact).std() < 0.05 * exact.std()  # 0.033 with the rotation absorbed, too
    states = torch.randn(4, 48).bfloat16()
    rotation = half.model.layers[1].phase_rotation
    assert torch.equal(rotation(states), rotation(states.float()).bfloat16())
    half.save_pretrained(tmp_path / "half")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.bfloat16).eval()
    assert torch.equal(again(IDS).logits, logits)
    states = half.model(IDS, output_hidden_states=True).hidden_states
    assert all(state.dtype == torch.bfloat16 for state in states)


def test_autocast_turns_the_stream_in_float32():
    model = build_float32()
    with torch.autocast("cpu", torch.bfloat16):
        states = model.model(IDS, output_hidden_states=True).hidden_states[:-1]
    assert all(state.dtype == torch.float32 for state in states)
    for layer in model.model.layers:
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(layer.phase_rotation(states[0]), turn_phases(states[0], layer.phase_rotation.angles()))


def test_kernels_agree_and_give_their_weights():
    model = build_float32()
    plain = model(IDS).logits
    model.set_attn_implementation("eager")
    output = model(IDS, output_attentions=True)
    assert gap(output.logits, plain) < 1e-4 * plain.abs().max()
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 6, 12, 12)] * 3
    assert output.attentions[0].triu(1).abs().max() == 0


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = shaken().train()
        if checkpointing:  # its newer name, where there is one
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert all(gap(gradients[0][name], gradients[1][name]) < 1e-14 for name in gradients[0])


def test_embeddings_can_be_given_and_either_they_or_ids_are_needed():
    model = shaken()
    assert torch.equal(model(inputs_embeds=model.model.embed_tokens(IDS)).logits, model(IDS).logits)
    with pytest.raises(ValueError, match="Exactly one"):
        model.model()
    with pytest.raises(ValueError, match="Exactly one"):
        model.model(IDS, inputs_embeds=model.model.embed_tokens(IDS))


# -- a model of ours -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened():
    return lens.load(build("three-phase"))


def test_it_has_the_anatomy_of_any_model(opened):
    assert opened.anatomy.paths == {"blocks": "model.layers", "tail": ["model.norm"], "head": "lm_head"}
    assert all(block.attention is not None and block.mlp is not None and len(block.norms) == 2 for block in opened.anatomy.blocks)
    assert opened.checks()["hooks"] == "logits with and without are bit-identical"
    run = opened.run(IDS[0].tolist(), attention=True)
    assert run.attention.shape == (3, 4, 12, 12)
    assert gap(opened.unembed(run.residual[-1]), run.logits) <= 1e-5 * run.logits.abs().max()
    embedded = 2.5 * opened.module.model.embed_tokens.weight[IDS[0]]
    assert gap(run.residual[0] - embedded, (run.residual[0] - embedded).mean(-1, keepdim=True)) < 1e-5
    assert gap(run.residual[0].mean(-1), opened.module.model.horn.profile[:12]) < 1e-6


def test_lenses_and_edits_work_on_it(opened):
    ids = IDS[0].tolist()
    plain = opened.run(ids)
    last = lens.logit_lens(plain, top_k=3).isel(layer=-1)
    assert (last.token_id.to_numpy() == plain.logits.topk(3).indices.numpy()).all()
    with edits.replace_block(opened, 1, lambda states: states):
        assert torch.equal(opened.run(ids).residual[2], plain.residual[1])
    with edits.rope_base(opened, 50.0):
        turned = opened.run(ids).logits
    other = copy.deepcopy(opened.module.config)
    other.rope_parameters = {"rope_type": "default", "rope_theta": 50.0}
    rebuilt = ThreePhaseForCausalLM(other).eval()
    rebuilt.load_state_dict(opened.module.state_dict())
    assert torch.equal(turned, rebuilt(IDS[:1]).logits[0])
    assert torch.equal(opened.run(ids).logits, plain.logits)


def test_a_fresh_process_opens_a_saved_one(tmp_path: Path):
    build("three-phase").save_pretrained(tmp_path)
    lines = f"import lens; print(lens.load({str(tmp_path)!r}, tokenizer=object()).module.config.num_phases)"
    assert subprocess.run([sys.executable, "-c", lines], check=True, capture_output=True, text=True).stdout == "2\n"
