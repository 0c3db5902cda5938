"""Inputs and outputs of the parts of a block, against hooks set by hand on modules named by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import lens
from lens.base.errors import AnatomyError, InputError
from lens.models.anatomy import hooks_on
from lens.models.model import Model
from lens.models.run import block_states, residual_states
from lens.models.sites import block_parts
from tests.models.families import build

# For each family the list of blocks, and for each part the path of its module, or of its first and last one.
_LLAMA = {"attention": "self_attn", "mlp": "mlp", "norm_0": "input_layernorm", "norm_1": "post_attention_layernorm"}
NAMED: dict[str, tuple[str, dict[str, str]]] = {
    "llama": ("model.layers", _LLAMA),
    "mixtral": ("model.layers", _LLAMA),
    "phi": ("model.layers", {"attention": "self_attn", "mlp": "mlp", "norm_0": "input_layernorm"}),
    "gemma2": (
        "model.layers",
        _LLAMA | {"norm_2": "pre_feedforward_layernorm", "norm_3": "post_feedforward_layernorm"},
    ),
    "gpt2": ("transformer.h", {"attention": "attn", "mlp": "mlp", "norm_0": "ln_1", "norm_1": "ln_2"}),
    "gptj": ("transformer.h", {"attention": "attn", "mlp": "mlp", "norm_0": "ln_1"}),
    "falcon": ("transformer.h", {"attention": "self_attention", "mlp": "mlp", "norm_0": "ln_attn", "norm_1": "ln_mlp"}),
    "opt": (
        "model.decoder.layers",
        {"attention": "self_attn", "mlp": "fc1 fc2", "norm_0": "self_attn_layer_norm", "norm_1": "final_layer_norm"},
    ),
}  # fmt: skip


def by_hand(module: Any, family: str, run: Callable[[], Any]) -> dict[str, torch.Tensor]:
    """For each part `[state, sequence · position, d]`: what enters it in every block, then what leaves it, while `run` runs."""
    blocks, paths = NAMED[family]
    entered: dict[str, list[torch.Tensor]] = {part: [] for part in paths}
    left: dict[str, list[torch.Tensor]] = {part: [] for part in paths}

    def enters(part: str):
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entered[part].append((args[0] if args else kwargs["hidden_states"]).clone())

        return hook

    def leaves(part: str):
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            left[part].append((output[0] if isinstance(output, tuple) else output).clone())

        return hook

    handles: list[Any] = []
    for block in module.get_submodule(blocks):
        for part, names in paths.items():
            first, last = (names.split() * 2)[:2]
            handles.append(block.get_submodule(first).register_forward_pre_hook(enters(part), with_kwargs=True))
            handles.append(block.get_submodule(last).register_forward_hook(leaves(part)))
    with hooks_on(handles), torch.no_grad():
        run()
    return {part: torch.stack([state.reshape(-1, state.shape[-1]) for state in entered[part] + left[part]]) for part in paths}


IDS = torch.arange(1, 25).reshape(2, 12)


@pytest.mark.parametrize("family", NAMED)
def test_every_part_is_what_hooks_by_hand_see(family: str):
    model = lens.load(build(family))
    parts = tuple(NAMED[family][1])
    assert block_parts(model.anatomy) == parts
    found = block_states(model.module, model.anatomy, IDS, ("residual", *parts))
    assert list(found) == ["residual", *parts]
    assert torch.equal(found["residual"], residual_states(model.module, model.anatomy, IDS))
    expected = by_hand(model.module, family, lambda: model.module(input_ids=IDS, use_cache=False))
    for part in parts:
        assert found[part].shape == (6, 2, 12, 32)
        assert torch.equal(found[part].flatten(1, 2), expected[part])


def test_an_unknown_part_is_refused_with_the_known_ones_and_leaves_no_hook():
    model = lens.load(build("phi"))
    known = r"The part 'norm_1' is not in every block\. Needed: one of attention, mlp, norm_0\."
    with pytest.raises(InputError, match=known):
        block_states(model.module, model.anatomy, IDS, ("residual", "mlp", "norm_1"))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


def test_a_part_that_adds_the_stream_itself_is_read_without_it():
    """BLOOM hands the stream to its attention and its MLP, which add it: by itself it would make any map look linear."""
    model = lens.load(build("bloom"))
    left: dict[str, list[torch.Tensor]] = {"attention": [], "mlp": []}

    def leaves(part: str):
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            left[part].append((output[0] if isinstance(output, tuple) else output) - args[1])

        return hook

    blocks = model.module.transformer.h
    handles = [b.self_attention.register_forward_hook(leaves("attention")) for b in blocks]
    handles += [b.mlp.register_forward_hook(leaves("mlp")) for b in blocks]
    with hooks_on(handles):
        found = block_states(model.module, model.anatomy, IDS, ("residual", "attention", "mlp"))
    for part, expected in left.items():
        assert torch.equal(found[part][3:], torch.stack(expected))
    whole = found["residual"][:3] + found["attention"][3:] + found["mlp"][3:]
    assert torch.allclose(whole, found["residual"][1:], rtol=1e-4, atol=1e-3)


def test_a_family_without_attention_has_only_its_norms():
    """Mamba mixes positions without attention, and has no feed-forward part."""
    shape = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4, "intermediate_size": 48}
    torch.manual_seed(0)
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model("mamba", **shape)).eval()
    model = lens.load(module)
    assert block_parts(model.anatomy) == ("norm_0",)
    with pytest.raises(InputError, match=r"The part 'attention' is not in every block\. Needed: one of norm_0\."):
        block_states(module, model.anatomy, IDS, ("residual", "attention"))
    entered = block_states(module, model.anatomy, IDS, ("residual", "norm_0"))
    assert torch.equal(entered["norm_0"][:3].float(), entered["residual"][:3].float())


def strange(kind: str) -> Model:
    """A Llama whose second block, once the model is opened, does with its first norm what no family should do unnoticed."""
    model = lens.load(build("llama"))
    block = model.module.model.layers[1]
    norm = block.input_layernorm

    class Strange(nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            if kind == "twice":
                return norm(norm(states))
            if kind == "never":
                return states
            if kind == "transposed":
                return norm(states.transpose(0, 1)).transpose(0, 1)
            return norm(states.repeat(1, 1, 2)[..., :32].repeat(2, 1, 1))[:2]

    block.input_layernorm = Strange()
    return model


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("twice", "runs more than once"),
        ("never", "did not run"),
        ("transposed", r"handles states of shape \(12, 2, 32\)"),
        ("more", r"handles states of shape \(4, 12, 32\)"),
    ],
)
def test_a_part_that_does_not_run_once_on_the_stream_is_refused(kind: str, words: str):
    """Its states would be another call's, or another token's, or whatever was in memory."""
    model = strange(kind)
    with pytest.raises(AnatomyError, match=rf"model\.layers\.1, norm_0 {words}.*parts=\('residual',\)"):
        block_states(model.module, model.anatomy, IDS, ("residual", "norm_0"))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


def test_states_that_one_block_widens_are_kept_as_wide():
    model = lens.load(build("llama", dtype=torch.bfloat16))
    norm = model.module.model.layers[1].input_layernorm
    handle = norm.register_forward_hook(lambda _m, _i, output: output.float() / 3)
    narrow = model.module.model.layers[1].self_attn.register_forward_pre_hook(
        lambda _m, args, kwargs: (args, {**kwargs, "hidden_states": kwargs["hidden_states"].bfloat16()}), with_kwargs=True
    )
    found = block_states(model.module, model.anatomy, IDS, ("residual", "norm_0"))["norm_0"]
    handle.remove()
    narrow.remove()
    assert found.dtype == torch.float32
    assert not torch.equal(found[4], found[4].bfloat16().float())
    assert torch.equal(found[3], found[3].bfloat16().float())
