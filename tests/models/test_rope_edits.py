"""Rotary edits: the logits of a model built that way, everywhere at once, and nothing left behind."""

from __future__ import annotations

import copy
import threading
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import lens
from lens.base.errors import Cancelled, InputError, UnsupportedModelError
from lens.models import edits, frequencies
from lens.models.model import Model
from lens.models.rotary import SINUSOIDS, phases, rotaries, rotary_of_blocks
from tests.models.families import FAMILIES, ROTARY_FAMILIES, build

IDS = list(range(3, 40))
WITHOUT = ("gpt2", "opt", "opt-projected", "bloom", "falcon-alibi")
ROTARY = [name for name in (*FAMILIES, *ROTARY_FAMILIES) if name not in WITHOUT]
ROUNDED_ONCE = ("hunyuan-alpha",)  # a kind that transformers' general functions do not have: float64, then float32
READY = ("gptj", "codegen")  # their blocks keep ready sines and cosines, of a base that no configuration holds
ONE_LANE = ("stablelm", "gpt-neox")


@pytest.fixture(params=ROTARY, scope="module")
def family(request):
    return Model(build(request.param), name=request.param)


def logits(model: Model) -> torch.Tensor:
    return model.run(IDS).logits


def base_of(model: Model) -> float:
    return rotaries(model)[0].table.base


def rebuilt(module: Any, settings: dict[str, Any], layer_type: str | None = None) -> Any:
    """A model from a configuration with other rotary settings, and the same weights."""
    config = copy.deepcopy(module.config)
    nested = [name for name, value in config.rope_parameters.items() if isinstance(value, dict)]
    for name in nested:
        if layer_type in (None, name):
            config.rope_parameters[name].update(settings)
    if not nested:
        config.rope_parameters.update(settings)
    other = AutoModelForCausalLM.from_config(config, dtype=next(module.parameters()).dtype).eval()
    other.load_state_dict(module.state_dict())
    return other


def traces(model: Model) -> dict[str, Any]:
    """All that an edit could leave in the module tree, and what the model says."""
    parts = list(model.module.named_modules())
    return {
        "own": {name: {key: repr(value) for key, value in vars(part).items() if key[0] != "_"} for name, part in parts},
        "buffers": {n: (id(value), value.float().numpy(force=True).tobytes()) for n, value in model.module.named_buffers()},
        "names": {name: list(part._buffers) for name, part in parts},
        "logits": logits(model).numpy().tobytes(),
        "edits": (model.edits, model.lock.holder, model.fingerprint, model.provenance()),
    }


# -- which tables there are -----------------------------------------------------------------------


def test_tables_are_those_of_the_configuration(family: Model):
    found = rotaries(family)
    assert sorted({block for rotary in found for block in rotary.blocks}) == [
        block for block, rotary in enumerate(rotary_of_blocks(family)) if rotary is not None
    ]
    for rotary in found:
        assert rotary.table.kind != "explicit"
        np.testing.assert_allclose(rotary.theta, rotary.table.theta, rtol=2e-6)
        assert rotary.attention_factor == pytest.approx(rotary.table.attention_factor, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm3", {None: (0, 2)}),
        ("exaone4", {None: (0, 2)}),
        ("cohere2", {None: (0, 2)}),
        ("llama4", {None: (0, 2)}),
        ("gemma3-both", {"sliding_attention": (0, 2), "full_attention": (1,)}),
        ("gemma4", {"sliding_attention": (0, 2), "full_attention": (1, 3)}),
        ("llama", {None: (0, 1, 2)}),
    ],
)
def test_blocks_that_turn_by_a_table_are_found_by_trial(name: str, expected: dict[str | None, tuple[int, ...]]):
    assert {rotary.layer_type: rotary.blocks for rotary in rotaries(Model(build(name)))} == expected


@pytest.mark.parametrize("name", WITHOUT)
def test_models_without_rotary_embeddings_refuse(name: str):
    model = Model(build(name), name=name)
    words = "No block of falcon-alibi turns" if name == "falcon-alibi" else f"{name} has no rotary position embeddings"
    for edit in (edits.rope_base(model, 5e5), edits.rope_table(model, "linear", factor=2.0), edits.rope_lanes(model, [0])):
        with pytest.raises(UnsupportedModelError, match=words), edit:
            pass
    assert not model.edits


