"""Blocks removed, exchanged and run side by side: exactly what a rebuilt model would give, and nothing is left behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import Tensor, nn

import lens
from lens.base.errors import Cancelled, InputError, UnsupportedModelError
from lens.models.edits import change_states, remove_blocks, reorder_blocks, replace_block, run_in_parallel, swap_blocks
from lens.models.model import Model
from tests.models.families import build
from tests.models.test_edits import IDS, calls_of, first_of, identity, traces

# Each is called, masked or told of positions in another way than the rest: plain, experts, two masks by turns, learned positions,
# parts of a block in parallel, projections around the blocks, slopes for distances.
STRUCTURES = ("llama", "mixtral", "gemma2", "gpt2", "gpt-neox", "gptj", "opt-projected", "falcon-alibi", "bloom")
MIXED = ("gemma2",)  # whose blocks see by turns a window and all
EDITS: dict[str, Callable[[Model], AbstractContextManager[None]]] = {
    "removed": lambda model: remove_blocks(model, [0, 2]),
    "swapped": lambda model: swap_blocks(model, 2, 1),
    "reordered": lambda model: reorder_blocks(model, [2, 0, 1]),
    "parallel": lambda model: run_in_parallel(model, [1, 2]),
    "averaged": lambda model: run_in_parallel(model, [0, 1, 2], combine="mean"),
    "changed": lambda model: change_states(model, [1, 3], lambda states: 2 * states),
}


@pytest.fixture(params=STRUCTURES, scope="module")
def family(request):
    return Model(build(request.param), name=request.param)


@pytest.fixture(scope="module")
def llama():
    return Model(build("llama"), name="llama")


def logits(model: Model) -> Tensor:
    found = model.run(IDS).logits
    assert found is not None
    return found


def rebuilt(model: Model, order: list[int]) -> nn.Module:
    """A copy whose list of blocks itself is another one, by the library's own means."""
    module = copy.deepcopy(model.module)
    path, _, _ = model.anatomy.blocks[0].path.rpartition(".")
    blocks = module.get_submodule(path)
    assert isinstance(blocks, nn.ModuleList)
    kept = list(blocks)
    for slot, block in enumerate(order):
        blocks[slot] = kept[block]
    return module


def block_alone(model: Model, block: int, states: Tensor) -> Tensor:
    """What a block makes of states `[position, d]`, called as the model calls it, by a copy of it."""
    module = model.anatomy.blocks[block].module
    ((args, kwargs),) = calls_of(model, module)
    kwargs = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    with torch.no_grad():
        return first_of(copy.deepcopy(module)(states[None].clone(), *args[1:], **kwargs))[0]


# -- what they do -------------------------------------------------------------------------------------------------------


def test_removed_blocks_hand_on_what_they_take(family: Model):
    with remove_blocks(family, [1]):
        one = logits(family)
    with replace_block(family, 1, identity):
        other = logits(family)
    with remove_blocks(family, [0, 1, 2]):
        none = family.run(IDS).residual
    assert torch.equal(one, other)
    assert torch.equal(none[3], none[0])


