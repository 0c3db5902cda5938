"""Gathering moments: the right sums of the right tokens, once."""

from __future__ import annotations

import gc
import json
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import lens
from lens.base.errors import InputError
from lens.base.progress import Step
from lens.collect import collect_moments, draw_windows
from lens.corpora import PARTS, Corpus
from lens.models.model import Model
from tests.collect.passes import (
    Stopper,
    assert_moments_of,
    expected_windows,
    finished_names,
    kept_by_hand,
    made_up,
    names_in,
    only_folder,
    same,
    states_by_hand,
)
from tests.models.families import build, word_tokenizer
from tests.models.test_offload import elsewhere_in_memory, on_disk
from tests.models.test_sites import NAMED, by_hand

MASSIVE = 77  # the token that a test makes massive


def massive_model(family: str, tokenizer) -> Model:
    """A model to whose states one token gives a norm far above the others'."""
    module = build(family)
    with torch.no_grad():
        module.get_input_embeddings().weight[MASSIVE + 4] *= 100
    return lens.load(module, tokenizer)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("mask", ["none", "first", "robust"])
def test_moments_are_numpys_over_the_same_states(family: str, mask: str, tokenizer):
    model, corpus, tokens = massive_model(family, tokenizer), made_up(), 3000
    found = collect_moments(model, corpus, tokens=tokens, pairs="all", mask=mask, window=48)
    limits = np.full(4, np.inf)
    for part in PARTS:
        windows = draw_windows(model, corpus, part, tokens if part == "train" else tokens // 4, 48)
        states, moments = states_by_hand(model, windows), getattr(found, part)
        if mask == "robust" and part == "train":
            limits = 5 * torch.cat(states, dim=1).norm(dim=-1).median(dim=1).values.numpy()
        assert np.allclose(moments.limits.numpy(), limits, rtol=1e-6)
        assert_moments_of(moments, kept_by_hand(states, limits, mask != "none"))
        massive = sum(window[1:].count(MASSIVE + 4) for window in windows) if mask == "robust" else 0
        assert moments.dropped == {"first position": len(windows) * (mask != "none"), "massive": massive}
        assert moments.count + sum(moments.dropped.values()) == sum(map(len, windows))
        if part == "train":
            assert massive > 0 or mask != "robust"


def test_pilot_is_the_first_4096_training_tokens(tiny: Model):
    """Full windows come first, in drawing order: 64 of 64 tokens are the pilot, and the corpus has more of them."""
    drawn = random.Random(1)
    corpus = Corpus("long", [" ".join(f"w{drawn.randint(4, 123)}" for _ in range(192)) for _ in range(60)])
    found = collect_moments(tiny, corpus, tokens=6000, window=64)
    states = states_by_hand(tiny, draw_windows(tiny, corpus, "train", 4096, 64))
    limits = 5 * torch.cat(states, dim=1).norm(dim=-1).median(dim=1).values
    for part in PARTS:
        assert torch.allclose(getattr(found, part).limits, limits.double(), rtol=1e-6)


def test_a_large_common_offset_costs_no_digits(tokenizer):
    """Every state of GPT-2 moved by 1000 where it is read, which its norms take out again: plain float32 sums fail."""
    module = build("gpt2")
    with torch.no_grad():
        module.transformer.wpe.weight += 1000
    model, corpus = lens.load(module, tokenizer), made_up()
    found = collect_moments(model, corpus, tokens=3000, pairs="all", mask="none", window=48).train
    windows = draw_windows(model, corpus, "train", 3000, 48)
    x = kept_by_hand(states_by_hand(model, windows), np.full(4, np.inf), False)
    assert_moments_of(found, x, relative=1e-5)
    plain = torch.tensor(x[1]).float()
    plain = plain.T @ plain - torch.outer(plain.sum(0), plain.sum(0)) / len(plain)
    expected = found.within[1]
    assert (plain.double() - expected).norm() > 1e-2 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_states_of_any_dtype_are_summed_as_they_are(dtype: torch.dtype, tokenizer):
    """Recorded during the pass itself, because another batch would round them otherwise."""
    model, seen = lens.load(build("llama", dtype=dtype), tokenizer), []
    blocks = model.module.model.layers
    handles = [block.register_forward_hook(lambda _m, _i, output: seen.append(output.flatten(0, 1))) for block in blocks]
    handles.append(blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, 1))))
    found = collect_moments(model, made_up(), tokens=2000, pairs="all", mask="none", window=48).train
    for handle in handles:
        handle.remove()
    assert {state.dtype for state in seen} == {dtype}
    states = [torch.cat(seen[layer::4])[: found.count].double().numpy() for layer in range(4)]  # the training part comes first
    assert_moments_of(found, np.stack(states))
    assert found.source["dtype"] == str(dtype).removeprefix("torch.")