def test_a_replaced_block_does_not_hide_that_it_turns():
    model = Model(build("llama"))
    with edits.replace_block(model, 1, lambda states: states):
        rotaries(model)
    assert rotaries(model)[0].blocks == (0, 1, 2)


def test_phases_are_read_in_every_form():
    theta = np.array([1.0, 0.1])
    turned = np.exp(1j * np.arange(3)[:, None] * theta)
    cos, sin = torch.tensor(turned.real), torch.tensor(turned.imag)
    forms = [
        torch.tensor(turned),
        (cos, sin),
        (cos.tile(2), sin.tile(2)),
        [cos.repeat_interleave(2, -1), sin.repeat_interleave(2, -1)],
    ]
    for form in forms:
        np.testing.assert_array_equal(phases(form, 2), turned)
    assert phases(cos, 2) is None
    assert phases((cos, sin), 3) is None
    assert phases((torch.randn(3, 4), torch.randn(3, 4)), 2) is None


# -- what an edit does ----------------------------------------------------------------------------


def test_the_models_own_base_changes_nothing(family: Model):
    plain = logits(family)
    for rotary in rotaries(family):
        with edits.rope_base(family, rotary.table.base, layer_type=rotary.layer_type) as change:
            assert torch.equal(logits(family), plain)
        assert all(table.lanes == () for table in change.tables)


def test_another_base_is_the_model_built_with_it(family: Model):
    if family.name in ONE_LANE:
        with pytest.raises(InputError, match="one lane"), edits.rope_base(family, 500.0):
            pass
        return
    plain = logits(family)
    with edits.rope_base(family, 500.0) as change:
        edited = logits(family)
        live = rotaries(family)
    assert not torch.equal(edited, plain)
    assert change.blocks == tuple(b for b, r in enumerate(rotary_of_blocks(family)) if r is not None)
    for table, rotary in zip(change.tables, live, strict=True):
        moving = np.flatnonzero(table.after.theta[1:]) + 1
        assert table.lanes == tuple(moving.tolist())
        if table.after.kind != "longrope":  # which follows the length of what was run
            np.testing.assert_allclose(rotary.theta, table.after.theta, rtol=2e-6)
    if family.name in READY:
        module = copy.deepcopy(family.module)
        angles = torch.arange(64).float()[:, None] / 500 ** (torch.arange(0, 4, 2) / 4)
        for part in module.modules():
            if hasattr(part, SINUSOIDS):
                part.embed_positions.copy_(torch.cat([angles.sin(), angles.cos()], dim=1))
        torch.testing.assert_close(edited, logits(Model(module)), atol=1e-4, rtol=0)
        return
    expected = logits(Model(rebuilt(family.module, {"rope_theta": 500.0})))
    if family.name in ROUNDED_ONCE:
        torch.testing.assert_close(edited, expected, atol=1e-3, rtol=0)  # of logits up to 60
    else:
        assert torch.equal(edited, expected)


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("linear", {"factor": 4.0}),
        ("yarn", {"factor": 4.0, "original_max_position_embeddings": 16}),
        ("llama3", {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}),
        ("longrope", {
            "factor": 4.0, "original_max_position_embeddings": 16, "short_factor": [1.0, 1.1, 1.2, 1.3],
            "long_factor": [1.0, 2.0, 3.0, 4.0], "length": 37,
        }),
    ],
)  # fmt: skip
def test_another_kind_is_the_model_built_with_it(tiny, kind: str, parameters: dict[str, Any]):
    with edits.rope_table(tiny, kind, **parameters) as change:
        edited = logits(tiny)
    settings = {"rope_type": kind, **{name: value for name, value in parameters.items() if name != "length"}}
    assert torch.equal(edited, logits(Model(rebuilt(tiny.module, settings))))
    assert change.tables[0].after.kind == kind
    assert change.tables[0].before.kind == "default"


