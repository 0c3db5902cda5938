"""Claims of the Three-Phase paper on families whose losses are known, and on the one that is shipped."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.stats
import xarray as xr

import lens
from lens.probes.phase_claims import CLAIMS, loss, phase_verdicts, speed_up, sweep_contrast, sweep_order
from lens.probes.phase_family import detectable, seed_noise
from lens.probes.phase_published import SWEEP
from lens.training.phase_recipes import FAMILY

SEEDS = 3


def made_family(losses: dict[str, float], scatter: float = 0.0) -> xr.Dataset:
    """All members lose 4 nats but those that are named; the baseline falls half as fast as all others."""
    draw = np.random.default_rng(0)
    values = np.array([losses.get(name, 4.0) for name in FAMILY])[:, None] + draw.normal(0, scatter, (len(FAMILY), SEEDS))
    looked_at = np.arange(0, 801, 100)
    speeds = np.array([0.5 if name.endswith("scaled") else 1.0 for name in FAMILY])
    course = 7 - 2 * speeds[:, None] * looked_at / 800
    positions = np.broadcast_to(values[:, :, None, None], (len(FAMILY), SEEDS, 2, 128)).copy()
    positions[FAMILY.index("three-phase-no-horn"), :, :, :10] += np.log(1.02)
    return xr.Dataset(
        {
            "test_loss": (("recipe", "seed", "corpus_name"), np.stack([values - 0.1, values + 0.1], -1)),
            "position_loss": (("recipe", "seed", "corpus_name", "position"), positions),
            "validation_loss": (("recipe", "seed", "looked_at"), np.repeat(course[:, None], SEEDS, 1)),
            "num_blocks": (("recipe",), np.full(len(FAMILY), 4)),
        },
        {"recipe": list(FAMILY), "seed": np.arange(SEEDS), "looked_at": looked_at, "corpus_name": ["a", "b"]},
    )


def rows(family: xr.Dataset) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["claim"], row["control"]): row for row in phase_verdicts(family)}


def test_a_gap_that_the_multiplier_makes():
    """Eight per cent to the baseline with √d, nothing to the one without: the multiplier explains all of it."""
    found = rows(made_family({"three-phase-rope-only-scaled": 4 - np.log(0.92)}))
    published = found["Three phases beat a RoPE-only model", "RoPE only, embedding × √d"]
    assert (published["value"], published["verdict"], published["published"]) == (8.0, "holds", 7.2)
    own = found["Three phases beat RoPE only with the same embedding, too", "RoPE only, no √d"]
    assert (own["value"], own["verdict"]) == (0.0, "fails")
    alone = found["RoPE only gains as much by leaving √d out", "RoPE only, embedding × √d"]
    assert (alone["value"], alone["verdict"], alone["pooled_verdict"]) == (8.0, "holds", "holds")
    multiplier = found["The multiplier √d explains the gap", "RoPE only, with and without √d"]
    assert (multiplier["value"], multiplier["verdict"]) == (1.0, "holds")


def test_a_gap_that_the_phases_make():
    found = rows(made_family({"three-phase-rope-only-scaled": 4.1, "three-phase-rope-only": 4.1}))
    assert found["Three phases beat RoPE only with the same embedding, too", "RoPE only, no √d"]["verdict"] == "holds"
    multiplier = found["The multiplier √d explains the gap", "RoPE only, with and without √d"]
    assert (multiplier["value"], multiplier["verdict"]) == (0.0, "fails")


def test_what_is_taken_away_costs():
    found = rows(made_family({"three-phase-no-rotation": 4 + np.log(1.03), "three-phase-n3": 4.0}))
    rotation = found["Rotation of the stream carries the model", "no rotation"]
    assert (rotation["value"], rotation["verdict"]) == (3.0, "holds")
    assert found["Learning the angles matters", "angles frozen"]["verdict"] == "fails"
    assert found["The horn helps", "no horn"]["value"] == 0.0
    assert found["The horn helps the first ten positions", "no horn"]["value"] == 2.0


def test_the_sweep_over_phases():
    slope = 0.02
    family = made_family({f"three-phase-n{count}": 4 + slope * np.log(count) for count in SWEEP})
    one = family.isel(seed=0)
    assert sum(weight * loss(one, name) for name, weight in sweep_contrast().items()) == pytest.approx(slope * np.log(12))
    told = rows(family)["The more phases, the worse", "1 to 12 phases, heads fixed"]
    assert told["value"] == pytest.approx(100 * (12**slope - 1), abs=1e-3)
    assert sweep_order(one) == pytest.approx(1.0)
    exchanged = {1: 4.2, 2: 4.3, 3: 4.5, 4: 4.4, 6: 4.6, 8: 4.7, 12: 4.8}  # the order of the published sweep
    turned = made_family({f"three-phase-n{count}": loss for count, loss in exchanged.items()}).isel(seed=0)
    assert sweep_order(turned) == pytest.approx(1 - 6 * 2 / (7 * 48))
    published = {claim.claim: claim.published for claim in CLAIMS}
    assert published["Every larger number of phases is worse"] == 0.96
    assert published["The more phases, the worse"] == 4.3


def test_twice_as_fast_is_two():
    one = made_family({}).isel(seed=0)
    assert speed_up(one, "three-phase-n3", "three-phase-rope-only-scaled") == pytest.approx(2.0)
    assert speed_up(one, "three-phase-rope-only-scaled", "three-phase-n3") == pytest.approx(0.5)
    assert speed_up(one, "three-phase-n3", "three-phase-rope-only") == pytest.approx(1.0)


def test_noise_leaves_claims_open_and_power_is_said():
    family = made_family({}, scatter=0.05)
    found = phase_verdicts(family)
    assert {row["verdict"] for row in found if row["published"] == 0.5} == {"open"}
    assert {row["source"] for row in found if row["published"] is None} == {"ours", "Abu Ayyash, arXiv 2604.14430"}
    noise = seed_noise(family)[0]
    pairs = [row for row in found if row["measured"].startswith("% of perplexity") and not row["measured"].endswith("there")]
    assert {row["detectable"] for row in pairs} == {round(100 * float(np.expm1(detectable(noise, SEEDS))), 1)}
    assert all(row["low"] <= row["value"] <= row["high"] and row["seeds"] == SEEDS for row in found)
    assert {row["pooled_verdict"] for row in found if "corr" in row["measured"] or "ratio" in row["measured"]} == {None}


def test_noise_of_all_members_narrows_an_interval():
    """The textbook's interval with the deviation of all: of a pair, and of the line through seven."""
    family = made_family({}, scatter=0.05)
    noise, free = seed_noise(family)
    quantile = scipy.stats.t.ppf(0.975, free) / np.sqrt(SEEDS)
    mean = family["test_loss"].mean(("corpus_name", "seed"))
    found = rows(family)
    gap = float(mean.sel(recipe="three-phase-no-horn") - mean.sel(recipe="three-phase-n3"))
    row = found["The horn helps", "no horn"]
    assert row["pooled_high"] == pytest.approx(100 * np.expm1(gap + quantile * noise), abs=1e-3)
    assert row["pooled_low"] == pytest.approx(100 * np.expm1(gap - quantile * noise), abs=1e-3)
    saved = found["Three phases beat a RoPE-only model", "RoPE only, embedding × √d"]
    assert saved["pooled_low"] < saved["value"] < saved["pooled_high"]
    line, counts = found["The more phases, the worse", "1 to 12 phases, heads fixed"], np.log(list(SWEEP))
    swept = mean.sel(recipe=[f"three-phase-n{count}" for count in SWEEP]).to_numpy()
    fit = scipy.stats.linregress(counts, swept)
    error = noise / np.sqrt(2) / np.sqrt(((counts - counts.mean()) ** 2).sum())
    high = (fit.slope + quantile * error) * np.log(12)
    assert line["pooled_high"] == pytest.approx(100 * np.expm1(high), abs=1e-3)


def test_what_was_not_trained_is_untested():
    family = made_family({}).sel(recipe=["three-phase-n1", "three-phase-n3"])
    verdicts = {row["claim"]: row["verdict"] for row in phase_verdicts(family)}
    assert verdicts["Three phases are worse than one"] == "fails"
    assert verdicts["The horn helps"] == verdicts["Every larger number of phases is worse"] == "untested"
    assert {row["verdict"] for row in phase_verdicts(family.isel(seed=[0]))} == {"untested"}


def test_shipped_family():
    """The gap to the published baseline is there, and without the multiplier it is not."""
    family = lens.phase_family()
    assert family["test_loss"].sel(recipe=list(FAMILY)).notnull().all()
    found = rows(family)
    assert found["Three phases beat a RoPE-only model", "RoPE only, embedding × √d"]["verdict"] == "holds"
    assert found["RoPE only gains as much by leaving √d out", "RoPE only, embedding × √d"]["verdict"] == "holds"
    assert found["Three phases beat RoPE only with the same embedding, too", "RoPE only, no √d"]["pooled_verdict"] == "fails"
    assert all(row["seeds"] == 3 for row in found.values())
    assert len(found) == len(CLAIMS)
