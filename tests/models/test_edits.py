"""Edits of a live model do what they say, and leave nothing behind, however they end."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import lens
from lens.base.errors import Cancelled, InputError, UnsupportedModelError
from lens.models.edits import BlockPart, part_modules, replace_block
from lens.models.model import Model
from tests.models.families import FAMILIES, build

IDS = list(range(3, 19))
PARTS: tuple[BlockPart, ...] = ("block", "attention", "mlp")


@pytest.fixture(params=FAMILIES, scope="module")
def family(request):
    return Model(build(request.param), name=request.param)


def identity(states: Tensor) -> Tensor:
    return states


def double(states: Tensor) -> Tensor:
    return 2 * states


def traces(model: Model) -> dict[str, Any]:
    """All that an edit could leave in the module tree, and what the model says."""
    return {
        "own": {name: (set(vars(part)), vars(part).get("forward")) for name, part in model.module.named_modules()},
        "hooks": [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.module.modules()],
        "state": {name: (value.data_ptr(), value._version) for name, value in model.module.state_dict().items()},
        "logits": model.run(IDS).logits.numpy().tobytes(),
        "edits": (model.edits, model.lock.holder, model.fingerprint, model.provenance()),
    }


def calls_of(model: Model, *modules: nn.Module) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """The arguments that a run gives to modules."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    handles = [m.register_forward_pre_hook(lambda _m, a, k: seen.append((a, k)), with_kwargs=True) for m in modules]
    model.run(IDS)
    for handle in handles:
        handle.remove()
    return seen


def first_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def twin(model: Model, block: int, part: BlockPart) -> Callable[[Tensor], Tensor]:
    """The very function of a part, computed by a copy of it outside the model."""
    first, last = part_modules(model, block, part)
    if first is not last:
        up, down = copy.deepcopy(first), copy.deepcopy(last)
        between = copy.deepcopy(model.anatomy.blocks[block].module.activation_fn)
        return lambda states: down(between(up(states)))
    copied = copy.deepcopy(last)
    ((args, kwargs),) = calls_of(model, last)
    if part != "block" and len(args) > 1:  # BLOOM gives its parts the stream to add
        args = (args[0], torch.zeros_like(args[1]), *args[2:])
    kwargs = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return lambda states: first_of(copied(states, *args[1:], **kwargs))


# -- what an edit does ----------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_the_same_function_in_the_place_of_a_part_changes_nothing(family: Model, part: BlockPart):
    plain = family.run(IDS)
    same = twin(family, 1, part)
    with replace_block(family, 1, same, part=part):
        edited = family.run(IDS)
    assert torch.equal(edited.logits, plain.logits)
    assert torch.equal(edited.residual, plain.residual)


def test_identity_in_the_place_of_a_block_is_the_model_without_it(family: Model):
    plain = family.run(IDS)
    last = family.anatomy.blocks[2].module
    ((args, kwargs),) = calls_of(family, last)
    with torch.no_grad():
        expected = first_of(last(plain.residual[1][None], *args[1:], **kwargs))[0]
    with replace_block(family, 1, identity):
        edited = family.run(IDS)
    assert torch.equal(edited.residual[:2], plain.residual[:2])
    assert torch.equal(edited.residual[2], plain.residual[1])
    assert torch.equal(edited.residual[3], expected)
    assert not torch.equal(edited.logits, plain.logits)


def test_zeros_in_the_place_of_attention_are_an_output_projection_of_zeros(family: Model):
    with replace_block(family, 1, torch.zeros_like, part="attention"):
        edited = family.run(IDS)
    silent = Model(copy.deepcopy(family.module))
    names = ("o_proj", "out_proj", "c_proj", "dense")
    attention = silent.anatomy.blocks[1].attention
    (projection,) = [part for name, part in attention.named_children() if name in names]
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter.zero_()
    assert torch.equal(edited.logits, silent.run(IDS).logits)


@pytest.mark.parametrize("part", PARTS)
def test_the_original_does_not_run_and_hooks_on_it_still_fire(family: Model, part: BlockPart):
    """Its weights are no numbers for the time, and nobody notices."""
    ends = part_modules(family, 1, part)
    weights = [parameter for end in ends for parameter in end.parameters()]
    kept = [weight.clone() for weight in weights]
    fired: list[nn.Module] = []
    handles = [end.register_forward_hook(lambda module, *_: fired.append(module)) for end in dict.fromkeys(ends)]
    with replace_block(family, 1, double, part=part), torch.no_grad():
        fired.clear()
        for weight in weights:
            weight.fill_(torch.nan)
        edited = family.run(IDS)
        for weight, former in zip(weights, kept, strict=True):
            weight.copy_(former)
    for handle in handles:
        handle.remove()
    assert fired == list(dict.fromkeys(ends))
    assert edited.logits.isfinite().all()
    assert part != "block" or torch.equal(edited.residual[2], 2 * edited.residual[1])


