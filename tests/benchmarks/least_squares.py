"""The reference's way to linear maps, in a process of its own: stored activations, scikit-learn's LinearRegression per pair.

    python -m tests.benchmarks.least_squares FOLDER COPIES LAYER…

Neither torch nor lens is imported, so that their memory is not counted. See `tests.benchmarks.fits`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def main(folder: Path, copies: int, *layers: int) -> None:
    """Fit the given layers to the last one; print seconds of every fit, peak memory and held-out R² as JSON."""
    from sklearn.linear_model import LinearRegression  # here, because our own side imports this module too

    stored = _stored(folder, "train", copies)
    models, seconds = [], []
    for layer in layers:
        start = time.perf_counter()
        models.append(LinearRegression().fit(stored[layer], stored[-1]))
        seconds.append(time.perf_counter() - start)
    peak = peak_memory()
    test = _stored(folder, "test", 1)
    target = test[-1].astype(np.float64)
    energy = np.square(target - target.mean(0)).sum()
    r2 = [1 - np.square(target - model.predict(test[layer])).sum() / energy for layer, model in zip(layers, models, strict=True)]
    print(json.dumps({"seconds": seconds, "peak": peak, "r2": r2, "tokens": stored.shape[1]}))


def _stored(folder: Path, part: str, copies: int) -> np.ndarray:
    """States `[layer, token, d]` of all tokens that are kept, as often as asked for."""
    masks = [np.load(path) for path in sorted(folder.glob(f"{part}-*-kept.npy"))]
    total, batches = sum(int(mask.sum()) for mask in masks), sorted(folder.glob(f"{part}-*-states.npy"))
    layers, _, _, width = np.load(batches[0], mmap_mode="r").shape
    stored = np.empty((layers, copies * total, width), np.float32)
    end = 0
    for path, mask in zip(batches * copies, masks * copies, strict=True):
        start, end = end, end + int(mask.sum())
        stored[:, start:end] = np.load(path)[:, mask]
    return stored


def peak_memory() -> int:
    """Most bytes that this process has ever held in memory."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
