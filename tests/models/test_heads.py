"""Queries and keys before rotation: they give back the model's own attention, and the layout is the right one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lens.base.errors import Cancelled, InputError, MemoryEstimateError, UnsupportedModelError
from lens.models import edits, frequencies, heads
from lens.models.heads import HeadStates, from_lanes, head_states, to_lanes, turn_lanes
from lens.models.model import Model
from lens.models.rotary import rotary_of_blocks
from tests.models.families import FAMILIES, ROTARY_FAMILIES, build
from tests.models.test_offload import elsewhere_in_memory, on_disk

IDS = list(range(3, 34))
UNSEEN = (
    "bloom",
    "falcon-alibi",
    "hunyuan-alpha",
)  # biases, and Hunyuan's norm with a gain for each dimension after the rotation
SEEN = [name for name in (*FAMILIES, *ROTARY_FAMILIES) if name not in UNSEEN]
INTERLEAVED = ("cohere", "cohere2", "glm", "gptj", "codegen", "ernie", "llama4", "deepseek-v2")


@pytest.fixture(params=SEEN, scope="module")
def family(request):
    return Model(build(request.param), name=request.param)


@pytest.fixture(scope="module")
def states(family) -> tuple[HeadStates, ...]:
    return head_states(family, IDS)


def largest_error(states: tuple[HeadStates, ...], patterns: torch.Tensor) -> float:
    """Of recomputed patterns against given ones `[block, head, query, key]`."""
    return max(
        float(np.abs(block.pattern(head) - patterns[block.block, head].double().numpy()).max())
        for block in states
        for head in range(len(block.query))
    )


def traces(model: Model) -> dict[str, Any]:
    """Attributes and hooks of every module."""
    return {
        name: (set(vars(part)), len(part._forward_hooks), len(part._forward_pre_hooks))
        for name, part in model.module.named_modules()
    }


# -- against the model ----------------------------------------------------------------------------


def test_recomputed_patterns_are_those_of_the_eager_kernel(family: Model, states: tuple[HeadStates, ...]):
    """To the rounding of float32, in logits that reach tens."""
    patterns = family.run(IDS, attention=True).attention
    largest = max(np.abs(block.logits(0)).max() for block in states)
    assert largest_error(states, patterns) < 8 * torch.finfo(torch.float32).eps * largest


def test_reading_heads_changes_nothing(family: Model):
    before = family.run(IDS).logits
    kernel = family.module.config._attn_implementation
    own = traces(family)
    head_states(family, IDS)
    assert torch.equal(family.run(IDS).logits, before)
    assert family.module.config._attn_implementation == kernel
    assert traces(family) == own


def test_the_pass_is_the_models_own_to_the_bit(family: Model):
    """Also while its kernels are watched."""
    seen: list[torch.Tensor] = []
    handle = family.anatomy.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    plain = family.run(IDS).logits
    with heads.attention_calls(family, range(family.n_layers), lambda *_: None):
        watched = family.run(IDS).logits
    handle.remove()
    assert torch.equal(watched, plain)


def test_tables_and_layouts_are_the_models(family: Model, states: tuple[HeadStates, ...]):
    for block, rotary in zip(states, rotary_of_blocks(family), strict=True):
        if rotary is None:
            assert len(block.theta) == 0
            assert block.rotary[0] == block.rotary[1]
            continue
        np.testing.assert_array_equal(block.theta, rotary.theta)
        assert block.attention_factor == rotary.attention_factor
        assert block.rotary[1] - block.rotary[0] == 2 * len(block.theta)
        assert block.layout == ("interleaved" if family.name in INTERLEAVED else "half")
        assert (block.rotary[0] > 0) == family.name.startswith("deepseek")


def test_another_table_gives_the_attention_of_the_edited_model(family: Model):
    """Exact for the first block that turns, whose inputs no edit changes."""
    turning = [block for block, rotary in enumerate(rotary_of_blocks(family)) if rotary is not None]
    if not turning:
        return
    (block,) = head_states(family, IDS, [turning[0]])
    theta = block.theta * np.linspace(0.3, 0.9, len(block.theta))
    layer_type = rotary_of_blocks(family)[turning[0]].layer_type
    factor = block.attention_factor
    with edits.rope_table(family, "explicit", theta=theta, attention_factor=factor, layer_type=layer_type):
        patterns = family.run(IDS, attention=True).attention
        (edited,) = head_states(family, IDS, [turning[0]])
    for head in range(len(block.query)):
        found = block.pattern(head, theta=theta)
        expected = patterns[turning[0], head].double().numpy()
        scale = max(1.0, np.abs(block.logits(head, theta=theta)).max())
        assert np.abs(found - expected).max() < 8 * torch.finfo(torch.float32).eps * scale
        assert np.abs(block.pattern(head) - expected).max() > 1e-4
    torch.testing.assert_close(edited.query, block.query, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(edited.key, block.key, rtol=1e-4, atol=1e-5)


def test_queries_before_rotation_are_the_projections_own(tiny):
    (block,) = head_states(tiny, IDS, [0])
    attention = tiny.module.model.layers[0].self_attn
    seen: list[torch.Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _m, args, kw: seen.append(kw["hidden_states"]), with_kwargs=True)
    tiny.run(IDS)
    handle.remove()
    with torch.no_grad():
        query = attention.q_proj(seen[0])[0].view(len(IDS), 4, 8).transpose(0, 1)
        key = attention.k_proj(seen[0])[0].view(len(IDS), 2, 8).transpose(0, 1)
    torch.testing.assert_close(block.query, query, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(block.key, key, rtol=1e-5, atol=1e-5)
    assert [block.kv_head_of(head) for head in range(4)] == [0, 0, 1, 1]


def test_queries_are_normed_where_the_model_norms_them():
    """Qwen 3: the norm stands before the rotation, with a gain of its own."""
    model = Model(build("qwen3"))
    attention = model.module.model.layers[1].self_attn
    seen: list[torch.Tensor] = []
    handle = attention.q_norm.register_forward_hook(lambda _m, _a, output: seen.append(output))
    model.run(IDS)
    handle.remove()
    (block,) = head_states(model, IDS, [1])
    torch.testing.assert_close(block.query, seen[0][0].transpose(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "softcap", "windows", "scaling", "sinks"),
    [
        ("gemma2", 50.0, [4, None, 4], 256**-0.5, False),
        ("gemma3-both", None, [4, None, 4], 8**-0.5, False),
        ("gpt-oss", None, [4, None, 4], 16**-0.5, True),
        ("mistral", None, [4, 4, 4], 8**-0.5, False),
        ("granite", None, [None] * 3, 1.0, False),
        ("deepseek-v3", None, [None] * 3, 14**-0.5 * (0.1 * np.log(4) + 1) ** 2, False),
        ("llama", None, [None] * 3, 8**-0.5, False),
    ],
)
def test_what_a_family_does_to_its_logits(name: str, softcap: Any, windows: list[Any], scaling: float, sinks: bool):
    found = head_states(Model(build(name)), IDS)
    assert [block.window for block in found] == windows
    assert {block.softcap for block in found} == {softcap}
    assert found[0].scaling == pytest.approx(scaling, rel=1e-6)
    assert all((block.sinks is not None) == sinks for block in found)
    if sinks:
        assert all(block.pattern(0).sum(-1).max() < 1 for block in found)


def test_a_soft_cap_that_matters_is_obeyed():
    """Gemma 2's 50 lies far above random logits; 2 does not."""
    module = build("gemma2")
    for part in module.modules():
        if hasattr(part, "attn_logit_softcapping"):
            part.attn_logit_softcapping = 2.0
    model = Model(module)
    found = head_states(model, IDS)
    assert largest_error(found, model.run(IDS, attention=True).attention) < 1e-6
    assert max(np.abs(found[0].logits(head)).max() for head in range(4)) <= 2


