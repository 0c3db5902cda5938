"""Gathering moments: the right windows, the right sums, and the same bits after a kill."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

import lens
from lens.base.errors import Cancelled, InputError, MemoryEstimateError
from lens.collect import MomentParts, collect_moments, draw_windows, gather, read_moments
from lens.corpora import PARTS, Corpus
from lens.models.model import Model
from lens.moments import Accumulator, Moments
from tests.models.families import build, word_tokenizer

ROOT = Path(__file__).parents[1]
MASSIVE = 77  # the token that a test makes massive


def made_up(documents: int = 60, longest: int = 200, seed: int = 0) -> Corpus:
    """Texts of 10 to `longest` words that the tiny models know."""
    drawn = random.Random(seed)
    lengths = [drawn.randint(10, longest) for _ in range(documents)]
    return Corpus("made up", [" ".join(f"w{drawn.randint(4, 123)}" for _ in range(length)) for length in lengths])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, flushed and written often."""
    monkeypatch.setattr(gather, "_WRITE_EVERY", 0.0)
    monkeypatch.setattr(gather, "_BATCH_TOKENS", 256)
    monkeypatch.setattr(gather, "Accumulator", partial(Accumulator, flush_every=512))


def same(left: MomentParts, right: MomentParts) -> bool:
    """Bit for bit."""
    return all(same_part(getattr(left, part), getattr(right, part)) for part in PARTS)


def same_part(left: Moments, right: Moments) -> bool:
    def tensors(m: Moments) -> dict[object, torch.Tensor]:
        return {"mean": m.mean, "limits": m.limits, **m.within, **m.across}

    a, b = tensors(left), tensors(right)
    counts = (left.count, left.dropped, left.source) == (right.count, right.dropped, right.source)
    return counts and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def only_folder(cache: Path) -> Path:
    (folder,) = (cache / "moments").iterdir()
    return folder


# -- windows --------------------------------------------------------------------------------------


