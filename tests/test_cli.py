"""The `lens` command, run as a user runs it."""

from __future__ import annotations

import csv
import subprocess

import numpy as np
import pytest
import torch
import xarray as xr

import lens
from lens.cli import main
from lens.probes.kept import shortcuts_for
from tests.models.families import build, word_tokenizer


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "tiny"
    build("gemma2").save_pretrained(place)
    word_tokenizer().save_pretrained(place)
    return place


def test_check_prints_every_proof(folder, capsys):
    assert main(["check", str(folder), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    for words in ("blocks model.layers", "softcap 30", "bit-identical", "later tokens", "all finite", "rows sum to 1"):
        assert words in printed


def test_logit_lens_prints_a_table_that_ends_in_the_prompt(folder, capsys):
    assert main(["logit-lens", str(folder), "w1 w2 w3", "--stride", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["layer", "3", "2", "0"]
    assert lines[-1].split() == ["w1", "w2", "w3"]
    assert sum(line.count("*") for line in lines) == 3  # one settled cell per column


def test_logit_lens_writes_a_file(folder, tmp_path, capsys):
    target = tmp_path / "lens.csv"
    assert main(["logit-lens", str(folder), "w1 w2", "-o", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    rows = list(csv.DictReader(target.read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 4 * 2 * 5  # layers, positions, ranks


def test_wrong_suffix_is_refused_before_a_model_is_opened(tmp_path, capsys):
    assert main(["logit-lens", "no-such-model-anywhere", "text", "-o", str(tmp_path / "x.docx")]) == 1
    assert "'.docx'" in capsys.readouterr().err


def test_place_that_cannot_be_written_is_one_line(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["logit-lens", str(folder), "w1", "-o", str(tmp_path / "file" / "lens.csv")]) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("lens: ")
    assert captured.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "smolm2-135m"], "Try: lens.load('smollm2-135m')"),
        (["pull", "smolm2-135m"], "No model named 'smolm2-135m'"),
        (["logit-lens", "./nothing-here", "text"], "checking the path"),
    ],
)
def test_a_users_error_is_one_line_without_a_traceback(arguments, message: str, capsys):
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("lens: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_cache_lists_and_clears(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LENS_CACHE", str(tmp_path))
    (tmp_path / "models" / "something").mkdir(parents=True)
    (tmp_path / "models" / "something" / "weights").write_bytes(bytes(2_000_000))
    assert main(["cache"]) == 0
    assert "2.0 MB  models/something" in capsys.readouterr().out
    assert main(["cache", "--clear"]) == 0
    assert "freed 2 MB" in capsys.readouterr().out
    assert not (tmp_path / "models").exists()


def test_pulled_model_is_named_at_once(smollm2_folder, capsys):
    assert main(["pull", "smollm2-135m"]) == 0
    assert capsys.readouterr().out.strip() == str(smollm2_folder)


def test_installed_command_knows_its_version():
    script = subprocess.run(["lens", "--version"], capture_output=True, text=True, check=True)
    assert script.stdout.startswith("lens ")


@pytest.fixture
def prose(tmp_path):
    """A folder of made-up documents, with all three parts."""
    words = np.random.default_rng(0).integers(4, 123, (60, 50))
    place = tmp_path / "prose"
    place.mkdir()
    for number, row in enumerate(words):
        (place / f"{number}.txt").write_text(" ".join(f"w{word}" for word in row))
    return place


def test_report_writes_one_page_and_says_how_to_make_it_again(folder, prose, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    target = tmp_path / "page.html"
    assert main(["report", str(folder), "--corpus", str(prose), "--tokens", "1000", "--device", "cpu", "-o", str(target)]) == 0
    assert capsys.readouterr().out.startswith(f"{target}, 0.")
    page = target.read_text(encoding="utf-8")
    assert "lens report tiny --corpus prose --tokens 1000 --dtype float32 --device cpu -o report.html" in page
    assert str(tmp_path) not in page


def test_report_of_another_suffix_is_refused_before_a_model_is_opened(tmp_path, capsys):
    assert main(["report", "no-such-model-anywhere", "-o", str(tmp_path / "report.pdf")]) == 1
    assert "one that ends in .html" in capsys.readouterr().err


def test_fit_prints_the_held_out_scores_and_writes_the_maps(folder, prose, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    target = tmp_path / "maps.safetensors"
    command = ["fit", str(folder), "--corpus", str(prose), "--tokens", "1000", "--device", "cpu", "-o", str(target)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("layer to 3")
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]
    assert lines[4] == str(target)
    model = lens.load(folder, device="cpu")
    found = lens.load_shortcuts(target, model)
    assert found.layers == (0, 1, 2)
    kept = shortcuts_for(model, lens.corpus(prose), tokens=1000)
    assert torch.equal(found.maps[1, 3].matrix, kept.maps[1, 3].matrix)
    assert main(command) == 0  # from the cache
    assert capsys.readouterr().out.splitlines() == lines


def test_fit_refuses_another_suffix_before_it_starts(folder, capsys):
    assert main(["fit", str(folder), "-o", "maps.pt"]) == 1
    assert "'maps.pt'" in capsys.readouterr().err


# -- train ----------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path):
    """A recipe of the reader's own, for a model that trains in a second."""
    texts = tmp_path / "texts"
    texts.mkdir()
    draw = np.random.default_rng(0)
    for number in range(30):
        (texts / f"{number}.txt").write_text(" ".join(draw.choice(["three", "phases", "turn", "slowly"], 60)) + f" {number}")
    path = tmp_path / "own.toml"
    path.write_text(
        'title = "Small"\n[model]\nhidden_size = 48\nintermediate_size = 64\nnum_hidden_layers = 2\n'
        f'[text]\ncorpora = ["{texts}"]\nvocabulary = 270\nlength = 16\nwindows = 4\n'
    )
    return path


def test_train_lists_its_recipes(capsys):
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["three-phase-n1", "1", "phase"]
    assert {line.split()[0] for line in lines} >= {"three-phase-rope-only-scaled", "three-phase-12-blocks"}


def test_trained_folder_opens_and_holds_its_diagnostics(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    command = ["train", str(recipe), "--steps", "3", "-o", str(tmp_path / "out"), "--seed", "7"]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    first, last = printed.out.splitlines()
    assert first.startswith("own, seed 7: texts ")
    assert last == str(tmp_path / "out")
    assert lens.load(tmp_path / "out", device="cpu").n_layers == 2
    with xr.open_dataset(tmp_path / "out" / "diagnostics.nc", engine="h5netcdf") as found:
        assert found.attrs["seed"] == 7
        assert found["looked_at"].to_numpy().tolist() == [0, 1, 2, 3]
        assert found["train_loss"].sizes == {"step": 3}
    assert main(command) == 0  # read, not trained again
    assert capsys.readouterr().out.splitlines() == [first, last]
    assert main([*command[:3], "2", *command[4:]]) == 1
    assert "holds another training of own" in capsys.readouterr().err


def test_several_trainings_get_a_folder_each(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    assert main(["train", str(recipe), "--steps", "1", "--seed", "0", "1", "-o", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["own-seed0", "own-seed1"]
    assert main(["train", str(recipe), "--steps", "1"]) == 0
    assert str(tmp_path / "cache" / "trained" / "own-seed0-") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "lens train --list"),
        (["three-phase-n5"], "No recipe 'three-phase-n5'"),
        (["three-phase-n3", "--steps", "0"], "warm-up"),
        (["three-phase-n3", "--device", "gpu"], "a device that torch knows"),
    ],
)
def test_wrong_training_is_one_line(arguments, message: str, capsys):
    assert main(["train", *arguments]) == 1
    captured = capsys.readouterr().err
    assert captured.count("\n") == 1
    assert message in captured