def test_the_shared_rotary_key_of_latent_attention():
    (block,) = head_states(Model(build("deepseek-v2")), IDS, [1])
    lanes = block.key_lanes()
    np.testing.assert_array_equal(lanes, np.broadcast_to(lanes[:1], lanes.shape))
    assert block.query.shape == (4, len(IDS), 14)
    assert block.value.shape == (4, len(IDS), 10)
    assert block.rotary == (6, 14)


@pytest.mark.parametrize("name", ["llama", "gemma3-both", "gpt-oss", "deepseek-v2", "glm", "phi3-longrope"])
def test_half_precision_agrees_to_its_own_rounding(name: str):
    """bf16 holds eight bits: weights below one differ by a few of the last."""
    model = Model(build(name, dtype=torch.bfloat16))
    found = head_states(model, IDS)
    patterns = model.run(IDS, attention=True).attention
    logits = max(np.abs(block.logits(head)).max() for block in found for head in range(len(block.query)))
    assert largest_error(found, patterns) < torch.finfo(torch.bfloat16).eps * max(1.0, logits)


def test_a_model_in_float64_goes_through_a_softmax_in_float32(tiny):
    model = Model(copy.deepcopy(tiny.module).double(), name="double")
    patterns = model.run(IDS, attention=True).attention
    assert largest_error(head_states(model, IDS), patterns) < 16 * torch.finfo(torch.float32).eps


