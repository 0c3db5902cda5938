"""The attention battery of all heads: what it takes beside the singular values that it cannot do without."""

from __future__ import annotations

import numpy as np

import lens
from lens.probes.attention_battery import attention_battery, battery_cost
from tests.benchmarks.measure import TEXT, Row, minima, on_processor

POSITIONS = 128
SPECTRA = ("stable_rank", "participation_ratio", "energy_rank", "effective_rank", "contraction", "dobrushin")
CHEAP = ("mean_entropy", "key_entropy", "first_token", "logit_variance", "toeplitz_share")


def rows(repeats: int) -> list[Row]:
    """The whole battery, its spectra and the rest of it, against one `numpy.linalg.svd` a head of patterns that are given."""
    model = lens.load("smollm2-135m", device="cpu")
    text = " ".join([TEXT] * (POSITIONS // 50))
    ids = model.encode(text)[:POSITIONS]
    assert len(ids) == POSITIONS
    states = lens.head_states(model, ids)
    heads = [(block, head) for block in states for head in range(len(block.query))]
    patterns = [block.pattern(head) for block, head in heads]

    def singular() -> None:
        for pattern in patterns:
            np.linalg.svd(pattern, compute_uv=False)

    def two_decompositions() -> None:
        for pattern in patterns:
            np.linalg.svd(pattern, compute_uv=False)
            np.linalg.svd(pattern - pattern.mean(0), compute_uv=False)

    cases = {
        "singular": singular,
        "two": two_decompositions,
        "patterns": lambda: [block.pattern(head) for block, head in heads],
        "battery": lambda: attention_battery(states),
        "spectra": lambda: attention_battery(states, measures=SPECTRA),
        "cheap": lambda: attention_battery(states, measures=CHEAP),
        "states": lambda: lens.head_states(model, ids),
    }
    processor: dict[str, float] = {}
    best = minima({name: on_processor(call, name, processor) for name, call in cases.items()}, repeats)
    what = f"{len(heads)} heads, {POSITIONS} tokens"
    found = []
    for clock, seconds in (("", best), (", processor time", processor)):
        found += [
            Row(
                f"attention battery, {what} / numpy.linalg.svd of given patterns{clock}", seconds["battery"], seconds["singular"]
            ),
            Row(f"the same / with that of centred patterns, for κ{clock}", seconds["battery"], seconds["two"]),
            Row(f"its ranks, κ and δ alone / numpy.linalg.svd of given patterns{clock}", seconds["spectra"], seconds["singular"]),
            Row(f"entropies, sinks, logits and offsets alone / patterns alone{clock}", seconds["cheap"], seconds["patterns"]),
        ]
    cost = battery_cost(model, POSITIONS)
    return [
        *found,
        Row(f"queries, keys and values of {what}, one pass", best["states"]),
        Row("memory that battery_cost foretells", cost["bytes"] / 1024, unit="kB"),
    ]