def test_source_says_what_was_gathered(tiny: Model):
    corpus = made_up()
    found = collect_moments(tiny, corpus, tokens=1000, mask="first", window=32)
    for part in PARTS:
        source = dict(getattr(found, part).source)
        wanted = {"model": tiny.name, "corpus": "made up", "corpus_hash": corpus.digest, "tokens": 1000, "part": part}
        wanted |= {"mask": "first", "window": 32, "model_fingerprint": tiny.fingerprint, "dtype": "float32"}
        assert source.items() >= wanted.items()
    with pytest.raises(InputError, match="differ in their source"):
        _ = found.train + found.test


def test_progress_counts_to_the_tokens_of_each_part(tiny: Model):
    steps = []
    found = collect_moments(tiny, made_up(), tokens=3000, mask="none", window=32, progress=steps.append)
    for part in PARTS:
        seen = [s for s in steps if s.label.endswith(part)]
        assert [s.done for s in seen] == sorted({s.done for s in seen})
        assert {s.total for s in seen} == {seen[-1].done} == {getattr(found, part).count}


def test_other_parts_get_a_quarter_or_all_they_have(tiny: Model):
    corpus = made_up(200)
    found = collect_moments(tiny, corpus, tokens=4000, mask="none", window=40)
    for part in ("validation", "test"):
        assert 1000 - 16 < getattr(found, part).count <= 1000
    few = made_up(12)
    found = collect_moments(tiny, few, tokens=10**6, mask="none", window=40)
    for part in PARTS:
        assert getattr(found, part).count == sum(map(len, expected_windows(few, part, 40)))


# -- parts of the blocks --------------------------------------------------------------------------


@pytest.mark.parametrize("family", NAMED)
def test_moments_of_parts_are_numpys_over_what_hooks_by_hand_see(family: str, tokenizer):
    """Of the tokens that the mask of the residual stream keeps, whatever the norms inside the part are."""
    model, corpus, names = massive_model(family, tokenizer), made_up(), tuple(NAMED[family][1])
    found = collect_moments(model, corpus, tokens=1000, parts=("residual", *names), window=48)
    limits = found.train.limits.numpy()
    states: dict[str, list[np.ndarray]] = {name: [] for name in names}
    massive = 0
    for window in draw_windows(model, corpus, "train", 1000, 48):
        residual: list[torch.Tensor] = []
        parts = by_hand(model.module, family, lambda window=window, to=residual: to.extend(states_by_hand(model, [window])))
        flags = (residual[0].norm(dim=-1).numpy() <= limits[:, None]).all(0) & (np.arange(len(window)) > 0)
        massive += int((~flags[1:]).sum())
        assert int((~flags[1:]).sum()) == window[1:].count(MASSIVE + 4)
        for name in names:
            states[name].append(parts[name][:, flags].double().numpy())
    assert found.train.dropped["massive"] == massive > 0
    for name in names:
        moments = found[name].train
        assert_moments_of(moments, np.concatenate(states[name], axis=1))
        assert moments.pairs == ((0, 3), (1, 4), (2, 5))
        assert (moments.dropped, moments.limits.tolist()) == (found.train.dropped, found.train.limits.tolist())


def test_the_residual_stream_is_the_same_with_parts_and_without(tiny: Model):
    alone = collect_moments(tiny, made_up(), tokens=2000, window=48)
    beside = collect_moments(tiny, made_up(), tokens=2000, window=48, parts=("residual", "norm_1", "attention"))
    assert list(beside.of_blocks) == ["attention", "norm_1"]
    assert beside["residual"] is beside
    for part in PARTS:
        left, right = getattr(alone, part), getattr(beside, part)
        assert torch.equal(left.mean, right.mean)
        assert all(torch.equal(left.across[pair], right.across[pair]) for pair in left.pairs)