@pytest.mark.parametrize("part", PARTS)
def test_logits_and_attached_things_are_the_former_ones_afterwards(family: Model, part: BlockPart):
    before = traces(family)
    with replace_block(family, 1, double, part=part), replace_block(family, 0, identity):
        assert family.run(IDS).logits.numpy().tobytes() != before["logits"]
    assert traces(family) == before


@pytest.mark.parametrize("given", [torch.float64, torch.bfloat16])
def test_states_keep_their_dtype_whatever_the_stand_in_computes_in(tiny, given: torch.dtype):
    with replace_block(tiny, 1, lambda states: states.to(given)):
        run = tiny.run(IDS)
    assert run.residual.dtype == run.logits.dtype == torch.float32
    assert torch.equal(run.residual[2], run.residual[1].to(given).float())


def test_stream_that_widens_inside_a_block_is_as_wide_behind_its_stand_in():
    config = AutoConfig.for_model(
        "mamba", vocab_size=128, hidden_size=32, num_hidden_layers=3, state_size=8, residual_in_fp32=True
    )  # fmt: skip
    model = Model(AutoModelForCausalLM.from_config(config).eval().to(torch.bfloat16))
    seen: list[tuple[torch.dtype, torch.dtype]] = []
    model.anatomy.blocks[0].module.register_forward_hook(lambda _m, args, output: seen.append((args[0].dtype, output.dtype)))
    model.run(IDS)
    with replace_block(model, 0, identity):
        model.run(IDS)
    assert set(seen) == {(torch.bfloat16, torch.float32)}


# -- how it ends ----------------------------------------------------------------------------------


def test_an_exception_in_the_body_leaves_nothing(tiny):
    before = traces(tiny)
    with pytest.raises(KeyError), replace_block(tiny, 1, double):
        raise KeyError
    assert traces(tiny) == before


def test_an_exception_in_the_stand_in_leaves_nothing(tiny):
    def fail(states: Tensor) -> Tensor:
        raise ArithmeticError

    before = traces(tiny)
    for part in PARTS:
        with pytest.raises(ArithmeticError), replace_block(tiny, 1, fail, part=part):
            tiny.run(IDS)
        assert traces(tiny) == before


def test_a_cancelled_run_leaves_nothing(tiny):
    passed: list[None] = []

    def stop_before_the_third_block() -> None:
        passed.append(None)
        if len(passed) == 3:
            raise Cancelled

    before = traces(tiny)
    with pytest.raises(Cancelled), replace_block(tiny, 1, double):
        tiny.run(IDS, check=stop_before_the_third_block)
    assert len(passed) == 3
    assert traces(tiny) == before


def test_a_generator_closed_in_the_middle_leaves_nothing(tiny):
    def layers() -> Iterator[Tensor]:
        with replace_block(tiny, 1, double):
            yield from tiny.run(IDS).residual

    before = traces(tiny)
    reading = layers()
    next(reading)
    assert tiny.edits
    reading.close()
    assert traces(tiny) == before


def test_the_inner_of_two_edits_of_a_block_counts_and_then_the_outer_again(tiny):
    before = traces(tiny)
    with replace_block(tiny, 1, double):
        outer = tiny.run(IDS).residual
        with replace_block(tiny, 1, identity):
            inner = tiny.run(IDS).residual
        again = tiny.run(IDS).residual
    assert torch.equal(outer[2], 2 * outer[1])
    assert torch.equal(inner[2], inner[1])
    assert torch.equal(again, outer)
    assert traces(tiny) == before


@pytest.mark.parametrize("second", [1, 2])
def test_edits_may_end_in_any_order(tiny, second: int):
    """Two of one block, or of two; the first one ends first."""
    before = traces(tiny)
    first, other = replace_block(tiny, 1, identity), replace_block(tiny, second, double)
    first.__enter__()
    other.__enter__()
    first.__exit__(None, None, None)
    left = tiny.run(IDS).residual
    assert torch.equal(left[second + 1], 2 * left[second])
    assert len(tiny.edits) == 1
    assert tiny.lock.mine
    other.__exit__(None, None, None)
    assert traces(tiny) == before
    assert not tiny.lock.mine


def test_a_part_of_a_replaced_block_can_be_replaced_too(tiny):
    before = traces(tiny)
    with replace_block(tiny, 1, torch.zeros_like, part="attention"):
        without = tiny.run(IDS).residual
        with replace_block(tiny, 1, torch.zeros_like, part="mlp"):
            bare = tiny.run(IDS).residual
        with replace_block(tiny, 1, double):
            doubled = tiny.run(IDS).residual
    assert not torch.equal(without[2], without[1])
    assert torch.equal(bare[2], bare[1])
    assert torch.equal(doubled[2], 2 * doubled[1])
    assert traces(tiny) == before