def test_smollm2(smollm2):
    text = "The quick brown fox jumps over the lazy dog, and the dog does not mind."
    found = head_states(smollm2, text)
    run = smollm2.run(text, attention=True)
    assert largest_error(found, run.attention) < 1e-5
    assert {block.layout for block in found} == {"half"}
    assert {block.rotary for block in found} == {(0, 64)}
    assert {block.scaling for block in found} == {64**-0.5}


@pytest.mark.parametrize("place", [on_disk, elsewhere_in_memory])
def test_heads_and_rotary_edits_of_offloaded_blocks(tmp_path: Path, place: Any):
    folder = tmp_path / "tiny-llama"
    build("llama").save_pretrained(folder)
    model, plain = Model(place(folder)), Model(AutoModelForCausalLM.from_pretrained(folder))
    for one, other in zip(head_states(model, IDS), head_states(plain, IDS), strict=True):
        assert torch.equal(one.query, other.query)
    before = model.run(IDS).logits
    with edits.rope_base(model, 500.0), edits.rope_base(plain, 500.0):
        assert torch.equal(model.run(IDS).logits, plain.run(IDS).logits)
    assert torch.equal(model.run(IDS).logits, before)


# -- pure functions -------------------------------------------------------------------------------


def test_layouts_differ_by_a_permutation():
    x = np.arange(8.0)
    np.testing.assert_array_equal(to_lanes(x, "half"), [0 + 4j, 1 + 5j, 2 + 6j, 3 + 7j])
    np.testing.assert_array_equal(to_lanes(torch.tensor(x), "interleaved"), [0 + 1j, 2 + 3j, 4 + 5j, 6 + 7j])
    for layout in ("half", "interleaved"):
        np.testing.assert_array_equal(from_lanes(to_lanes(x, layout), layout), x)


def test_turning_back_undoes_turning_and_scales_by_the_factor():
    x, theta = np.random.default_rng(0).normal(size=(3, 5, 12)), frequencies.rope_table("default", 1e4, 8).theta
    for layout in ("half", "interleaved"):
        turned = turn_lanes(x, (2, 10), layout, theta, 1.5)
        np.testing.assert_allclose(turn_lanes(turned, (2, 10), layout, theta, 1.5, back=True), x, atol=1e-14)
        np.testing.assert_array_equal(turned[..., [0, 1, 10, 11]], x[..., [0, 1, 10, 11]])
        norms = np.linalg.norm(turned[..., 2:10], axis=-1) / np.linalg.norm(x[..., 2:10], axis=-1)
        np.testing.assert_allclose(norms, 1.5, rtol=1e-14)


