"""What a replacement costs: nothing where the map is the block, as worked out by hand where it is not, on test documents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

import lens
from lens.base.errors import Cancelled, InputError, UnsupportedModelError
from lens.base.progress import CancelToken, Step
from lens.collect import collect_moments
from lens.collect.windows import draw_documents
from lens.corpora import Corpus
from lens.models.edits import BlockPart, part_modules, replace_block
from lens.models.model import Model
from lens.probes.replacement import cumulative_replacement, replacement_cost
from lens.probes.shortcuts import AffineMap, fit_shortcuts
from tests.models.families import build

SIZE = {"tokens": 100, "window": 24}


def made_up(documents: int = 60, length: int = 40) -> Corpus:
    words = np.random.default_rng(3).integers(4, 123, (documents, length))
    return Corpus("made up", [" ".join(f"w{word}" for word in row) for row in words])


def affine(width: int, seed: int) -> AffineMap:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.eye(width) + 0.3 * torch.randn(width, width, generator=generator) / width**0.5
    return AffineMap(matrix, *(0.1 * torch.randn(2, width, generator=generator)))


def identity(states: Tensor) -> Tensor:
    return states


@contextmanager
def linear(model: Model) -> Iterator[dict[int, AffineMap]]:
    """The model with an affine map for every block: a transformer that is linear indeed."""
    maps = {block: affine(model.d_model, block) for block in range(model.n_layers)}
    with ExitStack() as edits:
        for block, one in maps.items():
            edits.enter_context(replace_block(model, block, one))
        yield maps


def losses(model: Model, windows: Sequence[tuple[list[int], int]], original: Model | None = None) -> np.ndarray:
    """Per document: tokens, summed cross entropy and summed KL(original‖model), from full logits."""
    rows: dict[int, np.ndarray] = {}
    for ids, document in windows:
        logits = model.run(ids).logits[:-1].double().log_softmax(-1)
        said = logits if original is None else original.run(ids).logits[:-1].double().log_softmax(-1)
        loss = cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum")
        row = np.array([len(ids) - 1, loss.item(), (said.exp() * (said - logits)).sum().item()])
        rows[document] = rows.get(document, 0) + row
    return np.array([rows[document] for document in sorted(rows)])


def with_first_position_kept(model: Model, block: int, part: BlockPart, stand_in: Callable[[Tensor], Tensor]) -> Model:
    """The replacement by other means: the original runs too, and every position but the first is overwritten."""
    edited = Model(copy.deepcopy(model.module), model.tokenizer)
    first, last = part_modules(edited, block, part)
    entered: list[Tensor] = []

    def enter(_module, args, kwargs):
        entered[:] = [args[0] if args else kwargs["hidden_states"]]

    def leave(_module, args, kwargs, output):
        states = output[0] if isinstance(output, tuple) else output
        given = stand_in(entered[0])
        if len(args) > 1 and part != "block":
            given = given + args[1]  # BLOOM adds the stream inside its parts
        axis = given.dim() - 2  # OPT gives its MLP one axis for sequences and positions
        mixed = torch.cat([states.narrow(axis, 0, 1), given.narrow(axis, 1, given.shape[axis] - 1)], axis)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    first.register_forward_pre_hook(enter, with_kwargs=True)
    last.register_forward_hook(leave, with_kwargs=True)
    return edited


# -- exact where the answer is known --------------------------------------------------------------


def test_the_map_that_a_block_is_costs_nothing(tiny):
    with linear(tiny) as maps:
        found = replacement_cost(tiny, made_up(), maps, **SIZE)
        together = cumulative_replacement(tiny, made_up(), maps, [2, 0, 1], counts=(1, 3), **SIZE)
    assert abs(found.cost.sel(stand_in="map")).max() < 1e-5
    assert found.mean_kl.sel(stand_in="map").max() < 1e-5
    assert found.mean_kl.sel(stand_in="removed").min() > 1e-2
    assert abs(together.cost.sel(stand_in="map")).max() < 1e-5
    assert together.mean_kl.sel(stand_in="removed", count=3) > 1e-2


def test_the_map_of_a_linear_block_is_found_on_one_text_and_costs_nothing_on_another(tiny, tmp_path: Path, monkeypatch):
    """The whole way: moments of the edited model, maps from moments, maps in the place of blocks."""
    monkeypatch.setenv("LENS_CACHE", str(tmp_path))
    with linear(tiny) as maps:
        moments = collect_moments(tiny, made_up(), tokens=1000, window=24, pairs="adjacent")
        shortcuts = fit_shortcuts(moments.train, ridge=0.0)
        assert torch.allclose(shortcuts.maps[1, 2].matrix.float(), maps[1].matrix, atol=1e-3)
        found = replacement_cost(tiny, made_up(), shortcuts, **SIZE)
    assert abs(found.cost.sel(stand_in="map")).max() < 1e-3
    assert found.mean_kl.sel(stand_in="map").max() < 1e-4
    assert found.attrs["edits"].startswith("block 0 replaced by AffineMap")
    with pytest.raises(InputError, match="were fitted on"):  # of the edited model, and it is no more
        replacement_cost(tiny, made_up(), shortcuts, **SIZE)


def test_a_block_that_does_nothing_can_go(tokenizer):
    module = build("llama")
    block = module.model.layers[1]
    with torch.no_grad():
        block.self_attn.o_proj.weight.zero_()
        block.mlp.down_proj.weight.zero_()
    model = lens.load(module, tokenizer)
    found = replacement_cost(model, made_up(), dict.fromkeys(range(3), identity), **SIZE)
    assert (found.cost.sel(block=1) == 0).all()
    assert (found.mean_kl.sel(block=1) == 0).all()
    assert (found.cost_low.sel(block=1) == 0).all()
    assert (found.mean_kl.sel(block=[0, 2]) > 1e-3).all()


@pytest.mark.parametrize("part", ["block", "attention", "mlp"])
@pytest.mark.parametrize("keep_first", [True, False])
@pytest.mark.parametrize("family", ["llama", "opt", "bloom"])
def test_every_number_by_hand(family: str, part: BlockPart, keep_first: bool, tokenizer):
    model = lens.load(build(family), tokenizer)
    stand_in = affine(model.d_model, 5)
    found = replacement_cost(model, made_up(), {2: stand_in, 1: stand_in}, part=part, keep_first=keep_first, **SIZE)
    assert found.block.values.tolist() == [1, 2]
    windows = draw_documents(model, made_up(), "test", 100, 24)
    plain = losses(model, windows)
    assert found.scored.values.tolist() == plain[:, 0].tolist()
    assert np.allclose(found.loss, plain[:, 1] / plain[:, 0], atol=1e-4)
    assert float(found.mean_loss) == pytest.approx(plain[:, 1].sum() / plain[:, 0].sum(), abs=1e-4)
    original = Model(copy.deepcopy(model.module), tokenizer)
    nothing = identity if part == "block" else torch.zeros_like
    kinds = {"map": (stand_in, keep_first), "removed": (nothing, False), "removed_but_first": (nothing, True)}
    assert found.stand_in.values.tolist() == list(kinds)[: 3 if keep_first else 2]
    for name in found.stand_in.values:
        one, (function, kept) = found.sel(block=1, stand_in=name), kinds[name]
        if kept:
            after = losses(with_first_position_kept(model, 1, part, function), windows, original)
        else:
            with replace_block(model, 1, function, part=part):
                after = losses(model, windows, original)
        assert np.allclose(one.loss_after, after[:, 1] / after[:, 0], atol=2e-4)
        assert np.allclose(one.kl_to_original, after[:, 2] / after[:, 0], atol=2e-4)
        assert float(one.cost) == pytest.approx((after - plain)[:, 1].sum() / plain[:, 0].sum(), abs=2e-4)
        assert float(one.mean_kl) == pytest.approx(after[:, 2].sum() / plain[:, 0].sum(), abs=2e-4)
        assert one.cost_low < one.cost < one.cost_high


def test_more_blocks_at_once_are_replaced_together(tiny):
    maps = {block: affine(tiny.d_model, block) for block in range(3)}
    found = cumulative_replacement(tiny, made_up(), maps, [2, 0, 1], counts=(1, 2), keep_first=False, **SIZE)
    windows = draw_documents(tiny, made_up(), "test", 100, 24)
    with replace_block(tiny, 2, maps[2]):
        one = losses(tiny, windows)
        with replace_block(tiny, 0, maps[0]):
            two = losses(tiny, windows)
    for count, expected in ((1, one), (2, two)):
        assert np.allclose(found.loss_after.sel(stand_in="map", count=count), expected[:, 1] / expected[:, 0], atol=2e-4)
    single = replacement_cost(tiny, made_up(), maps, blocks=[2], keep_first=False, **SIZE)
    assert np.array_equal(found.loss_after.sel(count=1), single.loss_after.sel(block=2))
    assert found.attrs["order"] == "2, 0, 1"


def test_the_first_position_is_kept_or_not_as_asked(tiny):
    """An exact copy of the MLP that fails at position 0 alone."""
    mlp = copy.deepcopy(part_modules(tiny, 1, "mlp")[0])

    def without_the_first(states: Tensor) -> Tensor:
        given = mlp(states)
        given[:, 0] = 0
        return given

    kept, lost = (
        replacement_cost(tiny, made_up(), {1: without_the_first}, part="mlp", keep_first=keep, **SIZE) for keep in (True, False)
    )
    assert float(kept.mean_kl.sel(stand_in="map", block=1)) == 0
    assert float(lost.mean_kl.sel(stand_in="map", block=1)) > 1e-4


# -- which text, whose model ----------------------------------------------------------------------


def test_only_documents_of_the_test_part_are_read(tiny, monkeypatch: pytest.MonkeyPatch):
    corpus = made_up()
    texts = {part: {document.text for document in corpus.part(part)} for part in ("train", "validation", "test")}
    read: set[str] = set()
    encode = Model.encode_bare
    monkeypatch.setattr(Model, "encode_bare", lambda self, text: (read.add(text), encode(self, text))[1])
    found = replacement_cost(tiny, corpus, {0: identity}, **SIZE)
    assert read <= texts["test"]
    assert sorted(found.document.values) == list(range(len(found.document)))
    windows = draw_documents(tiny, corpus, "test", 100, 24)
    assert found.attrs["tokens_scored"] == found.scored.sum() == sum(len(ids) - 1 for ids, _ in windows)


def test_maps_of_a_part_stand_for_that_part_only(tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("LENS_CACHE", str(tmp_path))
    moments = collect_moments(tiny, made_up(), tokens=1000, window=24, pairs="adjacent", parts=("residual", "mlp"))
    shortcuts = fit_shortcuts(moments["mlp"].train, ridge=1e-2)
    found = replacement_cost(tiny, made_up(), shortcuts, part="mlp", **SIZE)
    by_hand = replacement_cost(tiny, made_up(), {1: shortcuts.maps[1, 4]}, part="mlp", **SIZE)
    assert np.array_equal(found.cost.sel(block=[1]), by_hand.cost)
    assert found.attrs["fitted_corpus"] == "made up"
    with pytest.raises(InputError, match="These are maps of mlp.*maps of the residual stream"):
        replacement_cost(tiny, made_up(), shortcuts, **SIZE)
    with pytest.raises(InputError, match="These are maps of residual.*maps of attention"):
        replacement_cost(tiny, made_up(), fit_shortcuts(moments.train), part="attention", **SIZE)


def test_maps_of_parts_that_add_the_stream_themselves(tokenizer, tmp_path: Path, monkeypatch):
    """BLOOM: what the MLP computes is what leaves it less the stream; a map of that, put in its place, must add it again."""
    monkeypatch.setenv("LENS_CACHE", str(tmp_path))
    module = build("bloom")
    with torch.no_grad():
        for block in module.transformer.h:  # nothing but a bias: a map of it is exact
            block.mlp.dense_4h_to_h.weight.zero_()
    model = lens.load(module, tokenizer)
    moments = collect_moments(model, made_up(), tokens=500, window=24, pairs="adjacent", parts=("residual", "mlp"), mask="none")
    found = replacement_cost(model, made_up(), fit_shortcuts(moments["mlp"].train), part="mlp", **SIZE)
    assert np.allclose(found.cost.sel(stand_in="map"), 0, atol=1e-4)


def test_the_model_is_the_former_one_after_a_cancel_at_any_moment(tiny):
    maps = {block: affine(tiny.d_model, block) for block in range(3)}
    before = tiny.run(list(range(3, 19))).logits

    def stop_at(step: int) -> int:
        token, seen = CancelToken(), 0

        def check() -> None:
            nonlocal seen
            seen += 1
            if seen == step:
                token.cancel()
            token.check()

        with pytest.raises(Cancelled):
            replacement_cost(tiny, made_up(), maps, check=check, **SIZE)
        return seen

    for step in (1, 4, 5, 9, 17):
        assert stop_at(step) == step
        assert torch.equal(tiny.run(list(range(3, 19))).logits, before)
        assert tiny.lock.holder is None
        assert tiny.edits == ()


def test_progress_counts_every_reading(tiny):
    steps: list[Step] = []
    found = replacement_cost(tiny, made_up(), {0: identity, 1: identity}, progress=steps.append, **SIZE)
    read = int(found.scored.sum()) + len(draw_documents(tiny, made_up(), "test", 100, 24))
    assert [step.total for step in steps] == [7 * read] * len(steps)
    assert steps[-1].done == 7 * read
    assert all(a.done < b.done for a, b in pairwise(steps))


def test_results_go_through_netcdf(tiny, tmp_path: Path):
    found = cumulative_replacement(tiny, made_up(), {0: identity, 2: identity}, [2, 0], counts=[1, 2], **SIZE)
    found.to_netcdf(tmp_path / "cost.nc", engine="h5netcdf")
    with xr.open_dataset(tmp_path / "cost.nc", engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), found)


def test_what_cannot_be_measured_is_refused(tiny):
    maps = {0: identity, 1: identity}
    with pytest.raises(InputError, match=r"blocks \[0, 2\].*0, 1"):
        replacement_cost(tiny, made_up(), maps, blocks=[0, 2], **SIZE)
    with pytest.raises(InputError, match=r"blocks \[0, 0\]"):
        replacement_cost(tiny, made_up(), maps, blocks=[0, 0], **SIZE)
    with pytest.raises(InputError, match="Block 7"):
        replacement_cost(tiny, made_up(), {7: identity}, **SIZE)
    with pytest.raises(InputError, match=r"counts \[3\].*from 1 to 2"):
        cumulative_replacement(tiny, made_up(), maps, [0, 1], counts=[3], **SIZE)
    with pytest.raises(InputError, match="1 documents"):
        replacement_cost(tiny, made_up(), maps, tokens=20, window=24)
    config = AutoConfig.for_model("mamba", vocab_size=128, hidden_size=32, num_hidden_layers=3, state_size=8)
    other = Model(AutoModelForCausalLM.from_config(config).eval(), tiny.tokenizer)
    with pytest.raises(UnsupportedModelError, match="has no mlp of its own"):
        replacement_cost(other, made_up(), maps, part="mlp", **SIZE)


def test_smollm2_loses_less_by_a_map_than_by_a_hole(smollm2):
    """Block 15, its map fitted on 3,000 tokens of one part of Wikipedia, read on articles of another."""
    corpus = lens.corpus("wikipedia")
    moments = collect_moments(smollm2, corpus, tokens=3072, pairs="both")
    shortcuts = fit_shortcuts(moments.train, ridge=1e-2, pairs=[(15, 16)])
    found = replacement_cost(smollm2, corpus, shortcuts, tokens=512).sel(block=15)
    for name in ("removed", "removed_but_first"):
        assert 0 < float(found.cost.sel(stand_in="map")) < float(found.cost.sel(stand_in=name))
        assert 0 < float(found.mean_kl.sel(stand_in="map")) < float(found.mean_kl.sel(stand_in=name))
