"""Small models that differ in one number, the base of their rotary frequencies, trained short and read long.

    python -m lens.training.rope_bases rope-bases.jsonl

trains every base of `BASES` with every seed of `SEEDS` and writes the record that is shipped as
`lens/records/rope-bases.jsonl`; `lens.probes.rope_training` reads it. An interrupted run goes on where it was.

All models of one seed begin with the same weights and see the same bytes in the same order, so that two of them
differ in nothing but the base. They never see more than `LENGTH` tokens at once; held-out text is read at `READ`
tokens, eight times as many.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import InputError
from lens.base.files import atomic_file
from lens.base.progress import Progress
from lens.corpora import Corpus, corpus
from lens.training.byte_text import BEGIN, VOCABULARY, ByteLoss, ByteText, token_losses
from lens.training.loop import train
from lens.training.record import Recipe, Record

BASES: tuple[float | None, ...] = (20.0, 100.0, 1e3, 1e4, 1e6, None)
"""None stands for no rotation at all: every lane stands still."""
SEEDS = (0, 1)
RECIPE = Recipe(
    "rope-bases", steps=1000, optimiser="adamw", learning_rate=3e-3, weight_decay=0.1, warm_up=100, schedule="cosine", clip=1.0
)
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "initializer_range": 0.05,
}
LENGTH = 128  # tokens that are trained on at once
WINDOWS = 8  # of a training step
READ = 8 * LENGTH  # tokens that held-out text is read at
BIN = 32  # positions whose losses are averaged
PASSAGE = 64  # bytes that stand twice
CUE = 8  # of these, before what comes next can be known
DISTANCES = (64, 96, 128, 256, 512)  # from a passage to its repetition; the first lies within LENGTH
FORMAT = "lens-rope-bases-2"
_CURVE = 20  # steps that are averaged in the record


def byte_model(base: float | None, seed: int, shape: Mapping[str, Any] | None = None) -> nn.Module:
    """An untrained Llama over bytes, the same for every base but for its rotary frequencies.

    Args:
        base: of the frequencies, or None for lanes that stand still.
        seed: of the weights.
        shape: fields of `LlamaConfig`; by default `SHAPE`.

    Raises:
        InputError: a base that is not above 1.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if base is not None and not (math.isfinite(base) and base > 1):
        raise InputError(f"The base is {base}", "a finite number above 1, or None for no rotation", "base=10_000.0")
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=READ,
        tie_word_embeddings=True,
        bos_token_id=BEGIN,
        eos_token_id=BEGIN,
        rope_parameters={"rope_type": "default", "rope_theta": base or 1e4},
        **(shape or SHAPE),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    if base is None:
        frequencies = model.model.rotary_emb.inv_freq
        assert isinstance(frequencies, Tensor)
        frequencies.zero_()
    return model.eval()  # no dropout: training and reading are the same