def test_logits_depend_on_distance_alone():
    """A constant added to all positions turns queries and keys alike."""
    generator = np.random.default_rng(0)
    query, key, theta = generator.normal(size=(6, 8)), generator.normal(size=(6, 8)), np.array([1.0, 0.5, 0.1, 0.01])
    shifted = [turn_lanes(np.concatenate([np.zeros((90, 8)), side]), (0, 8), "half", theta, 1.0)[90:] for side in (query, key)]
    plain = [turn_lanes(side, (0, 8), "half", theta, 1.0) for side in (query, key)]
    np.testing.assert_allclose(shifted[0] @ shifted[1].T, plain[0] @ plain[1].T, atol=1e-12)


def test_an_attention_factor_scales_rotary_logits_by_its_square(tiny):
    (block,) = head_states(tiny, IDS, [1])
    np.testing.assert_allclose(block.logits(2, attention_factor=1.5), 2.25 * block.logits(2), rtol=1e-12)


def test_lanes_sum_to_the_logits(states: tuple[HeadStates, ...]):
    for block in states:
        if not len(block.theta) or block.softcap is not None:
            continue
        length = block.query.shape[1]
        turn = np.exp(1j * np.subtract.outer(np.arange(length), np.arange(length))[..., None] * block.theta)
        head = len(block.query) - 1
        queries, keys = block.query_lanes()[head], block.key_lanes()[block.kv_head_of(head)]
        total = block.attention_factor**2 * (queries[:, None] * keys[None].conj() * turn).real.sum(-1)
        rest = [np.delete(side[h].double().numpy(), slice(*block.rotary), -1) for side, h in
                ((block.query, head), (block.key, block.kv_head_of(head)))]  # fmt: skip
        total = block.scaling * (total + rest[0] @ rest[1].T)
        np.testing.assert_allclose(total, block.logits(head), atol=1e-10 * max(1, np.abs(total).max()))


# -- proofs and refusals --------------------------------------------------------------------------


def test_the_layout_is_proved_not_read_off(tiny):
    """The same weights in the other order of dimensions, turned by code to match, are seen to be interleaved."""
    module = copy.deepcopy(tiny.module)
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    package = __import__(type(module).__module__, fromlist=["apply_rotary_pos_emb"])
    own = package.apply_rotary_pos_emb

    def interleaved(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **kwargs: Any) -> Any:
        back = order.argsort()
        return tuple(side[..., order] for side in own(query[..., back], key[..., back], cos, sin, **kwargs))

    package.apply_rotary_pos_emb = interleaved
    try:
        (block,) = head_states(Model(module), IDS, [0])
    finally:
        package.apply_rotary_pos_emb = own
    assert block.layout == "interleaved"


