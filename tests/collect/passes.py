"""Corpora and comparisons that the tests of this folder share, and a pass for other processes to run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import lens
from lens.base.errors import Cancelled
from lens.base.progress import Progress
from lens.collect import MomentParts, collect_moments, gather
from lens.corpora import PARTS, Corpus
from lens.models.model import Model
from lens.moments import Accumulator, Moments
from tests.models.families import build, word_tokenizer


def made_up(documents: int = 60, longest: int = 200, seed: int = 0) -> Corpus:
    """Texts of 10 to `longest` words that the tiny models know."""
    drawn = random.Random(seed)
    lengths = [drawn.randint(10, longest) for _ in range(documents)]
    return Corpus("made up", [" ".join(f"w{drawn.randint(4, 123)}" for _ in range(length)) for length in lengths])


def tensors_of(moments: Moments) -> dict[Any, torch.Tensor]:
    own = {"mean": moments.mean, "limits": moments.limits, **moments.within, **moments.across}
    return own | {("shuffled", pair): value for pair, value in moments.shuffled.items()}


def same_part(left: Moments, right: Moments) -> bool:
    """Bit for bit."""
    a, b = tensors_of(left), tensors_of(right)
    counts = (left.count, dict(left.dropped), dict(left.source)) == (right.count, dict(right.dropped), dict(right.source))
    return counts and a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same(left: MomentParts, right: MomentParts) -> bool:
    """Bit for bit, parts of the blocks included."""
    own = all(same_part(getattr(left, part), getattr(right, part)) for part in PARTS)
    names = left.of_blocks.keys() == right.of_blocks.keys()
    return own and names and all(same(left[name], right[name]) for name in left.of_blocks)


def assert_moments_of(found: Moments, x: np.ndarray, relative: float = 1e-6) -> None:
    """Against numpy's mean and scatter matrices of `[state, token, d]`, in the Frobenius norm."""
    centred = x - x.mean(1, keepdims=True)
    assert found.count == x.shape[1]
    pairs = [(found.mean.numpy(), x.mean(1))]
    pairs += [(value.numpy(), centred[i].T @ centred[i]) for i, value in found.within.items()]
    pairs += [(value.numpy(), centred[i].T @ centred[j]) for (i, j), value in found.across.items()]
    assert len(pairs) == 1 + len({i for pair in found.pairs for i in pair}) + len(found.pairs)
    for value, expected in pairs:
        assert value.dtype == np.float64
        assert np.linalg.norm(value - expected) <= relative * np.linalg.norm(expected)


def expected_windows(corpus: Corpus, part: str, window: int) -> list[list[int]]:
    """Every window of 16 or more words, first ones first, documents in hash order; `wN` is token N + 4."""
    documents = sorted((d for d in corpus.documents if d.part == part), key=lambda d: d.digest)
    ids = [[int(word[1:]) + 4 for word in d.text.split()] for d in documents]
    turns = -(-max(map(len, ids)) // window)
    pieces = [one[turn * window : (turn + 1) * window] for turn in range(turns) for one in ids]
    return [piece for piece in pieces if len(piece) >= 16]


def states_by_hand(model: Model, windows: Sequence[list[int]]) -> list[torch.Tensor]:
    """Residual states `[layer, position, d]` of each window, run alone."""
    return [model.run(window, logits=False).residual for window in windows]


def kept_by_hand(states: list[torch.Tensor], limits: np.ndarray, first: bool) -> np.ndarray:
    pieces = [s[:, int(first) :].double().numpy() for s in states]
    x = np.concatenate(pieces, axis=1)
    return x[:, (np.linalg.norm(x, axis=-1) <= limits[:, None]).all(0)]


def only_folder(cache: Path) -> Path:
    (folder,) = (cache / "moments").iterdir()
    return folder


def finished_names(*names: str) -> list[str]:
    """What lies in the folder of a finished pass, and nothing else."""
    stems = [part if name == "residual" else f"{part}-{name}" for part in PARTS for name in (names or ("residual",))]
    return sorted(f"{stem}.{kind}" for stem in stems for kind in ("json", "safetensors"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class Stopper:
    """Counts how often a block is about to run, and cancels at a given one."""

    def __init__(self, stop_at: int = -1):
        self.count, self.stop_at = 0, stop_at

    def check(self) -> None:
        self.count += 1
        if self.count == self.stop_at:
            raise Cancelled()


LONG_PASS_PARTS = ("residual", "mlp", "norm_0")


def long_pass(progress: Progress | None = None) -> MomentParts:
    """A pass of some 120 batches, with more than a dozen written states: long enough to be struck in the middle."""
    model = lens.load(build("llama"), word_tokenizer())
    return collect_moments(model, made_up(450), tokens=20_000, window=32, parts=LONG_PASS_PARTS, progress=progress)


def real_pass(texts: Path, progress: Progress | None = None) -> MomentParts:
    """Real texts, cut by a real tokenizer, through a small model of its vocabulary.

    Args:
        texts: JSON with the folder of a `tokenizer`, and `texts`.
        progress: see `collect_moments`.
    """
    given = json.loads(texts.read_text(encoding="utf-8"))
    torch.manual_seed(0)
    shape = {"vocab_size": 49152, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256}
    module = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **shape)).eval()
    model, corpus = lens.load(module, AutoTokenizer.from_pretrained(given["tokenizer"])), Corpus("docstrings", given["texts"])
    return collect_moments(model, corpus, tokens=8000, window=128, parts=("residual", "attention"), progress=progress)


def write_often(change: Callable[[Any, str, Any], None] = setattr) -> None:
    """Small batches, flushed and written often: changed for good, or with a function that will undo it."""
    change(gather, "_WRITE_EVERY", 0.0)
    change(gather, "BATCH_TOKENS", 256)
    change(gather, "Accumulator", partial(Accumulator, flush_every=1024))