@pytest.mark.parametrize("place", [on_disk, elsewhere_in_memory])
def test_offloaded_blocks_give_the_same_moments(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer):
    """Bit for bit, and under the same name: with a cache of its own each, so that both are gathered."""
    build("llama").save_pretrained(tmp_path / "llama")
    found = []
    for module in (AutoModelForCausalLM.from_pretrained(tmp_path / "llama"), place(tmp_path / "llama")):
        monkeypatch.setenv("LENS_CACHE", str(tmp_path / f"cache-{len(found)}"))
        model = lens.load(module, tokenizer)
        found.append(collect_moments(model, made_up(), tokens=1000, window=32, parts=("residual", "attention", "mlp", "norm_1")))
    assert any(weight.is_meta for weight in module.parameters())
    assert same(*found)
    assert names_in(only_folder(tmp_path / "cache-0").parent) == names_in(only_folder(tmp_path / "cache-1").parent)


def test_order_and_repetition_of_parts_make_no_other_result(tiny: Model, own_cache: Path):
    first = collect_moments(tiny, made_up(), tokens=500, window=32, parts=("residual", "mlp", "attention"))
    second = collect_moments(tiny, made_up(), tokens=500, window=32, parts=["attention", "residual", "mlp", "mlp"])
    assert same(first, second)
    assert len(names_in(own_cache / "moments")) == 1


def test_parts_that_were_not_asked_for_are_named(tiny: Model):
    found = collect_moments(tiny, made_up(), tokens=500, window=32, parts=("residual", "mlp"))
    with pytest.raises(InputError, match=r"no moments of 'norm_0' here\. Needed: residual, mlp\."):
        _ = found["norm_0"]
    assert found["mlp"]["mlp"] is found["mlp"]
    with pytest.raises(InputError, match=r"no moments of 'residual' here\. Needed: mlp\."):
        _ = found["mlp"]["residual"]


# -- shuffled pairs -------------------------------------------------------------------------------


def test_shuffled_pairs_lie_in_the_middle_of_the_model(tiny: Model):
    found = collect_moments(tiny, made_up(), tokens=500, window=32, parts=("residual", "mlp"))
    for part in PARTS:
        assert set(getattr(found, part).shuffled) == {(1, 2), (1, 3)}
        assert set(getattr(found["mlp"], part).shuffled) == {(1, 4)}
    few = collect_moments(tiny, made_up(), tokens=500, window=32, pairs=[(0, 1), (0, 2), (2, 3)])
    assert set(few.train.shuffled) == {(0, 2)}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_shuffled_tokens_share_no_more_than_chance(family: str, tokenizer):
    """Absolute positions, which GPT-2 adds to every state, are shared by no pair of partners either."""
    model = lens.load(build(family), tokenizer)
    with torch.no_grad():
        if family == "gpt2":
            model.module.transformer.wpe.weight.mul_(20)
    found = collect_moments(model, made_up(500), tokens=20_000, mask="first", window=64, parts=("residual", "mlp"))
    for moments in (found.train, found["mlp"].train):
        for i, j in moments.shuffled:
            left, right = (torch.linalg.pinv(moments.within[k], rtol=1e-6, hermitian=True) for k in (i, j))
            share = torch.trace(left @ moments.shuffled[i, j] @ right @ moments.shuffled[i, j].T) / 32
            # The mean squared canonical correlation of independent states is d over the number of tokens.
            assert share < 1.5 * 32 / moments.count


# -- kept results ---------------------------------------------------------------------------------


def test_second_call_reads_what_the_first_wrote(tiny: Model, own_cache: Path):
    corpus = made_up()
    first = collect_moments(tiny, corpus, tokens=1000, window=32)

    def refuse(*_args):
        raise AssertionError("the model was run")

    handle = tiny.module.model.layers[0].register_forward_pre_hook(refuse)
    second = collect_moments(tiny, corpus, tokens=1000, window=32)
    assert same(first, second)
    for changed in ({"tokens": 1001}, {"mask": "first"}, {"window": 31}, {"pairs": "all"}):
        with pytest.raises(AssertionError, match="the model was run"):
            collect_moments(tiny, corpus, **{"tokens": 1000, "window": 32, **changed})
    with pytest.raises(AssertionError, match="the model was run"):
        collect_moments(tiny, made_up(seed=1), tokens=1000, window=32)
    handle.remove()
    assert any(names_in(folder) == finished_names() for folder in (own_cache / "moments").iterdir())


