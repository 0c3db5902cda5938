"""What may be asked of a pass, and what is refused before anything is run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import lens
from lens.base.errors import DiskSpaceError, InputError, MemoryEstimateError
from lens.collect import collect_moments
from lens.collect.plan import require_usable
from lens.collect.room import Room
from lens.corpora import Corpus
from lens.models.model import Model
from tests.collect.passes import made_up, names_in, only_folder
from tests.models.families import build


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("adjacent", {(0, 1), (1, 2), (2, 3)}),
        ("to_final", {(0, 3), (1, 3), (2, 3)}),
        ("both", {(0, 1), (1, 2), (2, 3), (0, 3), (1, 3)}),
        ("all", {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}),
        ([(0, 2)], {(0, 2)}),
    ],
)
def test_pairs_are_the_ones_asked_for(tiny: Model, pairs, expected: set):
    found = collect_moments(tiny, made_up(), tokens=500, pairs=pairs, window=32).train
    assert set(found.pairs) == expected
    assert set(found.within) == {layer for pair in expected for layer in pair}


@pytest.mark.parametrize("pairs", ["some", [(1, 1)], [(2, 1)], [(0, 4)], []])
def test_wrong_pairs_are_refused(tiny: Model, own_cache: Path, pairs):
    with pytest.raises(InputError, match="pairs"):
        collect_moments(tiny, made_up(), pairs=pairs, window=32)
    assert not (own_cache / "moments").exists()


def test_window_beyond_the_context_is_refused(tiny: Model):
    with pytest.raises(InputError, match=r"Windows of 65 tokens.*at most 64, the context"):
        collect_moments(tiny, made_up(), window=65)
    assert collect_moments(tiny, made_up(), tokens=500, window=64).train.count > 0


@pytest.mark.parametrize("options", [{"window": 15}, {"window": 0}, {"window": -1}, {"tokens": 0}, {"tokens": -5}])
def test_useless_windows_and_budgets_are_refused(tiny: Model, options: dict[str, int]):
    with pytest.raises(InputError):
        collect_moments(tiny, made_up(), **{"window": 32, "tokens": 500, **options})


@pytest.mark.parametrize("texts", [["w5 w6 w7"], ["w5 w6 w7 " * 30]])
def test_part_without_tokens_is_named(tiny: Model, texts: list[str]):
    """One document leaves two parts empty, whichever it is in; a short one leaves three."""
    with pytest.raises(InputError, match=r"The (train|validation|test) part of few gives no tokens"):
        collect_moments(tiny, Corpus("few", texts), window=32)


def test_model_without_tokenizer_is_refused():
    with pytest.raises(InputError, match="no tokenizer"):
        collect_moments(lens.load(build("llama")), made_up(), window=32)


@pytest.mark.parametrize("mask", ["robus", "", "None"])
def test_an_unknown_mask_is_refused(tiny: Model, mask: str):
    with pytest.raises(InputError, match=r"one of robust, first, none"):
        require_usable(tiny, 500, mask, 32)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (("residual", "norm_2"), r"'norm_2' is not in every block\. Needed: one of attention, mlp, norm_0, norm_1"),
        (("residual", "head"), r"'head' is not in every block\. Needed: one of attention, mlp, norm_0, norm_1"),
        (("mlp",), "a list with residual in it"),
        ((), "a list with residual in it"),
    ],
)
def test_unknown_parts_are_refused_with_the_known_ones(tiny: Model, own_cache: Path, parts: tuple[str, ...], words: str):
    with pytest.raises(InputError, match=words):
        collect_moments(tiny, made_up(), window=32, parts=parts)
    assert not (own_cache / "moments").exists()


@pytest.mark.parametrize("name", ["../../elsewhere", ".hidden", "x" * 300, "a\nb\0c", "ключ", "CON:*?"])
def test_any_name_of_a_corpus_makes_a_folder_of_its_own(tiny: Model, own_cache: Path, name: str):
    corpus = Corpus(name, [document.text for document in made_up().documents])
    found = collect_moments(tiny, corpus, tokens=500, window=32)
    assert found.train.source["corpus"] == name
    assert not only_folder(own_cache).name.startswith(".")
    assert names_in(own_cache) == ["locks", "moments"]


# -- room -----------------------------------------------------------------------------------------


def test_sums_that_no_machine_holds_are_refused(tokenizer, own_cache: Path):
    """A real model, absurdly wide but with next to nothing in it: nine sums, and two shuffled ones, of 131,072² numbers."""
    shape = {"vocab_size": 128, "hidden_size": 131072, "intermediate_size": 1, "num_attention_heads": 1, "head_dim": 2}
    shape |= {"num_key_value_heads": 1, "num_hidden_layers": 3, "max_position_embeddings": 64}
    model = lens.load(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).eval(), tokenizer)
    sums, states = (12 + 2 * 8) * 131072**2 * 11, 4 * 131072 * 6144 * 4
    figure = re.escape(f"{(sums + states) / 2**30:.2f} GiB")
    with pytest.raises(MemoryEstimateError, match=rf"The moments would take {figure}\. Needed: at most \d+ GiB.*fewer pairs"):
        collect_moments(model, made_up(), window=32)
    assert not (own_cache / "moments").exists()


def test_memory_is_held_against_what_is_free():

    free = psutil.virtual_memory().available
    Room(sums=free // 8, states=0).require_memory(torch.device("cpu"))
    with pytest.raises(MemoryEstimateError):
        Room(sums=free // 2, states=0).require_memory(torch.device("cpu"))
    with pytest.raises(MemoryEstimateError):
        Room(sums=0, states=2 * free).require_memory(torch.device("cpu"))


def test_a_disk_without_room_is_refused_before_the_pass(tmp_path: Path):

    free = shutil.disk_usage(tmp_path).free
    Room(sums=free // 8, states=0).require_disk(tmp_path, parts=3, processes=1)
    with pytest.raises(DiskSpaceError, match="for moments"):
        Room(sums=free // 3, states=0).require_disk(tmp_path, parts=3, processes=1)
    with pytest.raises(DiskSpaceError, match="for moments"):
        Room(sums=free // 3, states=0).require_disk(tmp_path, parts=1, processes=2)
