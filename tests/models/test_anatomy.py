"""The parts of real architectures are found by structure, and the finding is proved."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BertLMHeadModel, T5ForConditionalGeneration

from lens.base.errors import AnatomyError, Cancelled, UnsupportedModelError
from lens.models.model import Model
from lens.models.readout import LogitTransform
from tests.models.families import FAMILIES, build

IDS = list(range(3, 19))


def hook_count(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


@pytest.fixture(params=FAMILIES, scope="module")
def family(request):
    return Model(build(request.param), name=request.param)


def test_read_out_of_the_last_state_gives_the_logits(family: Model):
    run = family.run(IDS)
    difference = (family.unembed(run.residual[-1]) - run.logits).abs().max()
    assert run.logits.abs().max() > 10  # the family's scales and caps matter
    assert difference <= 1e-5 * run.logits.abs().max()


def test_hooks_leave_the_logits_bit_identical(family: Model):
    before = hook_count(family.module)
    with torch.no_grad():
        bare = family.module(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    assert torch.equal(family.run(IDS).logits, bare)
    assert hook_count(family.module) == before


def test_residual_states_are_what_the_library_gives_before_the_norm(family: Model):
    """All but the last entry of `hidden_states` are block inputs; the last is already normed."""
    with torch.no_grad():
        output = family.module(input_ids=torch.tensor([IDS]), use_cache=False, output_hidden_states=True)
    residual = family.run(IDS).residual
    assert residual.shape == (family.n_layers + 1, len(IDS), family.d_model)
    for layer in range(family.n_layers):
        assert torch.equal(residual[layer], output.hidden_states[layer][0])


def test_attention_patterns_are_causal_distributions_and_the_kernel_is_restored(family: Model):
    before = family.module.config._attn_implementation
    plain = family.run(IDS)
    patterns = family.run(IDS, attention=True).attention
    assert patterns.shape == (family.n_layers, 4, len(IDS), len(IDS))
    assert torch.allclose(patterns.sum(-1), torch.ones(()), atol=1e-5)
    assert patterns.triu(1).abs().max() == 0
    assert family.module.config._attn_implementation == before
    assert torch.equal(family.run(IDS).logits, plain.logits)


def test_nothing_stays_attached_after_an_exception(family: Model):
    calls = 0

    def stop_in_the_second_block() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise Cancelled

    before = hook_count(family.module)
    with pytest.raises(Cancelled):
        family.run(IDS, check=stop_in_the_second_block)
    assert hook_count(family.module) == before
    assert family.lock.holder is None


def test_parts_inside_a_block_are_told_apart(family: Model):
    for block in family.anatomy.blocks:
        assert block.attention is not None
        assert block.mlp is not None
        assert block.norms


@pytest.mark.parametrize(
    ("name", "transform"),
    [
        ("gemma2", LogitTransform("softcap", 30.0)),
        ("gemma3", LogitTransform("softcap", 25.0)),
        ("cohere", LogitTransform("multiply", 0.37)),
        ("granite", LogitTransform("divide", 3.7)),
        ("llama", LogitTransform()),
    ],
)
def test_treatment_of_the_logits_is_found_by_experiment(name: str, transform: LogitTransform):
    assert Model(build(name)).readout.transform == transform


def test_projection_behind_the_blocks_is_part_of_the_read_out():
    model = Model(build("opt-projected"))
    assert model.anatomy.paths["tail"] == ["model.decoder.project_out"]
    assert model.d_model == 32
    assert model.readout.head.weight.shape[1] == 16


@pytest.mark.parametrize("family_name", ["llama", "gpt2", "gemma2", "bloom"])
def test_bfloat16_is_read_faithfully(family_name: str):
    model = Model(build(family_name, dtype=torch.bfloat16))
    run = model.run(IDS)
    assert run.residual.dtype == torch.bfloat16
    assert (model.unembed(run.residual[-1]) - run.logits).abs().max() <= 2**-6 * run.logits.abs().max()


def test_training_mode_is_left_for_the_run_and_given_back():
    module = build("gpt2")
    module.train()
    module.transformer.h[0].eval()
    model = Model(module)
    first, second = model.run(IDS), model.run(IDS)
    assert torch.equal(first.logits, second.logits)  # no dropout
    assert module.training
    assert not module.transformer.h[0].training


SSM = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8}
BERT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "is_decoder": True,
}


def from_config(kind: str, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options)).eval()


def test_model_without_attention_is_read_and_checked_without_it():
    model = Model(from_config("mamba", **SSM))
    run = model.run(IDS)
    assert (model.unembed(run.residual[-1]) - run.logits).abs().max() <= 1e-5 * run.logits.abs().max()
    assert model.checks()["attention"].startswith("none: ")
    with pytest.raises(UnsupportedModelError, match="0 attention patterns"):
        model.run(IDS, attention=True)


def test_stream_that_widens_inside_the_stack_keeps_its_precision():
    model = Model(from_config("mamba", **SSM, residual_in_fp32=True).to(torch.bfloat16))
    assert model.run(IDS).residual.dtype == torch.float32


def test_head_with_layers_of_its_own_is_read_through_them():
    """BERT as a decoder transforms the last state inside a module that also holds the head."""
    model = Model(from_config("bert", **BERT))
    assert model.readout_check.passed
    assert model.anatomy.paths["tail"] == ["cls.predictions.transform"]


def test_attention_to_a_sink_is_said():
    options = {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "tie_word_embeddings": False}
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model = Model(from_config("gpt_oss", vocab_size=128, pad_token_id=0, eos_token_id=2, **shape, **options))
    assert "to a sink outside the text" in model.checks()["attention"]


@pytest.mark.parametrize(
    "override",
    [{"blocks": "model"}, {"blocks": "model.layers.1"}, {"blocks": ""}, {"blocks": ["model.layers"]}, {"tail": "model.norm"}],
)
def test_override_of_the_wrong_kind_is_one_line(override):
    with pytest.raises(AnatomyError):
        Model(build("llama"), anatomy=override)


class Renamed(nn.Module):
    """A wrapper whose blocks are no list: nothing that the search would find."""

    def __init__(self, module):
        super().__init__()
        self.inner, self.config = module, module.config
        for i, layer in enumerate(module.model.layers):
            setattr(module.model, f"block_{i}", layer)
        module.model.layers = _Chain(module.model.layers)

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, **inputs):
        return self.inner(**inputs)


class _Chain(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        for i, block in enumerate(blocks):
            self.add_module(f"part{i}", block)

    def __iter__(self):
        return iter(self.children())

    def __getitem__(self, index):
        return list(self.children())[index]


def test_unknown_layout_refuses_and_the_override_opens_it():
    module = Renamed(build("llama"))
    with pytest.raises(AnatomyError, match=r"lists of modules that run in order: none.*anatomy="):
        Model(module)
    model = Model(module, anatomy={"blocks": "inner.model.layers"})
    assert model.n_layers == 3
    assert model.readout_check.passed


def test_override_that_leads_nowhere_names_what_is_there():
    with pytest.raises(AnatomyError, match="no part 'model.blocks'"):
        Model(build("llama"), anatomy={"blocks": "model.blocks"})


def test_override_with_an_unknown_part_is_refused():
    with pytest.raises(AnatomyError, match="layers"):
        Model(build("llama"), anatomy={"layers": "model.layers"})


def test_wrong_tail_is_refused_with_both_numbers():
    with pytest.raises(AnatomyError, match=r"differs from its logits by .* of the largest.*at most 1e-05"):
        Model(build("llama"), anatomy={"tail": []})


class Shifted(nn.Module):
    """A model that does something to its logits that no formula of ours gives."""

    def __init__(self, module):
        super().__init__()
        self.inner, self.config = module, module.config

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def get_output_embeddings(self):
        return self.inner.get_output_embeddings()

    def forward(self, **inputs):
        output = self.inner(**inputs)
        output.logits = output.logits + 1
        return output


def test_unknown_treatment_of_logits_is_refused():
    with pytest.raises(AnatomyError, match="head output of 60 into a logit of 61"):
        Model(Shifted(build("llama")))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_encoder_is_refused_because_it_sees_the_future():
    config = AutoConfig.for_model(
        "bert", vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    with pytest.raises(UnsupportedModelError, match="later token changes earlier logits"):
        Model(BertLMHeadModel(config).eval())


def test_encoder_decoder_is_refused():
    config = AutoConfig.for_model("t5", vocab_size=128, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        Model(T5ForConditionalGeneration(config))


def test_not_a_language_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="not a transformers model"):
        Model(nn.Linear(2, 2))


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(poison: float):
    module = build("llama")
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[3, 4] = poison
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight has 1 values"):
        Model(module)


def test_sum_that_overflows_is_no_bad_weight():
    module = build("llama")
    with torch.no_grad():
        module.model.embed_tokens.weight[-1] = 3e38
    assert Model(module).run([3, 4]).logits.isfinite().all()


def test_smollm2_parts(smollm2):
    assert smollm2.n_layers == 30
    assert smollm2.d_model == 576
    assert smollm2.anatomy.paths == {"blocks": "model.layers", "tail": ["model.norm"], "head": "lm_head"}
    assert smollm2.readout_check.relative_error <= 1e-5
    run = smollm2.run("The capital of France is")
    assert smollm2.vocabulary[run.logits[-1].argmax()] == " Paris"
    assert run.logits[-1].max().item() == pytest.approx(17.371, abs=2e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_gives_what_the_cpu_gives(dtype: torch.dtype):
    module = build("llama", dtype=dtype)
    on_cpu = Model(module).run(IDS).logits
    run = Model(AutoModelForCausalLM.from_config(module.config, dtype=dtype).to("cuda")).run(IDS)
    assert run.logits.device.type == "cuda"
    assert run.logits.shape == on_cpu.shape