def test_each_layer_type_can_be_edited_alone():
    model = Model(build("gemma3-both"))
    seen = []
    for layer_type in ("sliding_attention", "full_attention"):
        with edits.rope_base(model, 500.0, layer_type=layer_type) as change:
            edited = logits(model)
            assert model.edits == (f"rotary base 500 for {layer_type}",)
        assert torch.equal(edited, logits(Model(rebuilt(model.module, {"rope_theta": 500.0}, layer_type))))
        assert [table.layer_type for table in change.tables] == [layer_type]
        seen.append(edited)
    assert not torch.equal(*seen)


@pytest.mark.parametrize("length", [8, 60])
def test_kinds_that_follow_the_length_follow_it_from_the_other_base(length: int):
    """Dynamic tables grow beyond the context, which `Model.run` refuses: the module is run itself."""
    ids = torch.arange(3, 3 + length)[None]
    for name, grown in (("phi3-longrope", length), ("llama-dynamic", 2 * length)):
        model, text = Model(build(name)), ids if name != "llama-dynamic" else ids.tile(2)
        other = rebuilt(model.module, {"rope_theta": 500.0})
        before = traces(model)
        with edits.rope_base(model, 500.0), torch.no_grad():
            assert torch.equal(model.module(text, use_cache=False).logits, other(text, use_cache=False).logits)
            assert text.shape[1] == grown
        assert traces(model) == before


def test_a_table_for_one_length_is_not_overwritten_by_a_run():
    for name in ("phi3-longrope", "llama-dynamic"):
        model = Model(build(name))
        for length in (8, 100):
            with edits.rope_base(model, 500.0, length=length) as change, torch.no_grad():
                for size in (4, 100):
                    model.module(torch.arange(3, 3 + size)[None], use_cache=False)
                    np.testing.assert_allclose(rotaries(model)[0].theta, change.tables[0].after.theta, rtol=2e-6)


def test_stopped_lanes_stand_still_and_the_others_stay():
    for name in ("llama", "gptj", "gpt-oss", "deepseek-v2"):
        model = Model(build(name))
        before = {(rotary.path, rotary.layer_type): rotary for rotary in rotaries(model)}
        with edits.rope_lanes(model, stop=[1]) as change:
            edited = logits(model)
            for rotary in rotaries(model):
                kept = before[rotary.path, rotary.layer_type]
                assert rotary.theta[1] == 0
                np.testing.assert_array_equal(np.delete(rotary.theta, 1), np.delete(kept.theta, 1))
                assert rotary.attention_factor == kept.attention_factor
        assert {table.lanes for table in change.tables} == {(1,)}
        assert not torch.equal(edited, logits(model))
        with edits.rope_lanes(model, stop=[]):
            assert torch.equal(logits(model), logits(model))


def test_with_all_lanes_stopped_position_does_not_matter(tiny):
    """Then only the set of earlier tokens counts, not their order."""
    one, other = [5, 9, 7, 30], [9, 7, 5, 30]
    with edits.rope_lanes(tiny, stop=range(4)):
        first, second = (Model(tiny.module).run(ids, attention=True).attention[0, :, -1] for ids in (one, other))
    torch.testing.assert_close(first[:, [1, 2, 0, 3]], second)


def test_an_explicit_table_is_put_in_as_given(tiny):
    with edits.rope_table(tiny, "explicit", theta=[1.0, 0.5, 0.25, 0.125], attention_factor=1.5) as change:
        (rotary,) = rotaries(tiny)
        np.testing.assert_array_equal(rotary.theta, [1.0, 0.5, 0.25, 0.125])
        assert rotary.attention_factor == 1.5
        assert rotary.table.kind == "default"
    assert "attention factor 1 to 1.5" in str(change)
    assert change.modules == ("model.rotary_emb",)


def test_tables_kept_in_half_precision_are_edited_in_it():
    model = Model(build("llama").to(torch.bfloat16))
    plain = logits(model)
    with edits.rope_base(model, base_of(model)):
        assert torch.equal(logits(model), plain)
    with edits.rope_base(model, 500.0):
        assert rotaries(model)[0].module.inv_freq.dtype == torch.bfloat16
        edited = logits(model)
    assert torch.equal(edited, logits(Model(rebuilt(model.module, {"rope_theta": 500.0}).to(torch.bfloat16))))
    with (
        pytest.raises(InputError, match="Rounded to bfloat16, the table is what stands"),
        edits.rope_base(model, 1e4 * (1 + 1e-9)),
    ):
        pass


