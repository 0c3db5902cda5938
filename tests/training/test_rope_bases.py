"""Short trainings at several bases: paired, resumed, read far, and the losses those of a plain computation."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from lens.base.errors import Cancelled, InputError
from lens.corpora import Corpus, Document
from lens.training import Recipe, rope_bases
from lens.training.byte_text import BEGIN, ByteLoss, ByteText, token_losses
from lens.training.rope_bases import BIN, CUE, DISTANCES, LENGTH, PASSAGE, READ, byte_model, main, read_long, train_rope_bases

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
RECIPE = Recipe("tiny", steps=6, optimiser="adamw", learning_rate=1e-2, warm_up=2, clip=1.0)
WORDS = ["the", "a", "of", "rotary", "base", "loss", "head", "lane", "turns", "slowly", "and", "far", "too", "long", "for", "it"]


def made_up(documents: int = 12) -> Corpus:
    draw = random.Random(3)
    return Corpus("made up", [" ".join(draw.choice(WORDS) for _ in range(320)) + str(n) for n in range(documents)])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_CACHE", str(tmp_path))
    return tmp_path


def runs(**changes) -> list[dict]:
    asked = {"bases": (20.0, None), "seeds": (0,), "recipe": RECIPE, "shape": SHAPE, **changes}
    return list(train_rope_bases(made_up(), **asked))


# -- text -----------------------------------------------------------------------------------------


def test_every_place_of_every_document_is_as_likely():
    text = ByteText([Document("abcdefgh"), Document("ABCD"), Document("xy")], 4)
    drawn = text.draw(6000, np.random.default_rng(0))
    heads = ["".join(map(chr, row)) for row in drawn.tolist()]
    places = {head: heads.count(head) for head in set(heads)}
    assert set(places) == {"abcd", "bcde", "cdef", "defg", "efgh", "ABCD"}  # the short document is left out
    assert all(abs(count - 1000) < 5 * np.sqrt(1000 * 5 / 6) for count in places.values())
    assert ["".join(map(chr, row)) for row in text.heads().tolist()] == ["abcd", "ABCD"]


def test_too_short_a_corpus_is_refused():
    with pytest.raises(InputError, match="longest of 1 documents has 3 bytes"):
        ByteText([Document("abc")], 4)
    with pytest.raises(InputError, match=f"{READ}"):
        next(iter(train_rope_bases(Corpus("short", ["too short"] * 3))))


# -- models ---------------------------------------------------------------------------------------


def test_models_of_a_seed_differ_in_their_frequencies_only():
    models: list[Any] = [byte_model(base, 0, SHAPE) for base in (20.0, 1e4, None)]
    for weights in zip(*(model.parameters() for model in models), strict=True):
        assert all(torch.equal(weights[0], other) for other in weights[1:])
    frequencies = [model.model.rotary_emb.inv_freq for model in models]
    expected = 20.0 ** (-torch.arange(8, dtype=torch.float64) / 8)
    torch.testing.assert_close(frequencies[0].double(), expected, rtol=1e-6, atol=0)
    assert frequencies[2].eq(0).all()
    other = next(byte_model(20.0, 1, SHAPE).parameters())
    assert not torch.equal(other, next(models[0].parameters()))


def test_without_rotation_the_order_is_known_from_the_mask_alone():
    """The last of three tokens sees the two before it as a set, in the first layer and so in all if it has one."""
    still, turning = (byte_model(base, 0, {**SHAPE, "num_hidden_layers": 1, "initializer_range": 0.3}) for base in (None, 20.0))
    one, other = torch.tensor([[65, 66, 67]]), torch.tensor([[66, 65, 67]])
    with torch.no_grad():
        a, b = (still(input_ids=ids).logits[0, -1] for ids in (one, other))
        c, d = (turning(input_ids=ids).logits[0, -1] for ids in (one, other))
    torch.testing.assert_close(a, b)
    assert (c - d).abs().max() > 1e-3


@pytest.mark.parametrize("base", [1.0, -3.0, float("inf"), float("nan")])
def test_no_base(base: float):
    with pytest.raises(InputError, match="base"):
        byte_model(base, 0, SHAPE)


def test_loss_of_a_byte_is_that_of_the_plain_computation():
    model = byte_model(100.0, 0, SHAPE)
    targets = torch.randint(0, 256, (3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = token_losses(model, targets)
        for row, losses in zip(targets, found, strict=True):
            for place, loss in enumerate(losses):
                ids = torch.cat([torch.tensor([BEGIN]), row[:place]])
                probabilities = torch.softmax(model(input_ids=ids[None]).logits[0, -1].double(), 0)
                assert loss.item() == pytest.approx(-probabilities[row[place]].log().item(), abs=1e-5)


def test_models_of_a_seed_see_the_same_windows():
    text, seen = ByteText(made_up().documents, LENGTH), []

    class Listening(torch.nn.Module):
        def __init__(self, base: float):
            super().__init__()
            self.model = byte_model(base, 0, SHAPE)

        def forward(self, input_ids, use_cache):
            seen.append(input_ids)
            return self.model(input_ids=input_ids, use_cache=use_cache)

    for base, seed in ((20.0, 0), (1e4, 0), (20.0, 1)):
        ByteLoss(Listening(base), text, windows=2, seed=seed)(5)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert seen[0].shape == (2, LENGTH)
    assert seen[0][:, 0].eq(BEGIN).all()


# -- reading far ----------------------------------------------------------------------------------


def test_results_are_those_of_a_plain_reading():
    corpus, model = made_up(), byte_model(100.0, 0, SHAPE)
    held = ByteText([*corpus.part("validation"), *corpus.part("test")], READ)
    found = read_long(model, held)
    text = held.texts[0]
    with torch.no_grad():
        whole = token_losses(model, torch.from_numpy(text[:READ])[None])[0].double()
        assert found["loss"][0] == pytest.approx(whole.view(-1, BIN).mean(1).tolist(), abs=1e-4)
        start = 5 * LENGTH // 2  # the third half window of a window further on
        window = token_losses(model, torch.from_numpy(text[start : start + LENGTH])[None])[0].double()
        place = (start + LENGTH // 2) // BIN
        expected = window[LENGTH // 2 :].view(-1, BIN).mean(1).tolist()
        assert found["short_loss"][0][place : place + 2] == pytest.approx(expected, abs=1e-4)
        distance, end = DISTANCES[2], text[READ - PASSAGE : READ]
        between = text[PASSAGE:distance]
        rows = [np.concatenate([first, between, end]) for first in (end, text[READ - 2 * PASSAGE : READ - PASSAGE])]
        assert len(rows[0]) == distance + PASSAGE
        with_it, without = (token_losses(model, torch.from_numpy(row)[None])[0, distance + CUE :].mean().item() for row in rows)
    assert found["repeated_gain"][2][0] == pytest.approx(without - with_it, abs=1e-4)
    assert found["short_loss"][0][:2] == [None, None]
    assert found["position"] == list(range(0, READ, BIN))


def test_lanes_without_a_full_turn_are_stopped_or_slowed_and_put_back():
    corpus, model = made_up(), cast(Any, byte_model(1e4, 0, SHAPE))
    held = ByteText([*corpus.part("validation"), *corpus.part("test")], READ)
    frequencies = model.model.rotary_emb.inv_freq
    former = frequencies.clone()
    found = read_long(model, held)
    assert torch.equal(frequencies, former)
    slow = former * LENGTH < 2 * np.pi
    assert 0 < int(slow.sum()) < len(slow)
    text = torch.from_numpy(held.texts[0][:READ])[None]
    for name, factor in (("stopped_loss", 0.0), ("divided_loss", LENGTH / READ)):
        other = cast(Any, byte_model(1e4, 0, SHAPE))
        other.model.rotary_emb.inv_freq.copy_(torch.where(slow, former * factor, former))
        with torch.no_grad():
            expected = token_losses(other, text)[0].double().view(-1, BIN).mean(1).tolist()
        assert found[name][0] == pytest.approx(expected, abs=1e-4)
        assert found[name][0] != found["loss"][0]


def test_a_base_that_shows_every_lane_a_turn_leaves_nothing_to_slow():
    corpus, model = made_up(), byte_model(20.0, 0, SHAPE)
    found = read_long(model, ByteText(corpus.part("test") or corpus.documents, READ))
    assert found["loss"] == found["stopped_loss"] == found["divided_loss"]


def test_within_the_first_window_both_readings_are_one():
    model, corpus = byte_model(1e4, 0, SHAPE), made_up()
    found = read_long(model, ByteText(corpus.part("test") or corpus.documents, READ))
    second_half = slice(LENGTH // 2 // BIN, LENGTH // BIN)
    for long, short in zip(found["loss"], found["short_loss"], strict=True):
        assert long[second_half] == pytest.approx(short[second_half], abs=1e-4)


# -- runs -----------------------------------------------------------------------------------------


def test_runs_are_recorded_and_kept(cache, monkeypatch):
    first, second = runs()
    assert (first["base"], second["base"], first["seed"]) == (20.0, None, 0)
    assert first["curve"]["loss"] != second["curve"]["loss"]
    assert first["curve"]["step"] == [6]
    assert first["tokens"] == 6 * 8 * LENGTH
    assert first["source"]["corpus_hash"] == made_up().digest
    assert first["parameters"] == sum(p.numel() for p in byte_model(20.0, 0, SHAPE).parameters())
    monkeypatch.setattr(rope_bases, "train", None)  # a second call trains nothing
    assert runs() == [first, second]
    assert sorted(path.name for path in cache.rglob("*.*") if path.suffix != ".lock") == ["run.json", "run.json"]


def test_a_stopped_run_goes_on_to_the_same_end():
    """Up to its wall time, what an interrupted run records is what an uninterrupted one does."""
    left = [4]

    def check() -> None:
        left[0] -= 1
        if not left[0]:
            raise Cancelled()

    with pytest.raises(Cancelled):
        runs(bases=(20.0,), check=check)
    (resumed,) = runs(bases=(20.0,))
    text = made_up()
    model = byte_model(20.0, 0, SHAPE)
    loss = ByteLoss(model, ByteText(text.part("train"), LENGTH), windows=8, seed=0)
    rope_bases.train(replace(RECIPE, seed=0), model, loss)
    held = ByteText([*text.part("validation"), *text.part("test")], READ)
    assert resumed["results"] == read_long(model, held)


def test_command_writes_a_record(cache):
    (cache / "text.txt").write_text("\n\n".join(document.text for document in made_up().documents))
    main([str(cache / "record.jsonl"), "--corpus", str(cache / "text.txt"), "--seeds", "7", "--steps", "1"])
    head, *lines = (cache / "record.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert "record.jsonl --device cpu" in json.loads(head)["command"]
    assert [run["base"] for run in found] == list(rope_bases.BASES)
    assert all(run["seed"] == run["recipe"]["seed"] == 7 for run in found)
    assert all(len(run["results"]["loss"]) == 2 for run in found)