def expected_windows(corpus: Corpus, part: str, window: int) -> list[list[int]]:
    """Every window of 16 or more words, first ones first, documents in hash order; `wN` is token N + 4."""
    documents = sorted((d for d in corpus.documents if d.part == part), key=lambda d: d.digest)
    ids = [[int(word[1:]) + 4 for word in d.text.split()] for d in documents]
    turns = -(-max(map(len, ids)) // window)
    pieces = [one[turn * window : (turn + 1) * window] for turn in range(turns) for one in ids]
    return [piece for piece in pieces if len(piece) >= 16]


@pytest.mark.parametrize("window", [16, 50, 64])
def test_windows_are_drawn_round_robin_and_never_across_documents(tiny: Model, window: int):
    corpus = made_up()
    for part in PARTS:
        found = draw_windows(tiny, corpus, part, 10**6, window)
        assert found == expected_windows(corpus, part, window)
        assert max(map(len, found)) == window


@pytest.mark.parametrize("tokens", [40, 999, 1000, 2500])
def test_windows_fill_the_budget(tiny: Model, tokens: int):
    """The last window is cut; only a remainder under 16 tokens, too short for a window, is left unused."""
    corpus = made_up()
    found, whole = draw_windows(tiny, corpus, "train", tokens, 64), expected_windows(corpus, "train", 64)
    assert found[:-1] == whole[: len(found) - 1]
    assert found[-1] == whole[len(found) - 1][: len(found[-1])]
    assert tokens - 16 < sum(map(len, found)) <= tokens


@pytest.mark.parametrize("cut", [16, 30, 64])
def test_budget_is_met_exactly_where_the_last_window_is_long_enough(tiny: Model, cut: int):
    corpus = Corpus("long", [" ".join(f"w{4 + (i + j) % 120}" for j in range(200)) for i in range(40)])
    assert sum(map(len, draw_windows(tiny, corpus, "train", 640 + cut, 64))) == 640 + cut


def test_other_parts_get_a_quarter_or_all_they_have(tiny: Model):
    corpus = made_up(200)
    found = collect_moments(tiny, corpus, tokens=4000, mask="none", window=40)
    for part in ("validation", "test"):
        assert 1000 - 16 < getattr(found, part).count <= 1000
    few = made_up(12)
    found = collect_moments(tiny, few, tokens=10**6, mask="none", window=40)
    for part in PARTS:
        assert getattr(found, part).count == sum(map(len, expected_windows(few, part, 40)))


# -- values ---------------------------------------------------------------------------------------


def states_by_hand(model: Model, windows: Sequence[list[int]]) -> list[torch.Tensor]:
    """Residual states `[layer, position, d]` of each window, run alone."""
    return [model.run(window, logits=False).residual for window in windows]


def kept_by_hand(states: list[torch.Tensor], limits: np.ndarray, first: bool) -> np.ndarray:
    pieces = [s[:, int(first) :].double().numpy() for s in states]
    x = np.concatenate(pieces, axis=1)
    return x[:, (np.linalg.norm(x, axis=-1) <= limits[:, None]).all(0)]


def assert_moments_of(found: Moments, x: np.ndarray, relative: float = 1e-6) -> None:
    """Against numpy's mean and scatter matrices, in the Frobenius norm."""
    centred = x - x.mean(1, keepdims=True)
    assert found.count == x.shape[1]
    pairs = [(found.mean.numpy(), x.mean(1))]
    pairs += [(value.numpy(), centred[i].T @ centred[i]) for i, value in found.within.items()]
    pairs += [(value.numpy(), centred[i].T @ centred[j]) for (i, j), value in found.across.items()]
    assert len(pairs) == 1 + len({i for pair in found.pairs for i in pair}) + len(found.pairs)
    for value, expected in pairs:
        assert value.dtype == np.float64
        assert np.linalg.norm(value - expected) <= relative * np.linalg.norm(expected)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("mask", ["none", "first", "robust"])
def test_moments_are_numpys_over_the_same_states(family: str, mask: str, tokenizer):
    module = build(family)
    with torch.no_grad():
        module.get_input_embeddings().weight[MASSIVE + 4] *= 100
    model, corpus, tokens = lens.load(module, tokenizer), made_up(), 3000
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


# -- pairs, bounds and refusals -------------------------------------------------------------------


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


def test_moments_beyond_16_gib_are_refused(tokenizer, own_cache: Path):
    """A real model, wide but with next to nothing in it: nine matrices of 16,384², each in three halves."""
    shape = {"vocab_size": 128, "hidden_size": 16384, "intermediate_size": 1, "num_attention_heads": 1, "head_dim": 2}
    shape |= {"num_key_value_heads": 1, "num_hidden_layers": 3, "max_position_embeddings": 64}
    model = lens.load(AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).eval(), tokenizer)
    figure = 12 * 16384**2 * 9 / 2**30
    with pytest.raises(MemoryEstimateError, match=rf"The moments would take {figure:.2f} GiB.*at most 16 GiB.*fewer pairs"):
        collect_moments(model, made_up(), window=32)
    assert not (own_cache / "moments").exists()


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
    names = {f"{part}.{kind}" for part in PARTS for kind in ("safetensors", "json")}
    assert any({p.name for p in folder.iterdir()} == names for folder in (own_cache / "moments").iterdir())


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


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "cut":
        content = content[:-100]
    elif kind == "flipped":
        middle = len(content) // 2
        content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    else:
        content = b""
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut", "flipped", "empty"])
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_damaged_result_is_not_used(tiny: Model, own_cache: Path, kind: str, suffix: str):
    corpus = made_up()
    first = collect_moments(tiny, corpus, tokens=1000, window=32)
    path = only_folder(own_cache) / f"validation{suffix}"
    if (kind, suffix) == ("flipped", ".json"):
        path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))
    else:
        damage(path, kind)
    assert read_moments(path.with_suffix(".safetensors")) is None
    assert same(first, collect_moments(tiny, corpus, tokens=1000, window=32))
    assert read_moments(path.with_suffix(".safetensors")) is not None


def test_changed_count_in_a_manifest_is_noticed(tiny: Model, own_cache: Path):
    first = collect_moments(tiny, made_up(), tokens=1000, window=32)
    path = only_folder(own_cache) / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"count": first.train.count + 1}))
    assert collect_moments(tiny, made_up(), tokens=1000, window=32).train.count == first.train.count


def test_moments_of_something_else_are_refused(tiny: Model, own_cache: Path):
    collect_moments(tiny, made_up(), tokens=1000, window=32)
    path = only_folder(own_cache) / "test.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"source": manifest["source"] | {"model": "another"}}))
    with pytest.raises(InputError, match=r"test\.safetensors holds moments of .*another.*deleting that file"):
        collect_moments(tiny, made_up(), tokens=1000, window=32)


# -- interruptions --------------------------------------------------------------------------------


