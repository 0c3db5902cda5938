"""Deletions: the right tokens go, the right losses are compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

import lens
from lens.base.errors import InputError
from lens.models.model import Model
from lens.probes.deletion_test import deletion_test, kinds_of
from tests.models.families import VOCAB, build

FILLERS = ("the", "of", "and", ",", ".", "a")


def prose_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words with their leading space: fillers first, then nouns that nobody knows."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *(f"▁{word}" for word in FILLERS)]
    words += [f"▁zu{i}" for i in range(VOCAB - len(words))]
    raw = Tokenizer(token_models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def prose(seed: int, words: int = 60) -> str:
    """Text of which half are fillers."""
    generator = np.random.default_rng(seed)
    pairs = [(f"zu{generator.integers(90)}", FILLERS[generator.integers(len(FILLERS))]) for _ in range(words // 2)]
    return " ".join(word for pair in pairs for word in pair)


@pytest.fixture(scope="module")
def model() -> Model:
    return lens.load(build("llama"), prose_tokenizer())


def losses(model: Model, ids: list[int]) -> np.ndarray:
    logits = model.run(ids).logits
    assert logits is not None
    return -logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].double().numpy()


def test_kinds_are_those_of_the_words(model):
    ids = model.encode_bare("zu1 the zu2 , a zu3 .")
    kinds = kinds_of(model, ids)
    assert kinds["stop words"].tolist() == [False, True, False, False, True, False, False]
    assert kinds["punctuation"].tolist() == [False, False, False, True, False, False, True]
    assert kinds["articles"].tolist() == kinds["stop words"].tolist()
    assert kinds["stop words and punctuation"].tolist() == [False, True, False, True, True, False, True]


def test_rises_are_differences_of_one_tokens_losses(model):
    documents = lens.corpus([prose(1)]).documents
    found = deletion_test(model, documents, tokens=40).isel(document=0)
    ids = model.encode_bare(documents[0].text)[:40]
    before = losses(model, ids)
    assert found.loss.item() == pytest.approx(before[29:].mean(), abs=1e-4)
    fillers = kinds_of(model, ids)["stop words and punctuation"]
    left = [place for place in range(40) if not fillers[place] or place == 0 or place >= 30]
    after = losses(model, [ids[place] for place in left])
    rise = after - before[np.array(left[1:]) - 1]
    told = np.array(left[1:])
    chosen = found.sel(removed="stop words and punctuation", drawn="chosen")
    assert chosen.rise_after.item() == pytest.approx(rise[told >= 30].mean(), abs=1e-4)
    assert chosen.rise_remaining.item() == pytest.approx(rise[told < 30].mean(), abs=1e-4)
    assert found["share"].sel(removed="stop words and punctuation").item() == pytest.approx(fillers[1:30].mean(), abs=1e-6)


def test_as_many_tokens_are_drawn_and_the_draw_has_a_seed(model):
    documents = lens.corpus([prose(1), prose(2)]).documents
    first, again, other = (deletion_test(model, documents, tokens=40, removed=["articles"], seed=seed) for seed in (0, 0, 1))
    assert first.identical(again)
    rises = [one.rise_after.sel(removed="articles") for one in (first, other)]
    assert np.array_equal(rises[0].sel(drawn="chosen"), rises[1].sel(drawn="chosen"))
    assert not np.array_equal(rises[0].sel(drawn="random"), rises[1].sel(drawn="random"))
    assert first.sizes == {"document": 2, "removed": 1, "drawn": 2}


def test_nothing_to_delete_is_no_result(model):
    plain = lens.corpus([" ".join(f"zu{i % 50}" for i in range(40))]).documents
    found = deletion_test(model, plain, tokens=40, removed=["punctuation"])
    assert bool(found.rise_after.isnull().all())
    assert float(found["share"].max()) == 0
    assert bool(found.loss.notnull().all())


def test_refused(model):
    documents = lens.corpus([prose(1)]).documents
    with pytest.raises(InputError, match="verbs"):
        deletion_test(model, documents, removed=["verbs"])
    with pytest.raises(InputError, match="of 192 tokens"):
        deletion_test(model, documents)
    with pytest.raises(InputError, match="16 or more"):
        deletion_test(model, documents, tokens=8)
