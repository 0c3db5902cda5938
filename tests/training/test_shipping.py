"""What of a finished training is shipped, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import lens
from lens.base.errors import InputError
from lens.base.files import sha256
from lens.training import read_record, shipping
from lens.training.shipping import WEIGHTS, main, ship_models
from lens.training.three_phase import RECORD, TrainedModel, train_three_phase
from tests.training.test_three_phase import made_up, small

STEPS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], TrainedModel]:
    place = tmp_path_factory.mktemp("trained")
    runs = (("three-phase-n3", 0), ("three-phase-n3", 1), ("three-phase-n1", 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(place / "cache"))
        return {
            (name, seed): train_three_phase(small(name, STEPS), seed=seed, folder=place / f"{name}-{seed}", corpora=[made_up()])
            for name, seed in runs
        }


def test_command_ships_one_seed_and_says_how_it_was_trained(trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main([str(tmp_path), *(str(done.folder) for done in trained.values())])
    places = [tmp_path / "three-phase-n3", tmp_path / "three-phase-n1"]
    assert capsys.readouterr().out.split() == [str(place) for place in places]
    done = trained["three-phase-n3", 0]
    assert {path.name for path in places[0].iterdir()} == {"config.json", WEIGHTS, "record.json"}
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {"tokenizer.json", "tokenizer_config.json"}
    told = json.loads((places[0] / "record.json").read_text("utf-8"))
    assert told["weights_sha256"] == sha256(places[0] / WEIGHTS) == sha256(done.folder / WEIGHTS)
    assert told["command"] == "lens train three-phase-n3 --seed 0"
    assert told["recipe"] == read_record(done.folder / RECORD).recipe.facts()
    assert told["results"]["saved_test_loss"] == done.record.results["saved_test_loss"]
    assert told["results"]["test_loss"] == pytest.approx(done.mean_test_loss(), abs=1e-5)


def test_what_was_shipped_before_is_replaced(trained, tmp_path: Path):
    """A model that opens, for it has its tokenizer beside it here."""
    for seed in (0, 1):
        (place,) = ship_models([trained["three-phase-n3", seed].folder], tmp_path)
        assert sha256(place / WEIGHTS) == sha256(trained["three-phase-n3", seed].folder / WEIGHTS)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).rename(place / name)
    assert lens.load(place).fingerprint == lens.load(trained["three-phase-n3", 1].folder).fingerprint


def test_what_cannot_be_shipped(trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folders = [done.folder for done in trained.values()]
    with pytest.raises(InputError, match="3 trainings of 2 recipes"):
        ship_models(folders, tmp_path)
    with pytest.raises(InputError, match="None of 1 trainings is shipped"):
        main([str(tmp_path), str(folders[1])])
    monkeypatch.setattr(shipping, "LARGEST", 1000)
    with pytest.raises(InputError, match="MB of weights"):
        ship_models(folders[:1], tmp_path)
    monkeypatch.undo()
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in folders[2].iterdir():
        (changed / path.name).write_bytes(path.read_bytes() + (b" " if path.name == "tokenizer.json" else b""))
    with pytest.raises(InputError, match="2 kinds of tokenizer.json"):
        ship_models([folders[0], changed], tmp_path)
    assert not list(tmp_path.glob("three-phase*"))