class Stopper:
    """Counts how often a block is about to run, and cancels at a given one."""

    def __init__(self, stop_at: int = -1):
        self.count, self.stop_at = 0, stop_at

    def check(self) -> None:
        self.count += 1
        if self.count == self.stop_at:
            raise Cancelled()


@pytest.mark.usefixtures("often")
def test_every_batch_is_run_once(tiny: Model):
    """The pilot's states are used again."""
    blocks, steps = Stopper(), []
    collect_moments(tiny, made_up(300), tokens=8000, window=32, check=blocks.check, progress=steps.append)
    assert blocks.count == 3 * len(steps)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("stop_at", [1, 40, 75])
def test_cancelled_pass_goes_on_where_it_was(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int):
    corpus, options = made_up(300), {"tokens": 8000, "window": 32}
    whole = Stopper()
    expected = collect_moments(tiny, corpus, check=whole.check, **options)
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "second"))
    with pytest.raises(Cancelled):
        collect_moments(tiny, corpus, check=Stopper(stop_at).check, **options)
    rest = Stopper()
    steps: list = []
    assert same(collect_moments(tiny, corpus, check=rest.check, progress=steps.append, **options), expected)
    assert tiny.lock.holder is None
    if stop_at > 60:  # past the pilot, so that a state was written
        assert steps[0].done > 512
        assert rest.count < whole.count
    assert sorted(p.name for p in only_folder(tmp_path / "second").iterdir()) == sorted(
        f"{part}.{kind}" for part in PARTS for kind in ("json", "safetensors")
    )


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", ["cut", "flipped", "empty"])
def test_damaged_state_is_not_used(tiny: Model, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    corpus, options = made_up(300), {"tokens": 8000, "window": 32}
    expected = collect_moments(tiny, corpus, **options)
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "second"))
    with pytest.raises(Cancelled):
        collect_moments(tiny, corpus, check=Stopper(75).check, **options)
    state = only_folder(tmp_path / "second") / "train-state.safetensors"
    assert read_moments(state) is not None
    damage(state, kind)
    steps: list = []
    assert same(collect_moments(tiny, corpus, progress=steps.append, **options), expected)
    assert steps[0].done <= 256


CHILD = """
import sys
from functools import partial
from lens.collect import gather
from lens.moments import Accumulator
from tests.test_collect import gather_for_a_kill

gather._WRITE_EVERY = 0.0
gather._BATCH_TOKENS = 256
gather.Accumulator = partial(Accumulator, flush_every=512)
gather_for_a_kill(lambda step: print(step.label, step.done, flush=True))
print("done", flush=True)
"""


def gather_for_a_kill(progress=None) -> MomentParts:
    model = lens.load(build("llama"), word_tokenizer())
    return collect_moments(model, made_up(900), tokens=40_000, window=32, progress=progress)


def start_child(cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"LENS_CACHE": str(cache), "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-c", CHILD]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lines_until_kill(child: subprocess.Popen[str], steps: int, delay: float) -> list[str]:
    """Kill the child `delay` seconds after so many reports, with no chance to tidy up."""
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(steps)]
    try:
        child.wait(delay)
    except subprocess.TimeoutExpired:
        child.kill()
    rest, error = child.communicate()
    assert child.returncode == -9, error
    return [*lines, *rest.splitlines()]


@pytest.mark.usefixtures("often")
def test_killed_pass_ends_with_the_same_bits(own_cache: Path, tmp_path: Path):
    """Five kills, one after the other, each at a random moment of what the former left; then one that may finish."""
    expected, killed, drawn = gather_for_a_kill(), tmp_path / "killed", random.Random()
    starts = []
    for _ in range(5):
        lines = lines_until_kill(start_child(killed), drawn.randint(3, 20), drawn.uniform(0, 0.02))
        starts.append(int(lines[0].split()[-1]))
    child = start_child(killed)
    out, error = child.communicate()
    assert (child.returncode, error) == (0, "")
    lines = out.splitlines()
    starts.append(int(lines[0].split()[-1]))
    assert lines[-1] == "done"
    assert starts[0] <= 256 < max(starts), starts
    for part in PARTS:
        paths = [only_folder(cache) / f"{part}.safetensors" for cache in (own_cache, killed)]
        (left, _), (right, _) = (read_moments(path) for path in paths)  # type: ignore[misc]
        assert same_part(left, getattr(expected, part))
        assert same_part(right, left)
