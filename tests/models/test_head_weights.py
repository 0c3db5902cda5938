"""Matrices of heads: they give back the model's own queries, keys, values, logits and outputs, family by family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lens.base.errors import InputError, UnsupportedModelError
from lens.models.head_weights import HeadWeights, head_weights
from lens.models.heads import HeadStates, head_states
from lens.models.model import Model
from lens.models.norms import NormMap, norm_map
from tests.models.families import build
from tests.models.test_offload import on_disk

IDS = [5, 9, 3, 77, 20, 41, 5, 9, 100, 63, 2, 18]
LATENT = ("deepseek-v2", "deepseek-v3")
SHIFTED = ("persimmon",)  # the norm of its queries adds a shift
NORMED = ("qwen3", "gemma3", "olmo2", "gemma4")
AFTER = ("gemma2", "gemma3", "gemma4", "olmo2")
CENTRED = ("phi", "cohere", "gpt2", "gpt-neox", "gptj", "codegen", "opt", "falcon")
# One of each way to keep the matrices.
READ = (
    *NORMED, *CENTRED, "llama", "qwen2", "gemma2", "phi3", "granite", "opt-projected", "glm", "gpt-oss", "llama4"
)  # fmt: skip


@pytest.fixture(params=READ, scope="module")
def family(request):
    return Model(build(request.param), name=request.param)


@pytest.fixture(scope="module")
def weights(family: Model) -> tuple[HeadWeights, ...]:
    return head_weights(family)


@pytest.fixture(scope="module")
def states(family: Model) -> tuple[HeadStates, ...]:
    return head_states(family, IDS)


@pytest.fixture(scope="module")
def passed(family: Model) -> list[dict[str, np.ndarray]]:
    """Block by block."""
    return [entering(family, block) for block in range(family.n_layers)]


def entering(model: Model, block: int) -> dict[str, np.ndarray]:
    """What the attention module of a block is given and gives, and the stream before the block, for `IDS`."""
    seen: dict[str, np.ndarray] = {}
    parts = model.anatomy.blocks[block]
    assert parts.attention is not None

    def note(name: str, tensor: torch.Tensor) -> None:
        seen[name] = tensor.detach().reshape(-1, tensor.shape[-1]).double().numpy()

    def hook(_module, args, kwargs, output):
        note("given", args[0] if args else kwargs["hidden_states"])
        note("output", output[0] if isinstance(output, tuple) else output)

    def before(_module, args, kwargs):
        note("stream", args[0] if args else kwargs["hidden_states"])

    handles = [
        parts.attention.register_forward_hook(hook, with_kwargs=True),
        parts.module.register_forward_pre_hook(before, with_kwargs=True),
    ]
    model.run(IDS)
    for handle in handles:
        handle.remove()
    return seen


def up_to_a_length(made: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Each row of what was made, brought to the length of the row that was wanted."""
    return made * (made * wanted).sum(-1, keepdims=True) / (made * made).sum(-1, keepdims=True)


# -- against the model ----------------------------------------------------------------------------


def test_queries_keys_and_values_are_the_kernels(
    weights: tuple[HeadWeights, ...], states: tuple[HeadStates, ...], passed: list[dict[str, np.ndarray]]
):
    """On other tokens than those that the rows were told apart by."""
    for found, kept, seen in zip(weights, states, passed, strict=True):
        for name in ("query", "key", "value"):
            wanted = getattr(kept, name).double().numpy()
            made = seen["given"] @ getattr(found, name) + getattr(found, f"{name}_bias")[:, None]
            if name in found.normed:
                made = up_to_a_length(made, wanted)
            np.testing.assert_allclose(made, wanted, atol=2e-5 * np.abs(wanted).max())


def test_the_sum_over_heads_is_what_the_attention_module_gives(
    weights: tuple[HeadWeights, ...], states: tuple[HeadStates, ...], passed: list[dict[str, np.ndarray]]
):
    for found, kept, seen in zip(weights, states, passed, strict=True):
        values = kept.value.double().numpy()
        made = found.output_bias + sum(
            kept.pattern(head) @ values[kept.kv_head_of(head)] @ found.output[head] for head in range(len(kept.query))
        )
        wanted = seen["output"]
        np.testing.assert_allclose(made, wanted, atol=5e-5 * np.abs(wanted).max())


def test_what_a_head_reads_from_the_stream_itself(weights: tuple[HeadWeights, ...], passed: list[dict[str, np.ndarray]]):
    """But for one positive length a position and the shifts."""
    for found, seen in zip(weights, passed, strict=True):
        head = len(found.query) - 1
        shift = found.norm.shift @ found.value[found.kv_head_of(head)]
        wanted = seen["given"] @ found.value[found.kv_head_of(head)] - shift
        made = seen["stream"] @ found.reading("value", head)
        scaled = up_to_a_length(made, wanted)
        np.testing.assert_allclose(scaled, wanted, atol=2e-4 * np.abs(wanted).max())
        assert ((made * wanted).sum(-1) > 0).all()


def test_families_are_told_apart(family: Model, weights: tuple[HeadWeights, ...]):
    name = family.name
    assert all(bool(found.normed) == (name in NORMED or (name == "llama4" and found.block != 1)) for found in weights)
    assert all((found.after is not None) == (name in AFTER) for found in weights)
    assert all(found.norm.centred == (name in CENTRED) for found in weights)
    written = {"granite": pytest.approx(0.6, rel=1e-6), "opt-projected": None, **dict.fromkeys(AFTER)}
    assert all(found.written == written.get(name, 1.0) for found in weights)
    assert all(found.norm.unit == (name not in ("olmo2", "opt-projected")) for found in weights)


