"""The named runs: each piece of them on a small budget, and the command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens import panels
from lens.base.errors import InputError
from lens.cli import main
from lens.runs import latency, phases
from lens.runs.named import RUNS, named_run
from lens.runs.run import FinishedRun, Plan, start_run


def small(name: str, folder: Path, **budget: Any) -> FinishedRun:
    run = RUNS[name]
    budgets: Mapping = {"cpu": {**run.budgets["cpu"], **budget}, "cuda": {}}
    return start_run(replace(run, budgets=budgets), folder=folder)


def test_moments_agree_with_float64_and_feed_the_probes(tmp_path: Path):
    done = small("smollm2-moments", tmp_path, model="three-phase-n3", tokens=1_500, few_tokens=512, read_tokens=600).pieces
    assert set(done["rate"].way.to_numpy()) == {"bare forward", "forward with moments"}
    assert float(done["rate"].ratio) == pytest.approx(float(done["rate"].seconds[1] / done["rate"].seconds[0]))
    assert float(done["agreement"].gap.max()) < 1e-4  # float32 against float64
    assert len(set(done["agreement"].tokens_kept.to_numpy().tolist())) == 1
    assert done["linearity"].sizes["block"] == 4
    assert done["shortcuts"].sizes["pair"] == 7
    assert list(done["early_exit"].lens.to_numpy()) == ["plain", "shortcut"]


def test_spectra_of_every_length_and_their_growth(tmp_path: Path):
    done = small("attention-spectra", tmp_path, model="three-phase-n3", lengths=[64, 128], texts=1).pieces
    assert list(done) == ["battery-64-text-0", "battery-128-text-0", "growth"]
    assert (done["battery-128-text-0"].mean_entropy.mean() > done["battery-64-text-0"].mean_entropy.mean()).item()
    assert done["growth"].length.to_numpy().tolist() == [32, 64, 128]
    with pytest.raises(InputError, match="test articles of 64 tokens or more"):
        small("attention-spectra", tmp_path / "many", model="three-phase-n3", lengths=[64], texts=1_000)


def test_phases_train_with_the_plans_size(tmp_path: Path):
    size = {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    done = small("three-phase", tmp_path, recipes=["three-phase-n3"], seeds=[0, 1], steps=2, model=size, text={"windows": 2})
    pace, *trainings = done.pieces.values()
    assert list(done.pieces) == ["pace", "three-phase-n3-seed0", "three-phase-n3-seed1"]
    assert float(pace.planned_steps) == 1 * 2 * 2
    assert float(pace.planned_seconds) == pytest.approx(4 * float(pace.step_seconds.median()))
    for piece in trainings:
        assert piece.attrs["model_hidden_size"] == 24
        assert piece.sizes["step"] == 2
    assert done.record()["three-phase-n3-seed0"]["tokens"] == 2 * 2 * 128
    first, second = (piece.train_loss.to_numpy() for piece in trainings)
    assert not np.allclose(first, second)


def test_latency_of_a_panel(tmp_path: Path):
    piece = small("panels", tmp_path, panels=["CommutingRotations"], turns=3).pieces["CommutingRotations"]
    assert list(piece.control.to_numpy()) == ["family", "offset"]
    assert piece.wall_time.shape == (2, 3)
    np.testing.assert_array_equal(piece.least, piece.wall_time.min("turn"))
    np.testing.assert_array_equal(piece["first"], piece.wall_time[:, :2].max("turn"))
    assert (piece.least <= piece["median"]).all()
    assert (piece.processor_time > 0).any()
    assert float(piece.first_picture) > 0


def test_a_refused_move_is_no_latency(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(latency.MOVES, "CommutingRotations", {"offset": (4, -1)})
    with pytest.raises(RuntimeError, match=r"CommutingRotations, offset=-1: The offset is -1"):
        small("panels", tmp_path, panels=["CommutingRotations"], turns=2)


def test_every_panel_is_measured_or_said_why_not():
    known = {*latency.MOVES, *latency.NO_PANELS}
    assert known == set(panels._PUBLIC)
    assert not set(latency.MOVES) & set(latency.NO_PANELS)
    for name, moves in latency.MOVES.items():
        panel = getattr(panels, name)
        assert moves
        assert {*moves} <= {*panel.COMPUTED, *panel.VIEW}
        assert all(before != after for before, after in moves.values())


def test_the_command_lists_and_refuses(capsys: pytest.CaptureFixture[str]):
    assert main(["runs"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(RUNS)
    assert main(["runs", "start", "panel"]) == 1
    assert capsys.readouterr().err.startswith("lens: No run 'panel'. Needed: smollm2-moments")
    with pytest.raises(InputError, match="Try: three-phase"):
        named_run("threephase")


@pytest.mark.parametrize("name", RUNS)
def test_every_plan_has_pieces(name: str):
    for budget in RUNS[name].budgets.values():
        assert RUNS[name].pieces(budget)


@pytest.mark.parametrize("plan", ["cpu", "cuda"])
def test_every_recipe_of_a_plan_is_one(plan: Plan):
    budget = RUNS["three-phase"].budgets[plan]
    for name in budget["recipes"]:
        config = phases._recipe(name, budget).config()
        assert config.hidden_size == budget.get("model", {}).get("hidden_size", 96)
        assert config.hidden_size % (2 * config.num_phases) == 0
