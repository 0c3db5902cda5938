"""The named runs: each piece of them on a small budget, and the command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lens.base.errors import InputError
from lens.cli import main
from lens.runs.named import RUNS, named_run
from lens.runs.run import FinishedRun, start_run


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
    assert list(done.pieces) == ["three-phase-n3-seed0", "three-phase-n3-seed1"]
    for piece in done.pieces.values():
        assert piece.attrs["model_hidden_size"] == 24
        assert piece.sizes["step"] == 2
    assert done.record()["three-phase-n3-seed0"]["tokens"] == 2 * 2 * 128
    first, second = (piece.train_loss.to_numpy() for piece in done.pieces.values())
    assert not np.allclose(first, second)


def test_latency_of_a_panel(tmp_path: Path):
    piece = small("panels", tmp_path, panels=["LogitLens"], repeats=2).pieces["LogitLens"]
    assert list(piece.control.to_numpy()) == ["text", "colour"]
    assert (piece.least > 0).all()
    assert (piece.least <= piece["median"]).all()


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
