"""Skip connections are removed exactly, in every family, and come back."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lens.base.errors import Cancelled, InputError, UnsupportedModelError
from lens.models.edits import part_modules, replace_block
from lens.models.edits.skips import SkipChange, parallel_blocks, remove_skips
from lens.models.model import Model
from tests.models.families import FAMILIES, build

IDS = list(range(3, 15))
PARALLEL = ("phi", "cohere", "gpt-neox", "gptj", "falcon", "falcon-alibi")
TURNED = "three-phase"  # whose stream is rotated between the sums
NORM_AFTER_SUMS = "opt-projected"  # whose block hands on a norm of the sum


@pytest.fixture(params=(*FAMILIES, TURNED), scope="module")
def family(request):
    """In float64, where its kernels have it: a difference of two runs shows what is between them."""
    dtype = torch.float32 if request.param == "mixtral" else torch.float64
    return Model(build(request.param, dtype=dtype), name=request.param)


def block_1(model: Model, part: str | None = None, silent_mlp: bool = False) -> Tensor:
    """What leaves block 1 without a part's skip, or with a silent MLP."""
    with ExitStack() as stack:
        if silent_mlp:
            stack.enter_context(replace_block(model, 1, torch.zeros_like, part="mlp"))
        if part is not None:
            stack.enter_context(remove_skips(model, part, blocks=[1]))
        return model.run(IDS).residual[2]


def logits(model: Model) -> Tensor:
    found = model.run(IDS).logits
    assert found is not None
    return found


def traces(model: Model) -> dict[str, Any]:
    """All that an edit could leave in the module tree, and what the model says."""
    return {
        "own": {name: (set(vars(part)), vars(part).get("forward")) for name, part in model.module.named_modules()},
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.module.modules()],
        "state": {name: (value.data_ptr(), value._version) for name, value in model.module.state_dict().items()},
        "logits": logits(model).numpy().tobytes(),
        "edits": (model.edits, model.lock.holder, model.fingerprint),
    }


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 64 * torch.finfo(found.dtype).eps * max(1.0, float(wanted.abs().max())))


def test_what_is_missing_is_the_stream_and_nothing_else(family: Model):
    stream, whole = family.run(IDS).residual[1:3]
    assert parallel_blocks(family) == ((0, 1, 2) if family.name in PARALLEL else ())
    if family.name in PARALLEL:
        assert close(block_1(family, "both"), whole - stream)
    elif family.name != NORM_AFTER_SUMS:
        middle = block_1(family, silent_mlp=True)  # stream + attention
        attention = block_1(family, "attention", silent_mlp=True)
        assert family.name == TURNED or close(attention, middle - stream)
        assert close(block_1(family, "mlp"), whole - middle)
        assert close(block_1(family, "both"), block_1(family, "attention") - attention)


def test_where_norms_follow_the_sums_they_still_do():
    model = Model(build(NORM_AFTER_SUMS, dtype=torch.float64))
    block: Any = model.anatomy.blocks[1].module
    seen: list[Any] = []
    handles = [part.register_forward_hook(lambda _m, _a, out: seen.append(out)) for part in (block.self_attn, block.fc2)]
    found = block_1(model, "both")
    for handle in handles:
        handle.remove()
    (attention, _), mlp = seen[-2:]
    with torch.no_grad():
        read = block.self_attn_layer_norm(attention)
        wanted = block.final_layer_norm(block.fc2(block.activation_fn(block.fc1(read))))
        assert torch.equal(found[None], block.final_layer_norm(mlp.view_as(attention)))
    assert close(found, wanted[0])


def test_everything_is_the_former_again(family: Model):
    before = traces(family)
    with remove_skips(family) as change:
        assert logits(family).numpy().tobytes() != before["logits"]
        assert family.edits == ("skips of all blocks removed",)
    assert change == SkipChange("both", (0, 1, 2), parallel_blocks(family))
    assert traces(family) == before


def test_a_part_a_million_times_smaller_than_the_stream_keeps_all_its_digits():
    """Adding it to the stream and taking the stream away again would leave it one digit, or none."""
    model = Model(build("llama"))
    with torch.no_grad():
        model.anatomy.embedding.weight.mul_(1e8)  # norms take that out again
    seen: list[Tensor] = []
    handle = part_modules(model, 0, "mlp")[1].register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    with remove_skips(model, blocks=[0]):
        found = model.run(IDS).residual[1]
    handle.remove()
    assert torch.equal(found, seen[-1])
    assert model.run(IDS).residual[0].abs().max() > 1e6 * found.abs().max()