def train_rope_bases(
    text: Corpus | None = None,
    *,
    bases: Sequence[float | None] = BASES,
    seeds: Sequence[int] = SEEDS,
    recipe: Recipe = RECIPE,
    shape: Mapping[str, Any] | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """Train and read every base with every seed, one after the other; each once, then it is kept in the cache.

    Args:
        text: trained on is its train part, read are its validation and test parts; by default `wikipedia`.
        bases: of the rotary frequencies; None for no rotation.
        seeds: each with its own weights and batches, the same for all bases.
        recipe: how to train; its seed is replaced.
        shape: of the models, fields of `LlamaConfig`; by default `SHAPE`.
        device: where.
        progress: callback in steps; by default a bar in a terminal.
        check: called before every step; raising `Cancelled` stops, and the next call goes on.

    Yields:
        For every run what its `Record` says (the losses of 20 steps averaged) with `base`, `seed`, `parameters`, and
        the results of `read_long`.

    Raises:
        InputError: a base that is none, or a corpus whose documents are too short.
    """
    found = text or corpus("wikipedia")
    held = ByteText([*found.part("validation"), *found.part("test")], READ)
    source = {"corpus": found.name, "corpus_hash": found.digest, "length": LENGTH, "windows": WINDOWS, **(shape or SHAPE)}
    for seed in seeds:
        for base in bases:
            asked = {"base": base, "seed": seed, "recipe": replace(recipe, seed=seed).facts(), "source": source}
            key = hashlib.sha256(json.dumps([FORMAT, asked, device, READ, BIN, DISTANCES]).encode()).hexdigest()[:16]
            folder = cache_folder() / "rope-bases" / key
            with cache_lock(f"rope-bases-{key}"):
                if (kept := _kept(folder / "run.json")) is None:
                    model = byte_model(base, seed, shape).to(device)
                    loss = ByteLoss(model, ByteText(found.part("train"), LENGTH), windows=WINDOWS, seed=seed)
                    record = train(
                        replace(recipe, seed=seed), model, loss, source={**source, "base": base},
                        tokens_per_step=WINDOWS * LENGTH, folder=folder, progress=progress, check=check,
                    )  # fmt: skip
                    sizes = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
                    kept = {**asked, **sizes, **_plain(record), "results": read_long(model, held)}
                    with atomic_file(folder / "run.json") as temporary:
                        temporary.write_text(json.dumps(kept), encoding="utf-8")
                    for name in ("state.safetensors", "record.jsonl"):
                        (folder / name).unlink()
            yield kept


def _kept(path: Path) -> dict[str, Any] | None:
    """A finished run; None where there is none. It is renamed into place, so it is whole."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _plain(record: Record) -> dict[str, Any]:
    """Environment, time and course of a training."""
    blocks = [record.steps[start : start + _CURVE] for start in range(0, len(record.steps), _CURVE)]
    ends = [min((block + 1) * _CURVE, len(record.steps)) for block in range(len(blocks))]
    losses = [round(sum(step.loss for step in block) / len(block), 4) for block in blocks]
    facts = {"environment": dict(record.environment), "seconds": round(record.seconds, 1), "tokens": record.tokens}
    return {**facts, "curve": {"step": ends, "loss": losses}}


# -- what they do beyond the length that they were trained at --------------------------------------


def read_long(model: nn.Module, held: ByteText) -> dict[str, Any]:
    """Losses of held-out text by position, and what a repetition is worth by distance, far beyond `LENGTH`.

    Args:
        model: reads bytes, see `token_losses`.
        held: documents that it was not trained on, of `READ` bytes or more.

    Returns:
        Plain lists, in nats per byte, four decimals:

        - `position`: first position of each bin of `BIN` positions, 0 to `READ`;
        - `loss[document][bin]`: of the first `READ` bytes of every document;
        - `short_loss[document][bin]`: of the same bytes, read in windows of `LENGTH` that show each of them at least
          `LENGTH / 2` bytes before it: what a model does that is never taken beyond its training. None in the first bins;
        - `stopped_loss[document][bin]`, `divided_loss[document][bin]`: as `loss`, with the lanes that complete no turn within
          `LENGTH` standing still, or turning at `LENGTH / READ` of their frequency, so that they stay among the angles that
          the training has shown; the other lanes and all weights are as they were;
        - `distance`, `repeated_gain[distance][document]`: by how much the loss of a passage falls because the same `PASSAGE`
          bytes stood so many bytes before, against the same window with another passage there; its first `CUE` bytes
          are left out.
    """
    windows = held.heads()
    with torch.no_grad():
        long, short = _losses(model, windows), _short_losses(model, windows)
        gains = torch.stack([_repeated_gain(model, windows, distance) for distance in DISTANCES])
        turned = {
            "stopped_loss": _turned_losses(model, windows, 0.0),
            "divided_loss": _turned_losses(model, windows, LENGTH / READ),
        }
    return {
        "position": list(range(0, READ, BIN)),
        "loss": _listed(long.unflatten(1, (-1, BIN)).mean(2)),
        "short_loss": _listed(short.unflatten(1, (-1, BIN)).mean(2)),
        **{name: _listed(losses.unflatten(1, (-1, BIN)).mean(2)) for name, losses in turned.items()},
        "distance": list(DISTANCES),
        "repeated_gain": _listed(gains),
    }


def _losses(model: nn.Module, targets: Int[Tensor, "window length"]) -> Float[Tensor, "window length"]:
    device, rows = next(model.parameters()).device, max(1, 4 * READ // targets.shape[1])
    return torch.cat([token_losses(model, part.to(device)).double().cpu() for part in targets.split(rows)])


def _short_losses(model: nn.Module, windows: Int[Tensor, "window length"]) -> Float[Tensor, "window length"]:
    """Losses in the second halves of windows of `LENGTH`, each half a window further; NaN in the first half of the first."""
    half = LENGTH // 2
    short = windows.unfold(1, LENGTH, half).flatten(0, 1)
    losses = _losses(model, short)[:, half:].reshape(len(windows), -1)
    return torch.cat([torch.full((len(windows), half), float("nan"), dtype=losses.dtype), losses], 1)


def _turned_losses(model: Any, windows: Int[Tensor, "window length"], factor: float) -> Float[Tensor, "window length"]:
    """Losses with the lanes that complete no turn within `LENGTH` at `factor` times their frequency."""
    frequencies = model.model.rotary_emb.inv_freq
    former = frequencies.clone()
    frequencies[former * LENGTH < 2 * math.pi] *= factor
    try:
        return _losses(model, windows)
    finally:
        frequencies.copy_(former)


def _repeated_gain(model: nn.Module, windows: Int[Tensor, "window length"], distance: int) -> Float[Tensor, " window"]:
    """A passage from further on in the document stands after `distance` bytes of it, and in one of two cases also before them."""
    passage, other = windows[:, -PASSAGE:], windows[:, -2 * PASSAGE : -PASSAGE]
    between = windows[:, PASSAGE:distance]
    repeated, control = (_losses(model, torch.cat([first, between, passage], 1)) for first in (passage, other))
    return (control - repeated)[:, -PASSAGE + CUE :].mean(1)


def _listed(values: Float[Tensor, "row column"]) -> list[list[float | None]]:
    return [[round(value, 4) if math.isfinite(value) else None for value in row] for row in values.tolist()]


# -- the record ------------------------------------------------------------------------------------


def write_rope_bases(path: Path | str, runs: Iterable[Mapping[str, Any]], command: str) -> Path:
    """Write runs as JSON lines under a first line with the format, the command and the hash of what follows; atomically."""
    body = "".join(json.dumps(run) + "\n" for run in runs)
    first = {"format": FORMAT, "command": command, "sha256": hashlib.sha256(body.encode()).hexdigest()}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(first) + "\n" + body, encoding="utf-8")
    return Path(path)


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m lens.training.rope_bases OUTPUT`: train what is not trained yet, and write the record."""
    parser = argparse.ArgumentParser(description="Train byte models at several rotary bases and read them beyond their length.")
    parser.add_argument("output", type=Path, help="the record, .jsonl")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--corpus", default="wikipedia", help="a built-in corpus, a file or a folder (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="default 0 1")
    parser.add_argument("--steps", type=int, default=RECIPE.steps, help="default %(default)s")
    options = parser.parse_args(arguments)
    recipe = replace(RECIPE, steps=options.steps, warm_up=min(RECIPE.warm_up, options.steps // 10))
    runs = train_rope_bases(corpus(options.corpus), seeds=options.seeds, recipe=recipe, device=options.device)
    seeds = " ".join(map(str, options.seeds))
    chosen = f"--device {options.device} --corpus {options.corpus} --seeds {seeds} --steps {options.steps}"
    write_rope_bases(options.output, runs, f"python -m lens.training.rope_bases {options.output.name} {chosen}")


if __name__ == "__main__":
    main()