def test_moments_are_read_when_they_are_used_and_need_no_model_for_it(tokenizer, own_cache: Path):
    model, corpus = lens.load(build("llama"), tokenizer), made_up()
    alive = weakref.ref(model), weakref.ref(corpus)
    found = collect_moments(model, corpus, tokens=500, window=32)
    del model, corpus
    gc.collect()
    assert [ref() for ref in alive] == [None, None]
    assert found.train is found.train
    (only_folder(own_cache) / "test.safetensors").unlink()
    with pytest.raises(InputError, match=r"The moments test\.safetensors are no longer whole.*collect_moments again"):
        _ = found.test
    assert found.validation.count > 0


def test_other_weights_are_another_result(tokenizer):
    corpus = made_up()
    first, second = (
        collect_moments(lens.load(build("llama", seed), tokenizer), corpus, tokens=500, window=32) for seed in (0, 1)
    )
    assert not torch.equal(first.train.mean, second.train.mean)


def test_weights_changed_in_place_are_another_result(tiny: Model):
    first = collect_moments(tiny, made_up(), tokens=500, mask="none", window=32).train
    with torch.no_grad():
        tiny.module.model.embed_tokens.weight.mul_(3)
    second = collect_moments(tiny, made_up(), tokens=500, mask="none", window=32).train
    assert torch.allclose(second.mean[0], 3 * first.mean[0])


def test_equal_weights_of_another_configuration_are_another_result(tokenizer):
    """The rotary base is in no weight, yet in every state."""
    found = []
    for base in (1e4, 3.0):
        module = build("llama")
        config = module.config.to_dict() | {"rope_parameters": {"rope_type": "default", "rope_theta": base}}
        other = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).eval()
        other.load_state_dict(module.state_dict())
        model = lens.load(other, tokenizer)
        moments = collect_moments(model, made_up(), tokens=500, mask="none", window=32).train
        windows = draw_windows(model, made_up(), "train", 500, 32)
        assert_moments_of(moments, kept_by_hand(states_by_hand(model, windows), np.full(4, np.inf), False))
        found.append(moments.mean)
    assert not torch.equal(*found)


def test_another_tokenizer_is_another_result():
    corpus, module = Corpus("one word", ["w5 " * (20 + i) for i in range(40)]), build("llama")
    other = json.loads(word_tokenizer().backend_tokenizer.to_str())
    words = other["model"]["vocab"]
    words["w5"], words["w6"] = words["w6"], words["w5"]
    swapped = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(other)))
    for tokenizer, token in ((word_tokenizer(), 9), (swapped, 10)):
        model = lens.load(module, tokenizer)
        mean = collect_moments(model, corpus, tokens=500, mask="none", window=32).train.mean
        assert torch.allclose(mean[0].float(), module.get_input_embeddings().weight[token], rtol=1e-5)


@pytest.mark.usefixtures("often")
def test_every_batch_is_run_once(tiny: Model):
    """The pilot's states are used again."""
    blocks, steps = Stopper(), []
    collect_moments(tiny, made_up(300), tokens=8000, window=32, check=blocks.check, progress=steps.append)
    assert blocks.count == 3 * len(steps)


@pytest.mark.usefixtures("often")
def test_what_a_pass_keeps_does_not_grow_with_tokens(tiny: Model):
    """Bytes of all states and sums alive at the end of each part; token ids, which are the corpus itself, are not counted."""

    def kept(tokens: int) -> list[int]:
        found = []

        def report(step: Step) -> None:
            if step.done == step.total:
                gc.collect()
                alive = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.is_floating_point()]
                found.append(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}.values()))

        collect_moments(tiny, corpus, tokens=tokens, window=32, parts=("residual", "mlp"), progress=report)
        return found

    corpus = made_up(600)
    few = kept(5000)
    assert len(few) == 3
    assert kept(20_000) == few
