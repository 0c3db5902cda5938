"""Lenses at hand: fitted once and then read, made anew when damaged, and never those of another model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens.base.errors import Cancelled, InputError
from lens.corpora import Corpus
from lens.probes.kept import shipped_tuned_lens, shortcuts_for


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made_up(seed: int = 0) -> Corpus:
    words = np.random.default_rng(seed).integers(4, 123, (80, 60))
    return Corpus("made up", [" ".join(f"w{word}" for word in row) for row in words])


def maps(model, corpus: Corpus | None = None, **options):
    return shortcuts_for(model, corpus or made_up(), tokens=1500, **options)


def test_a_second_call_runs_nothing_and_gives_the_same_maps(tiny, own_cache):
    first = maps(tiny)
    assert first.layers == (0, 1, 2)
    for file in (own_cache / "moments").rglob("*"):
        if file.is_file():
            file.unlink()

    def refuse(*_args):
        raise AssertionError("the model was run")

    handle = tiny.anatomy.blocks[0].module.register_forward_pre_hook(refuse)
    second = maps(tiny)
    assert all(torch.equal(first.maps[pair].matrix, second.maps[pair].matrix) for pair in first.pairs)
    with pytest.raises(AssertionError, match="the model was run"):
        maps(tiny, made_up(seed=1))
    handle.remove()


def test_damaged_maps_are_fitted_again(tiny, own_cache):
    first = maps(tiny)
    (path,) = (own_cache / "shortcuts").iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    assert torch.equal(maps(tiny).maps[0, 3].matrix, first.maps[0, 3].matrix)


def test_changed_weights_get_their_own_maps(tiny):
    first = maps(tiny)
    with torch.no_grad():
        tiny.module.model.embed_tokens.weight.mul_(3)
    assert not torch.equal(maps(tiny).maps[0, 3].matrix, first.maps[0, 3].matrix)


def test_a_cancelled_fit_leaves_nothing_behind_that_is_taken_for_whole(tiny, own_cache):
    def cancel() -> None:
        raise Cancelled()

    with pytest.raises(Cancelled):
        maps(tiny, check=cancel)
    assert not (own_cache / "shortcuts").exists() or not list((own_cache / "shortcuts").iterdir())
    assert maps(tiny).layers == (0, 1, 2)


def test_too_few_tokens_are_refused(tiny):
    with pytest.raises(InputError):
        shortcuts_for(tiny, Corpus("few", ["w5 " * 20]), tokens=64)


def test_no_tuned_lens_is_shipped_for_a_model_of_ones_own(tiny):
    assert shipped_tuned_lens(tiny) is None


def test_the_shipped_tuned_lens_is_smollm2s_and_came_with_its_record(smollm2, monkeypatch):
    monkeypatch.undo()  # the real model lies in the real cache
    found = shipped_tuned_lens(smollm2)
    assert found is not None
    assert (found.kind, found.layers) == ("tuned", (5, 10, 15, 20, 25, 29))
    assert found.record is not None
    assert len(found.record.steps) == found.record.recipe.steps
