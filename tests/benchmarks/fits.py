"""All maps to the last layer from 20,000 tokens, against scikit-learn's LinearRegression per pair on stored activations.

The model's own passes are run once, written to disk, and counted for neither side. Each side then has a process
of its own. On ours, gathering the moments and fitting are counted; on the other, fitting alone.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lens
from lens.corpora import Part
from lens.moments import Accumulator, Moments, keep, residual_pairs
from tests.benchmarks.least_squares import peak_memory
from tests.benchmarks.measure import GIB, Row, SkippedError
from tests.benchmarks.states import Pilot, batches, pilot, shuffled, states_of

TOKENS = 20_000
COPIES = 5  # makes 100,000 tokens: the same states again, because only their number matters to memory
LAYERS = 30
FITTED = range(0, LAYERS, 3)  # by the other; a fit takes the same time from every layer
TO_FINAL_GOAL, ALL_GOAL = 0.333, 0.2  # of the other's time: 3 and 5 times as fast
DIFFERENCE = 0.005  # of held-out R²
GROWTH = 1.05
_NEEDED = 12 * GIB  # what the other's 100,000 tokens take, and some air
_SIDE = "import sys; from tests.benchmarks.fits import side; side(*sys.argv[1:])"


def rows(repeats: int) -> list[Row]:
    """Times, held-out scores and peak memory at 20,000 tokens; peak memory at 100,000."""
    if importlib.util.find_spec("sklearn") is None:
        raise SkippedError("scikit-learn is no dependency of ours: pip install scikit-learn")
    with tempfile.TemporaryDirectory() as folder:
        _write_states(Path(folder))
        rounds = [(_ours(folder, "to_final"), _theirs(folder)) for _ in range(min(repeats, 2))]
        everything = _ours(folder, "all")
        return [*_compared(rounds, everything), *_grown(folder, *rounds[0])]


def _compared(rounds: list[tuple[Any, Any]], everything: Any) -> list[Row]:
    ours, theirs = rounds[0]
    seconds = min(found["seconds"] for found, _ in rounds)
    one = min(min(found["seconds"]) for _, found in rounds)
    pairs = len(residual_pairs(LAYERS, "all"))
    apart = np.array(ours["r2"])[list(FITTED)] - np.array(theirs["r2"])
    name, shortest = f"{LAYERS} maps to the last layer", "times the shortest LinearRegression"
    return [
        Row(f"{name}, {ours['tokens']} tokens / {LAYERS} {shortest}", seconds, LAYERS * one, TO_FINAL_GOAL),
        Row(f"all {pairs} maps / {pairs} {shortest}", everything["seconds"], pairs * one, ALL_GOAL),
        Row(f"largest difference of held-out R², {len(FITTED)} maps", float(np.abs(apart).max()), goal=DIFFERENCE, unit="R²"),
        Row(f"peak memory, {name}", ours["peak"] / GIB, theirs["peak"] / GIB, unit="GiB"),
        Row(f"peak memory, all {pairs} maps", everything["peak"] / GIB, theirs["peak"] / GIB, unit="GiB"),
    ]


def _grown(folder: str, ours: Any, theirs: Any) -> list[Row]:
    import psutil

    more = _ours(folder, "to_final", COPIES)
    few, many = ours["tokens"], more["tokens"]
    found = [Row(f"our peak memory at {many} tokens / at {few}", more["peak"] / GIB, ours["peak"] / GIB, GROWTH, "GiB")]
    if psutil.virtual_memory().available < _NEEDED:
        print(f"skipped LinearRegression on {many} tokens: less than {_NEEDED / GIB:.0f} GiB of memory free", flush=True)
        return found
    much = _theirs(folder, COPIES, layers=(0,))
    one = LAYERS * much["seconds"][0]
    return [
        *found,
        Row(f"LinearRegression's peak memory at {many} tokens / at {few}", much["peak"] / GIB, theirs["peak"] / GIB, unit="GiB"),
        Row(f"peak memory at {many} tokens / LinearRegression's", more["peak"] / GIB, much["peak"] / GIB, unit="GiB"),
        Row(f"{LAYERS} maps, {many} tokens / {LAYERS} times one LinearRegression", more["seconds"], one, TO_FINAL_GOAL),
    ]


def _write_states(folder: Path) -> None:
    """States of every batch and which of their tokens count, and where to shift to."""
    model = lens.load("smollm2-135m", device="cpu")
    found: Pilot | None = None
    sizes: dict[Part, int] = {"train": TOKENS, "test": TOKENS // 4}
    for part, tokens in sizes.items():
        for number, states in enumerate(states_of(model, batches(model, part, tokens))):
            found = found or pilot(states)
            np.save(folder / f"{part}-{number:03}-states.npy", states.numpy())
            np.save(folder / f"{part}-{number:03}-kept.npy", keep(states, found.limits, drop_first=True).tokens.numpy())
    assert found is not None  # every part has batches
    np.savez(folder / "pilot.npz", shift=found.shift.numpy(), limits=found.limits.numpy())


def _ours(folder: str, pairs: str, copies: int = 1) -> Any:
    return _answer([sys.executable, "-c", _SIDE, folder, pairs, str(copies)])


def _theirs(folder: str, copies: int = 1, layers: Sequence[int] = FITTED) -> Any:
    return _answer([sys.executable, "-m", "tests.benchmarks.least_squares", folder, str(copies), *map(str, layers)])


def _answer(command: list[str]) -> Any:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def side(folder: str, which: str, copies: str) -> None:
    """Our side, in a process of its own: print seconds, peak memory and held-out R² as JSON."""
    moments, seconds = _gather(Path(folder), "train", which, int(copies))
    start = time.perf_counter()
    fitted = lens.fit_shortcuts(moments)
    seconds += time.perf_counter() - start
    peak = peak_memory()
    r2 = fitted.score(_gather(Path(folder), "test", which, 1)[0]).r2_pooled
    print(json.dumps({"seconds": seconds, "peak": peak, "r2": r2.to_numpy().tolist(), "tokens": moments.count}))


def _gather(folder: Path, part: str, which: str, copies: int) -> tuple[Moments, float]:
    """Moments of the written states, and the seconds that gathering them took; reading them counts as the model's pass."""
    with np.load(folder / "pilot.npz") as arrays:
        shift, limits = (torch.from_numpy(arrays[name]) for name in ("shift", "limits"))
    pairs = residual_pairs(LAYERS, which)
    into = Accumulator(shift, limits, pairs, drop_first=True, source={}, shuffled=shuffled(pairs, LAYERS))
    seconds = 0.0
    for path in sorted(folder.glob(f"{part}-*-states.npy")) * copies:
        states = torch.from_numpy(np.load(path))
        start = time.perf_counter()
        into.add(states)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    into.flush()
    return into.moments, seconds + time.perf_counter() - start