def test_a_model_says_that_it_is_edited(tiny):
    plain = tiny.fingerprint
    with edits.rope_base(tiny, 500.0), edits.rope_lanes(tiny, [3]):
        assert tiny.edits == ("rotary base 500", "rotary lanes stopped: 3")
        assert tiny.provenance()["edits"] == "rotary base 500; rotary lanes stopped: 3"
        assert tiny.fingerprint != plain
    assert tiny.fingerprint == plain


# -- what it leaves behind ------------------------------------------------------------------------


def test_nothing_is_left_behind(family: Model):
    before = traces(family)
    with edits.rope_lanes(family, [0]), edits.rope_table(family, "linear", factor=3.0):
        assert logits(family).numpy().tobytes() != before["logits"]
    assert traces(family) == before


@pytest.mark.parametrize("error", [ValueError, Cancelled, KeyboardInterrupt])
def test_nothing_is_left_behind_after_an_error(tiny, error: type[BaseException]):
    before = traces(tiny)
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(error))
        stack.enter_context(edits.rope_base(tiny, 500.0))
        logits(tiny)
        raise error()
    assert traces(tiny) == before


def test_a_cancelled_run_leaves_nothing_behind(tiny):
    def cancel() -> None:
        raise Cancelled

    before = traces(tiny)
    with pytest.raises(Cancelled), edits.rope_base(tiny, 500.0):
        tiny.run(IDS, check=cancel)
    assert traces(tiny) == before


@pytest.mark.parametrize("name", ["llama", "gemma3-both", "phi3-longrope", "gptj"])
def test_nested_edits_end_in_any_order(name: str):
    model = Model(build(name))
    before, alone = traces(model), {}
    for base in (500.0, 50.0):
        with edits.rope_base(model, base):
            alone[base] = logits(model)
    stacks = [ExitStack(), ExitStack(), ExitStack()]
    stacks[0].enter_context(edits.rope_base(model, 500.0))
    stacks[1].enter_context(edits.rope_lanes(model, [1]))
    stacks[2].enter_context(edits.rope_base(model, 50.0))
    assert torch.equal(logits(model), alone[50.0])
    stacks[1].close()
    assert torch.equal(logits(model), alone[50.0])
    stacks[2].close()
    assert torch.equal(logits(model), alone[500.0])
    stacks[0].close()
    assert traces(model) == before


def test_the_last_of_two_edits_stays_when_the_first_ends(tiny):
    first, second = ExitStack(), ExitStack()
    first.enter_context(edits.rope_base(tiny, 500.0))
    second.enter_context(edits.rope_base(tiny, 50.0))
    edited = logits(tiny)
    first.close()
    assert torch.equal(logits(tiny), edited)
    second.close()
    assert tiny.edits == ()
    assert not torch.equal(logits(tiny), edited)