def test_lanes_in_no_known_order_are_refused(tiny):
    module = copy.deepcopy(tiny.module)
    order = torch.tensor([0, 2, 1, 3, 4, 5, 6, 7])
    package = __import__(type(module).__module__, fromlist=["apply_rotary_pos_emb"])
    own = package.apply_rotary_pos_emb

    def shuffled(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        back = order.argsort()
        return tuple(side[..., order] for side in own(query[..., back], key[..., back], *args, **kwargs))

    package.apply_rotary_pos_emb = shuffled
    try:
        with pytest.raises(UnsupportedModelError, match="No layout of 4 rotary lanes"):
            head_states(Model(module), IDS)
    finally:
        package.apply_rotary_pos_emb = own


def test_logits_that_are_more_than_queries_and_keys_are_refused(tiny):
    """A head that adds something else to its logits does not pass for a plain one."""
    module = copy.deepcopy(tiny.module)
    attention = module.model.layers[1].self_attn
    own = attention.o_proj.forward
    package = __import__(type(module).__module__, fromlist=["eager_attention_forward"])
    eager = package.eager_attention_forward

    def biased(part: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any) -> Any:
        return eager(part, query, key, value, mask, **{**kwargs, "scaling": 0.5 * kwargs["scaling"]})

    module.set_attn_implementation("eager")
    package.eager_attention_forward = biased
    try:
        with pytest.raises(UnsupportedModelError, match="recomputed for head 0 of block 0.*is off by"):
            head_states(Model(module), IDS)
    finally:
        package.eager_attention_forward = eager
    assert attention.o_proj.forward == own


def test_a_block_without_attention_does_not_hide_the_others(tiny):
    with edits.replace_block(tiny, 1, lambda states: 0 * states, part="attention"):
        with pytest.raises(UnsupportedModelError, match="attention of block 1 of .* was not seen"):
            head_states(tiny, IDS)
        found = head_states(tiny, IDS, [0, 2])
    assert [block.block for block in found] == [0, 2]
    assert len(head_states(tiny, IDS)) == 3


@pytest.mark.parametrize(
    ("name", "words"),
    list(zip(UNSEEN, ("code of its own", "a bias for each head", "No layout of 4 rotary lanes"), strict=True)),
)
def test_attention_that_is_not_rotated_queries_and_keys_is_refused(name: str, words: str):
    with pytest.raises(UnsupportedModelError, match=words):
        head_states(Model(build(name)), IDS)


def test_chunks_are_refused_where_they_begin():
    """Llama 4 attends within chunks of 32 tokens, here; within the first it is plainly causal."""
    model = Model(build("llama4"))
    head_states(model, list(range(3, 35)))
    with pytest.raises(UnsupportedModelError, match="neither causal nor a sliding window"):
        head_states(model, list(range(3, 40)))


def test_a_model_whose_lanes_all_stand_still_hides_its_layout(tiny):
    with (
        edits.rope_lanes(tiny, range(4)),
        pytest.raises(UnsupportedModelError, match="All rotary lanes of block 0.*stand still"),
    ):
        head_states(tiny, IDS)
    head_states(tiny, IDS)
    with edits.rope_lanes(tiny, range(4)):
        (block,) = head_states(tiny, IDS, [0])
    assert not block.theta.any()


def test_blocks_are_given_as_asked_for(tiny):
    found = head_states(tiny, IDS, [2, 0])
    assert [block.block for block in found] == [2, 0]
    assert torch.equal(found[1].query, head_states(tiny, IDS)[0].query)


@pytest.mark.parametrize(("blocks", "words"), [([3], "Block 3"), ([-1], "Block -1"), ([], "No block")])
def test_blocks_that_are_not_there_are_refused(tiny, blocks: list[int], words: str):
    with pytest.raises(InputError, match=words):
        head_states(tiny, IDS, blocks)


def test_wrong_heads_tables_and_layouts_are_refused(tiny):
    (block,) = head_states(tiny, IDS, [0])
    with pytest.raises(InputError, match="Head 4"):
        block.pattern(4)
    with pytest.raises(InputError, match="4 lanes, as the block has"):
        block.logits(0, theta=np.ones(3))
    with pytest.raises(InputError, match="'halves'"):
        to_lanes(np.ones(4), "halves")
    with pytest.raises(InputError, match="3 dimensions"):
        to_lanes(np.ones(3), "half")


def test_too_much_is_refused_before_the_pass(tiny, monkeypatch):
    head_states(tiny, IDS)
    called: list[int] = []
    monkeypatch.setattr(heads, "_calls", lambda *_: called.append(1))
    monkeypatch.setattr(tiny, "encode", lambda _: [3] * 2_000_000)
    with pytest.raises(MemoryEstimateError, match=r"1.43 GiB"):  # 3 blocks · 4 bytes · 64 values · 2 million positions
        head_states(tiny, "a very long text")
    assert not called


def test_a_cancelled_pass_leaves_nothing_behind(tiny):
    head_states(tiny, IDS)
    own, kernel, calls = traces(tiny), tiny.module.config._attn_implementation, []

    def cancel() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        head_states(tiny, IDS, check=cancel)
    assert tiny.module.config._attn_implementation == kernel
    assert traces(tiny) == own