def test_reading_weights_changes_nothing(family: Model):
    before = family.run(IDS).logits
    assert before is not None
    hooks = [len(part._forward_hooks) for part in family.module.modules()]
    head_weights(family, [0])
    after = family.run(IDS).logits
    assert after is not None
    assert torch.equal(after, before)
    assert [len(part._forward_hooks) for part in family.module.modules()] == hooks


# -- by name --------------------------------------------------------------------------------------


def test_rows_of_a_llama_are_its_projections_own(tiny: Model):
    (found,) = head_weights(tiny, [1])
    attention = tiny.module.model.layers[1].self_attn
    np.testing.assert_array_equal(found.query[2], attention.q_proj.weight.detach().double().numpy()[16:24].T)
    np.testing.assert_array_equal(found.key[1], attention.k_proj.weight.detach().double().numpy()[8:16].T)
    np.testing.assert_array_equal(found.output[3], attention.o_proj.weight.detach().double().numpy().T[24:32])
    assert [found.kv_head_of(head) for head in range(4)] == [0, 0, 1, 1]
    gain = tiny.module.model.layers[1].input_layernorm.weight.detach().double().numpy()
    np.testing.assert_allclose(found.reading("key", 3), gain[:, None] * found.key[1], rtol=1e-6)


def test_gpt2_keeps_its_weights_the_other_way_round():
    (found,) = head_weights(Model(build("gpt2")), [0])
    module: Any = build("gpt2")
    conv = module.transformer.h[0].attn.c_attn
    np.testing.assert_array_equal(found.key[1], conv.weight.detach().double().numpy()[:, 32 + 8 : 32 + 16])
    np.testing.assert_array_equal(found.key_bias[1], conv.bias.detach().double().numpy()[32 + 8 : 32 + 16])


def test_neox_keeps_them_head_by_head():
    module: Any = build("gpt-neox")
    (found,) = head_weights(Model(module), [0])
    fused = module.gpt_neox.layers[0].attention.query_key_value.weight.detach().double().numpy().reshape(4, 3, 8, 32)
    np.testing.assert_array_equal(found.query, fused[:, 0].transpose(0, 2, 1))
    np.testing.assert_array_equal(found.value, fused[:, 2].transpose(0, 2, 1))


def test_the_gain_of_a_norm_of_queries_is_in_the_matrix():
    """Exact up to one positive factor for all heads and dimensions."""
    module: Any = build("qwen3")
    (found,) = head_weights(Model(module), [0])
    attention = module.model.layers[0].self_attn
    plain = attention.q_proj.weight.detach().double().numpy().reshape(4, 16, 32).transpose(0, 2, 1)
    wanted = plain * attention.q_norm.weight.detach().double().numpy()
    np.testing.assert_allclose(found.query, wanted, rtol=2e-4, atol=1e-6)
    assert found.normed == ("query", "key")


def test_gemmas_gain_is_one_plus_its_weight():
    module: Any = build("gemma")
    (found,) = head_weights(Model(module), [2])
    np.testing.assert_allclose(
        found.norm.gain, 1 + module.model.layers[2].input_layernorm.weight.detach().double().numpy(), rtol=1e-5
    )


@pytest.mark.parametrize("name", [*LATENT, *SHIFTED])
def test_what_no_matrix_explains_is_refused(name: str):
    with pytest.raises(UnsupportedModelError, match=r"The attention of block 0 of .* has a query that none of"):
        head_weights(Model(build(name)))


def test_a_block_that_is_not_there(tiny: Model):
    with pytest.raises(InputError, match="Block 9"):
        head_weights(tiny, [9])


def test_half_precision_has_the_same_rows():
    """The values that bf16 holds, to the last bit."""
    module: Any = build("llama", dtype=torch.bfloat16)
    (found,) = head_weights(Model(module), [0])
    plain = module.model.layers[0].self_attn.q_proj.weight.detach().double().numpy()
    np.testing.assert_array_equal(found.query, plain.reshape(4, 8, 32).transpose(0, 2, 1))


def test_weights_on_disk(tmp_path: Path):
    build("llama").save_pretrained(tmp_path / "tiny-llama")
    (found,) = head_weights(Model(on_disk(tmp_path / "tiny-llama")), [1])
    (plain,) = head_weights(Model(build("llama")), [1])
    np.testing.assert_array_equal(found.output, plain.output)


# -- norms ----------------------------------------------------------------------------------------


def test_a_layer_norm_and_its_map():
    """Odd width: the probing signs do not balance."""
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(7)
    with torch.no_grad():
        for values in norm.parameters():
            values.normal_()
    states = torch.randn(5, 7)
    found = norm_map(norm, states)
    assert found.centred
    np.testing.assert_allclose(found.gain, norm.weight.detach().numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.shift, norm.bias.detach().numpy(), atol=1e-5)
    rows = states.double().numpy()
    direction = found.apply_linear(rows)
    made = direction / np.sqrt(rows.var(-1, keepdims=True) + norm.eps) + found.shift
    np.testing.assert_allclose(made, norm(states).detach().numpy(), atol=1e-5)
    matrix = np.random.default_rng(0).normal(size=(7, 3))
    np.testing.assert_allclose(rows @ found.fold(matrix), direction @ matrix, atol=1e-12)


def test_what_is_no_norm_is_refused():
    with pytest.raises(UnsupportedModelError, match="no division by a length"):
        norm_map(torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()), torch.randn(4, 6))


def test_the_identity_leaves_all_as_it_is():
    found, matrix = NormMap.identity(3), np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(found.fold(matrix), matrix)
    np.testing.assert_array_equal(found.apply_linear(matrix.T), matrix.T)