def test_swapped_blocks_are_a_model_built_in_that_order(family: Model):
    if family.name in MIXED:
        with pytest.raises(UnsupportedModelError, match="another mask"), swap_blocks(family, 0, 1):
            family.run(IDS)
        return
    with swap_blocks(family, 0, 1):
        edited = logits(family)
    with torch.no_grad():
        expected = rebuilt(family, [1, 0, 2])(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    assert torch.equal(edited, expected)
    assert not torch.equal(edited, logits(family))


def test_any_order_is_a_model_built_in_that_order(llama: Model):
    for order in ([2, 0, 1], [2, 1, 0]):
        with reorder_blocks(llama, order):
            edited = logits(llama)
        assert torch.equal(edited, logits(Model(rebuilt(llama, order))))
    plain = logits(llama)
    with reorder_blocks(llama, [0, 1, 2]):
        assert torch.equal(logits(llama), plain)


def test_parallel_blocks_add_to_one_input(family: Model):
    if family.name in MIXED:
        with pytest.raises(UnsupportedModelError, match="another mask"), run_in_parallel(family, [0, 1]):
            family.run(IDS)
        return
    plain = family.run(IDS).residual
    entered = plain[1]
    outputs = [block_alone(family, block, entered) for block in (1, 2)]
    with run_in_parallel(family, [1, 2]):
        edited = family.run(IDS).residual
    assert torch.equal(edited[:2], plain[:2])
    assert torch.equal(edited[2], outputs[0] + (outputs[1] - entered))
    assert torch.equal(edited[3], edited[2])
    with run_in_parallel(family, [1, 2], combine="mean"):
        assert torch.equal(family.run(IDS).residual[3], torch.stack(outputs).mean(0))


def test_a_block_that_adds_nothing_changes_nothing_beside_another(llama: Model):
    """h + (B(h) − h) + 0 is the block alone, and so is the block behind one that hands on what it takes."""
    module = copy.deepcopy(llama.module)
    with torch.no_grad():
        module.model.layers[2].self_attn.o_proj.weight.zero_()
        module.model.layers[2].mlp.down_proj.weight.zero_()
    model = Model(module)
    plain = logits(model)
    for edit in (run_in_parallel(model, [1, 2]), swap_blocks(model, 1, 2), remove_blocks(model, [2])):
        with edit:
            assert torch.equal(logits(model), plain)


def test_states_are_changed_where_it_was_asked_for(family: Model):
    plain = family.run(IDS).residual
    with change_states(family, [2], lambda states: states + 1):
        edited = family.run(IDS).residual
    assert torch.equal(edited[:2], plain[:2])
    assert torch.equal(edited[2], plain[2] + 1)
    assert torch.equal(edited[3], block_alone(family, 2, plain[2] + 1))


def test_a_block_moves_as_it_stands(llama: Model):
    """Another edit of a block goes with it, and one that comes later stands at the place."""
    with replace_block(llama, 1, lambda states: 2 * states), swap_blocks(llama, 0, 1):
        moved = llama.run(IDS).residual
    with swap_blocks(llama, 0, 1), replace_block(llama, 1, lambda states: 3 * states):
        stayed = llama.run(IDS).residual
    assert torch.equal(moved[1], 2 * moved[0])
    assert torch.equal(stayed[2], 3 * stayed[1])


# -- how they end -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edit", EDITS)
def test_every_bit_is_given_back(llama: Model, edit: str):
    before = traces(llama)
    with EDITS[edit](llama):
        assert logits(llama).numpy().tobytes() != before["logits"]
        assert len(llama.edits) == 1
        assert llama.fingerprint != before["edits"][2]
    assert traces(llama) == before
    with pytest.raises(KeyError), EDITS[edit](llama):
        raise KeyError
    assert traces(llama) == before


@pytest.mark.parametrize("edit", EDITS)
def test_a_cancelled_run_leaves_nothing(llama: Model, edit: str):
    def stop() -> None:
        passed.append(None)
        if len(passed) == 2:
            raise Cancelled

    passed: list[None] = []
    before = traces(llama)
    with pytest.raises(Cancelled), EDITS[edit](llama):
        llama.run(IDS, check=stop)
    assert traces(llama) == before


def test_they_may_be_nested_and_end_in_any_order(llama: Model):
    before = traces(llama)
    swap, removal = swap_blocks(llama, 0, 1), remove_blocks(llama, [1])
    swap.__enter__()
    removal.__enter__()
    both = llama.run(IDS).residual
    swap.__exit__(None, None, None)
    left = logits(llama)
    removal.__exit__(None, None, None)
    assert torch.equal(both[2], both[1])
    with remove_blocks(llama, [1]):
        assert torch.equal(logits(llama), left)
    assert traces(llama) == before


# -- what they refuse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda model: remove_blocks(model, []),
        lambda model: remove_blocks(model, [3]),
        lambda model: remove_blocks(model, [-1]),
        lambda model: remove_blocks(model, [1, 1]),
        lambda model: swap_blocks(model, 1, 1),
        lambda model: reorder_blocks(model, [0, 1]),
        lambda model: reorder_blocks(model, [0, 1, 1]),
        lambda model: run_in_parallel(model, [0]),
        lambda model: run_in_parallel(model, [0, 2]),
        lambda model: run_in_parallel(model, [1, 0]),
        lambda model: run_in_parallel(model, [0, 1], combine="max"),
        lambda model: change_states(model, [0], identity),
        lambda model: change_states(model, [4], identity),
    ],
)
def test_what_cannot_be_is_refused_before_anything_changes(llama: Model, edit: Callable[[Model], AbstractContextManager[None]]):
    before = traces(llama)
    with pytest.raises(InputError), edit(llama):
        pass
    assert traces(llama) == before


def test_a_change_of_shape_is_refused(llama: Model):
    with pytest.raises(InputError, match="of shape"), change_states(llama, [1], lambda states: states[:, :3]):
        llama.run(IDS)


@pytest.mark.parametrize("edit", [name for name in EDITS if name != "changed"])
def test_a_run_with_a_cache_is_refused(llama: Model, edit: str):
    with pytest.raises(UnsupportedModelError, match="cache"), EDITS[edit](llama):
        llama.module(input_ids=torch.tensor([IDS]), use_cache=True)


def test_they_are_public():
    assert lens.edits.swap_blocks is swap_blocks
    assert {"remove_blocks", "reorder_blocks", "run_in_parallel", "change_states"} <= set(lens.edits.__all__)
