"""The published results of the Three-Phase transformer, and what they say once runs of one seed are paired."""

from __future__ import annotations

import math

import numpy as np
import xarray as xr

from lens.probes.dataset import exact, texts, variable

SOURCE = "Abu Ayyash, arXiv 2604.14430, experiments 11, 13, 14 and 15"
SEEDS = (1, 42, 100)
BASELINE = (17.31, 2.8513)  # RoPE alone, its embedding times √d, of one seed (42)
# Perplexity and loss at 123 million parameters on WikiText-103, by number of phases, in the order of the seeds.
LARGE = {
    3: ((16.2393, 2.7874), (16.0631, 2.7765), (16.2145, 2.7859)),
    1: ((16.11, 2.7792), (16.1656, 2.7829), (16.0078, 2.7731)),
}
# At 5.5 million parameters on TinyStories, one seed (42); the number and the width of heads change with the phases.
SWEEP = {
    1: (13.6268, 2.6120), 2: (13.6812, 2.6160), 3: (13.9015, 2.6320), 4: (13.8674, 2.6295), 6: (13.9780, 2.6375),
    8: (14.0090, 2.6397), 12: (14.2499, 2.6567),
}  # fmt: skip


def published_runs() -> xr.Dataset:
    """Published perplexities of one and three phases by seed, their paired difference, and the sweep over phases.

    Returns:
        Dataset:

        - `perplexity`, `loss[phases, seed]`: of the large model, 1 and 3 phases; loss in nats per token;
        - `difference[seed]`: perplexity of three phases less that of one, of one seed; `mean_difference`, and `standard_error` of
          that mean: sd/√n of the differences;
        - `baseline_perplexity`, `baseline_loss`: of the one baseline run, which differs from both by its embedding's multiplier;
        - `gain`: by how much of it the perplexity of three phases is lower, for the baseline's seed; `mean_gain`, for the
          mean over seeds;
        - `sweep_perplexity`, `sweep_loss[sweep]`: of the small model by number of phases.
    """
    phases = (1, 3)
    large = np.array([LARGE[count] for count in phases])
    perplexity = large[..., 0]
    difference = perplexity[1] - perplexity[0]
    same_seed = perplexity[1, SEEDS.index(42)]
    sweep = np.array(list(SWEEP.values()))
    return xr.Dataset(
        {
            "perplexity": exact(("phases", "seed"), perplexity, "perplexity of the large model"),
            "loss": exact(("phases", "seed"), large[..., 1], "loss of the large model", "nats"),
            "difference": exact(("seed",), difference, "perplexity of three phases less that of one"),
            "mean_difference": exact((), difference.mean(), "mean of the paired differences"),
            "standard_error": exact((), difference.std(ddof=1) / math.sqrt(len(SEEDS)), "standard error of that mean"),
            "baseline_perplexity": exact((), BASELINE[0], "perplexity of the baseline, seed 42"),
            "baseline_loss": exact((), BASELINE[1], "loss of the baseline, seed 42", "nats"),
            "gain": exact((), 1 - same_seed / BASELINE[0], "share of the baseline's perplexity saved, seed 42"),
            "mean_gain": exact((), 1 - perplexity[1].mean() / BASELINE[0], "the same for the mean over seeds"),
            "sweep_perplexity": exact(("sweep",), sweep[:, 0], "perplexity of the small model"),
            "sweep_loss": exact(("sweep",), sweep[:, 1], "loss of the small model", "nats"),
        },
        {
            "phases": variable(("phases",), np.array(phases), "number of phases"),
            "seed": variable(("seed",), np.array(SEEDS), "seed"),
            "sweep": variable(("sweep",), np.array(list(SWEEP)), "number of phases of the small model"),
            "model": texts((), "123M parameters, WikiText-103; sweep: 5.5M, TinyStories", "what was trained"),
        },
        {"source": SOURCE, "probe": "published_runs"},
    )
