"""The corpus pass against bare forward passes, and its statistics against their own bare matrix products."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor

import lens
from lens.corpora import Part
from lens.models.model import Model
from lens.models.run import residual_states
from lens.moments import Accumulator, Pair, keep, residual_pairs
from tests.benchmarks.measure import Row, minima, on_processor
from tests.benchmarks.states import batches, pilot, shuffled

PASS_GOAL = 1.25
STATISTICS_GOAL = 1.15
FLUSH_EVERY = 8192  # tokens, as a pass does by default
TOKENS = 8192


def rows(repeats: int) -> list[Row]:
    """One batch with adjacent and to-final pairs, its statistics alone, and a whole call of `collect_moments`."""
    model = lens.load("smollm2-135m", device="cpu")
    return [*_one_batch(model, repeats), _whole(model)]


def _one_batch(model: Model, repeats: int) -> list[Row]:
    batch = batches(model, "train", TOKENS)[0]
    states = residual_states(model.module, model.anatomy, batch)
    found, pairs = pilot(states), residual_pairs(model.n_layers, "both")
    into = Accumulator(
        found.shift,
        found.limits,
        pairs,
        drop_first=True,
        source={},
        shuffled=shuffled(pairs, model.n_layers),
        flush_every=10**9,  # timed apart: it comes once in several batches
    )
    products, whole_grams = _products(into, states)
    work = states.clone()
    cases = {
        "bare": lambda: bare(model, batch),
        "pass": lambda: into.add(residual_states(model.module, model.anatomy, batch)),
        "flush": into.flush,
        "restore": lambda: work.copy_(states),  # what `add` has overwritten
        "add": lambda: into.add(work),
        "another flush": into.flush,
        "products": products,
        "products with whole grams": whole_grams,
    }
    processor: dict[str, float] = {}
    best = minima({name: on_processor(call, name, processor) for name, call in cases.items()}, repeats)
    counted = f"{len(into.states)} + {len(pairs)} + {len(into.shuffled)} bare products"
    size = f"{batch.numel()} tokens"
    found = []
    for clock, seconds in (("", best), (", processor time", processor)):
        flush = min(seconds["flush"], seconds["another flush"]) * batch.numel() / FLUSH_EVERY
        whole, statistics = seconds["pass"] + flush, seconds["add"] + flush
        found += [
            Row(f"pass, {size}, adjacent and to-final pairs / bare stack{clock}", whole, seconds["bare"], PASS_GOAL),
            Row(f"statistics of given states, {size} / {counted}{clock}", statistics, seconds["products"], STATISTICS_GOAL),
            Row(f"the same / with whole Gram matrices{clock}", statistics, seconds["products with whole grams"]),
        ]
    return found


def bare(model: Model, batch: Tensor) -> None:
    """The module's own forward pass, without its head."""
    with torch.no_grad():
        model.module.base_model(input_ids=batch, use_cache=False)


def _products(into: Accumulator, states: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """The products that an accumulator cannot do without, and the same with whole Gram matrices: each a call of `addmm_`."""
    tokens = keep(states, into.limits, into.drop_first).tokens.flatten()
    x = states.flatten(1, 2).sub(into.shift[:, None])
    width, half = x.shape[2], x.shape[2] // 2
    chosen: dict[Pair, tuple[Tensor, Tensor]] = {(i, j): (x[i][tokens], x[j][tokens]) for i, j in into.shuffled}
    sums = {pair: torch.zeros(width, width) for pair in into.pairs}
    grams = {state: torch.zeros(width, width) for state in into.states}
    noise = {pair: torch.zeros(width, width) for pair in into.shuffled}

    def others() -> None:
        for (i, j), matrix in sums.items():
            matrix.addmm_(x[i].T, x[j])
        for pair, matrix in noise.items():
            matrix.addmm_(chosen[pair][0].T, chosen[pair][1])

    def products() -> None:
        for i, matrix in grams.items():
            matrix[:half].addmm_(x[i][:, :half].T, x[i])
            matrix[half:, half:].addmm_(x[i][:, half:].T, x[i][:, half:])
        others()

    def whole_grams() -> None:
        for i, matrix in grams.items():
            matrix.addmm_(x[i].T, x[i])
        others()

    return products, whole_grams


def _whole(model: Model) -> Row:
    """A call into an empty cache: tokenising, pilot, three parts, writing; against bare passes over the same batches."""
    corpus, seconds = lens.corpus("wikipedia"), dict[str, float]()
    sizes: dict[Part, int] = {"train": TOKENS, "validation": TOKENS // 4, "test": TOKENS // 4}
    read = [batch for part, tokens in sizes.items() for batch in batches(model, part, tokens)]

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"LENS_CACHE": folder}):
            lens.collect_moments(model, corpus, tokens=TOKENS, pairs="both")

    def theirs() -> None:
        for batch in read:
            bare(model, batch)

    for name, call in {"ours": ours, "theirs": theirs}.items():
        on_processor(call, name, seconds)()
    name = f"collect_moments, {sum(batch.numel() for batch in read)} tokens, tokenising and files / bare stack, processor time"
    return Row(name, seconds["ours"], seconds["theirs"])