def test_without_skips_and_with_identity_in_the_place_of_parts_norms_are_all_that_is_left(tiny):
    with remove_skips(tiny, blocks=[1]), ExitStack() as stack:
        for part in ("attention", "mlp"):
            stack.enter_context(replace_block(tiny, 1, lambda states: states, part=part))
        residual = tiny.run(IDS).residual
    first, second = tiny.anatomy.blocks[1].norms
    with torch.no_grad():
        assert torch.equal(residual[2], second(first(residual[1])))


def test_skips_of_some_blocks_and_one_part(tiny):
    plain = tiny.run(IDS).residual
    with remove_skips(tiny, "mlp", blocks=[2, 0, 2]) as change:
        assert tiny.edits == ("mlp skips of blocks 2, 0 removed",)
        edited = tiny.run(IDS).residual
    assert change.blocks == (2, 0)
    assert torch.equal(edited[0], plain[0])
    assert not torch.equal(edited[1], plain[1])


def test_edits_nest_and_end_in_any_order(tiny):
    before = traces(tiny)
    without = remove_skips(tiny, blocks=[1])
    replaced = replace_block(tiny, 1, lambda states: 2 * states)
    without.__enter__()
    bare = tiny.run(IDS).residual
    replaced.__enter__()
    doubled = tiny.run(IDS).residual
    assert torch.equal(doubled[2], 2 * doubled[1])
    replaced.__exit__(None, None, None)
    assert torch.equal(tiny.run(IDS).residual, bare)
    replaced = replace_block(tiny, 1, torch.zeros_like, part="mlp")
    replaced.__enter__()
    without.__exit__(None, None, None)
    replaced.__exit__(None, None, None)
    assert traces(tiny) == before


def test_attention_and_mlp_skips_removed_one_after_the_other_are_both_removed(tiny):
    with remove_skips(tiny):
        both = tiny.run(IDS).residual
    with remove_skips(tiny, "attention"), remove_skips(tiny, "mlp"):
        nested = tiny.run(IDS).residual
    assert torch.equal(nested, both)


def test_exceptions_and_cancelled_runs_leave_nothing(tiny):
    passed: list[None] = []

    def stop_before_the_third_block() -> None:
        passed.append(None)
        if len(passed) == 3:
            raise Cancelled

    before = traces(tiny)
    with pytest.raises(Cancelled), remove_skips(tiny):
        tiny.run(IDS, check=stop_before_the_third_block)
    assert traces(tiny) == before
    with (
        pytest.raises(ZeroDivisionError),
        remove_skips(tiny),
        replace_block(tiny, 1, lambda states: states / (1 // 0), part="mlp"),
    ):
        tiny.run(IDS)
    assert traces(tiny) == before
    assert isinstance(torch.ones(2) + torch.ones(2), Tensor)


def test_what_cannot_be_removed_is_refused(tiny):
    with pytest.raises(InputError, match="'block'.*both, attention, mlp"), remove_skips(tiny, "block"):
        pass
    with pytest.raises(InputError, match="Block 3.*0 to 2"), remove_skips(tiny, blocks=[3]):
        pass
    with pytest.raises(InputError, match="No block"), remove_skips(tiny, blocks=[]):
        pass
    phi = Model(build("phi"), name="a phi")
    with pytest.raises(UnsupportedModelError, match="Block 0 of a phi adds attention and MLP.*one sum"), remove_skips(phi, "mlp"):
        pass
    with (
        replace_block(tiny, 1, lambda states: states),
        pytest.raises(UnsupportedModelError, match="Block 1 of .* adds to its stream 0 times"),
        remove_skips(tiny),
    ):
        pass
    config = AutoConfig.for_model("mamba", vocab_size=128, hidden_size=32, num_hidden_layers=2, state_size=8)
    mamba = Model(AutoModelForCausalLM.from_config(config).eval())
    with pytest.raises(UnsupportedModelError, match="no attention of its own"), remove_skips(mamba):
        pass


def test_a_block_that_keeps_its_stream_in_another_way_is_refused(tiny, monkeypatch):
    """A third path from the stream to the output, by a function that is no sum of two tensors."""
    block: Any = tiny.anatomy.blocks[1].module
    own = type(block).forward

    def leaky(self: Any, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        return torch.stack([own(self, hidden_states, **kwargs), hidden_states]).sum(0)

    monkeypatch.setattr(type(block), "forward", leaky)
    with pytest.raises(UnsupportedModelError, match=r"block 0 of .* still hands on .* of its stream"), remove_skips(tiny):
        pass