@pytest.mark.parametrize("part", PARTS)
def test_the_library_s_own_hooks_stay_where_they_were(tiny, part: BlockPart):
    """Models spread over devices carry a `forward` of their own on every module."""
    for module in part_modules(tiny, 1, part):
        add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
        assert "forward" in vars(module)
    before = traces(tiny)
    with replace_block(tiny, 1, torch.zeros_like, part=part):
        assert tiny.run(IDS).logits.numpy().tobytes() != before["logits"]
    assert traces(tiny) == before


# -- who may run it, and what is known of it ------------------------------------------------------


def test_another_thread_waits_until_the_edit_is_over(tiny):
    plain = tiny.run(IDS).logits
    seen: list[Tensor] = []
    with replace_block(tiny, 1, double):
        thread = threading.Thread(target=lambda: seen.append(tiny.run(IDS).logits))
        thread.start()
        thread.join(timeout=0.2)
        assert thread.is_alive()
        assert tiny.lock.holder == "edited: block 1 replaced by double"
        assert not torch.equal(tiny.run(IDS).logits, plain)
    thread.join()
    assert torch.equal(seen[0], plain)


def test_two_threads_that_edit_take_turns(tiny):
    """Each sees its own edit alone, whatever the other one does."""
    before = traces(tiny)
    wrong: list[int] = []

    def edit(factor: int) -> None:
        for _ in range(20):
            with replace_block(tiny, 1, lambda states: factor * states):
                residual = tiny.run(IDS).residual
                if not torch.equal(residual[2], factor * residual[1]):
                    wrong.append(factor)

    threads = [threading.Thread(target=edit, args=(factor,)) for factor in (2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert traces(tiny) == before


def test_an_edited_model_says_so_and_is_no_other_model(tiny):
    plain = tiny.fingerprint
    prints = {plain}
    for _ in range(2):  # the same words, yet possibly another function: never the same fingerprint
        with replace_block(tiny, 1, double):
            prints.add(tiny.fingerprint)
            assert tiny.fingerprint in prints
            assert lens.load(tiny.module, tiny.tokenizer).fingerprint == tiny.fingerprint
            assert tiny.provenance()["edits"] == "block 1 replaced by double"
            with replace_block(tiny, 0, identity, part="mlp"):
                prints.add(tiny.fingerprint)
                assert tiny.edits == ("block 1 replaced by double", "the mlp of block 0 replaced by identity")
    assert len(prints) == 5
    assert tiny.fingerprint == plain
    assert "edits" not in tiny.provenance()


def test_a_thread_that_cannot_run_the_edited_model_sees_the_plain_one(tiny):
    plain = tiny.fingerprint, tiny.provenance()
    seen: list[Any] = []
    with replace_block(tiny, 1, double):
        thread = threading.Thread(target=lambda: seen.append((tiny.fingerprint, tiny.provenance())))
        thread.start()
        thread.join()
    assert seen == [plain]


# -- what is refused ------------------------------------------------------------------------------


def test_blocks_and_parts_that_are_not_there_are_refused(tiny):
    for block in (-1, 3):
        with pytest.raises(InputError, match=f"Block {block}.*0 to 2"), replace_block(tiny, block, identity):
            pass
    with pytest.raises(InputError, match="'norm'.*block, attention, mlp"):
        part_modules(tiny, 1, "norm")


def test_a_block_without_attention_is_refused_by_name():
    config = AutoConfig.for_model("mamba", vocab_size=128, hidden_size=32, num_hidden_layers=3, state_size=8)
    model = Model(AutoModelForCausalLM.from_config(config).eval(), name="a mamba")
    for part in ("attention", "mlp"):
        message = rf"Block 2 of a mamba \(MambaBlock\) has no {part} of its own"
        with pytest.raises(UnsupportedModelError, match=message), replace_block(model, 2, identity, part=part):
            pass
    with replace_block(model, 2, identity):
        run = model.run(IDS)
    assert torch.equal(run.residual[3], run.residual[2])


def test_states_of_another_shape_are_refused(tiny):
    with (
        pytest.raises(InputError, match=r"Block 1 of .* gives Tensor \(1, 16, 8\).*shape \(1, 16, 32\)"),
        replace_block(tiny, 1, lambda states: states[..., :8]),
    ):
        tiny.run(IDS)


def test_a_cache_of_keys_and_values_is_refused(tiny):
    """Its length, which numbers the positions, is that of the first block's."""
    ids = torch.tensor([IDS])
    for part in ("block", "attention"):
        with replace_block(tiny, 0, double, part=part):
            with pytest.raises(UnsupportedModelError, match="use_cache=False"):
                tiny.module.generate(ids, max_new_tokens=3, do_sample=False)
            slow = tiny.module.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)
    plain = tiny.module.generate(ids, max_new_tokens=3, do_sample=False)
    assert slow.shape == plain.shape


def test_attention_patterns_of_a_model_without_all_its_attention_are_refused(tiny):
    for part in ("block", "attention"):
        with (
            replace_block(tiny, 1, double, part=part),
            pytest.raises(UnsupportedModelError, match="2 attention patterns.*its 3 blocks"),
        ):
            tiny.run(IDS, attention=True)