def test_two_threads_do_not_see_each_others_edits(tiny):
    alone: dict[float, torch.Tensor] = {}
    for base in (500.0, 50.0):
        with edits.rope_base(tiny, base):
            alone[base] = logits(tiny)
    before, seen, start = traces(tiny), {}, threading.Barrier(2)

    def sweep(base: float) -> None:
        start.wait()
        for _ in range(20):
            with edits.rope_base(tiny, base):
                seen.setdefault(base, []).append(logits(tiny))

    threads = [threading.Thread(target=sweep, args=(base,)) for base in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for base, expected in alone.items():
        assert len(seen[base]) == 20
        assert all(torch.equal(found, expected) for found in seen[base])
    assert traces(tiny) == before


# -- what is refused ------------------------------------------------------------------------------


def test_what_cannot_be_meant_is_refused_and_changes_nothing():
    model = Model(build("gemma4"), name="gemma4")
    before = traces(model)
    refused = [
        (edits.rope_base(model, 1.0), "base is 1"),
        (edits.rope_base(model, 500.0, layer_type="full"), "one of full_attention, sliding_attention"),
        (edits.rope_table(model, "linear"), "was not given factor"),
        (edits.rope_table(model, "explicit", theta=[1.0, 0.5, 0.2, 0.1]), "The table has 4 lanes.*8, as model.rotary_emb"),
        (edits.rope_lanes(model, [4]), "Lane 4 is to stop.*lanes 0 to 3"),
        (edits.rope_lanes(model, [-1]), "Lane -1"),
    ]
    for edit, words in refused:
        with pytest.raises(InputError, match=words), edit:
            pass
    with (
        pytest.raises(InputError, match="share one table"),
        edits.rope_base(Model(build("llama")), 5e5, layer_type="full_attention"),
    ):
        pass
    assert traces(model) == before


def test_a_rotary_module_that_ignores_its_table_is_refused_and_left_as_it_was(tiny):
    class Stubborn(nn.Module):
        """Computes from frequencies of its own, as code of a checkpoint may."""

        def __init__(self, own: Any):
            super().__init__()
            self.config, self.own = own.config, own.inv_freq.clone()
            self.register_buffer("inv_freq", own.inv_freq.clone(), persistent=False)

        def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            angles = (position_ids[..., None].float() * self.own).tile(2)
            return angles.cos(), angles.sin()

    module = copy.deepcopy(tiny.module)
    module.model.rotary_emb = Stubborn(module.model.rotary_emb)
    model = Model(module)
    table = module.model.rotary_emb.inv_freq
    with pytest.raises(UnsupportedModelError, match="does not turn by the table"), edits.rope_lanes(model, [1]):
        pass
    assert module.model.rotary_emb.inv_freq is table
    assert torch.equal(logits(model), logits(tiny))


def test_ready_sines_cannot_be_scaled():
    module = build("gptj")
    model = Model(module)
    before = traces(model)
    with (
        pytest.raises(UnsupportedModelError, match="ready sines"),
        edits.rope_table(model, "explicit", theta=[1.0, 0.1], attention_factor=2.0),
    ):
        pass
    assert traces(model) == before


def test_tables_that_lie_elsewhere_are_refused(tiny):
    tiny.module.model.rotary_emb.inv_freq = tiny.module.model.rotary_emb.inv_freq.to("meta")
    with pytest.raises(UnsupportedModelError, match="kept off the device"), edits.rope_base(tiny, 500.0):
        pass


def test_a_table_that_is_not_the_configurations_is_told_apart(tiny):
    rotary_module = tiny.module.model.rotary_emb
    for name in ("inv_freq", "original_inv_freq"):
        getattr(rotary_module, name).mul_(0.5)
    (rotary,) = rotaries(tiny)
    assert rotary.table.kind == "explicit"
    np.testing.assert_array_equal(rotary.theta, rotary.table.theta)
    with pytest.raises(UnsupportedModelError, match="not what its configuration says"), edits.rope_base(tiny, 5e5):
        pass
    with edits.rope_table(tiny, "default") as change:
        np.testing.assert_allclose(rotaries(tiny)[0].theta, frequencies.rope_table("default", 1e4, 8).theta, rtol=1e-6)
    assert change.tables[0].before.kind == "explicit"


def test_a_softmax_scale_is_not_edited_by_a_table():
    model = Model(build("deepseek-v3"))
    options = {"factor": 8.0, "original_max_position_embeddings": 16}
    with (
        pytest.raises(UnsupportedModelError, match="softmax scale"),
        edits.rope_table(model, "yarn", mscale=1.0, mscale_all_dim=1.0, **options),
    ):
        pass
    with edits.rope_table(model, "yarn", attention_factor=1.0, **options) as change:
        assert change.tables[0].after.attention_factor == 1


def test_smollm2_with_another_base(smollm2):
    plain = smollm2.run("The cat sat on the mat.").logits
    with lens.edits.rope_base(smollm2, 100_000):
        assert torch.equal(smollm2.run("The cat sat on the mat.").logits, plain)
    with lens.edits.rope_base(smollm2, 5e5) as change:
        assert not torch.equal(smollm2.run("The cat sat on the mat.").logits, plain)
    assert str(change) == "model.rotary_emb: 31 of 32 lanes in 30 blocks"
    assert torch.equal(smollm2.run("The cat sat on the mat.").logits, plain)
