"""Moments on disk: whole, damaged, half written, killed, and with no room left."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lens.base.errors import Cancelled, InputError
from lens.collect import MomentParts, collect_moments, read_moments, write_moments
from lens.collect.files import read_state, write_state
from lens.models.model import Model
from lens.moments import Moments
from tests.collect.passes import (
    LONG_PASS_PARTS,
    Stopper,
    finished_names,
    long_pass,
    made_up,
    names_in,
    only_folder,
    same,
    same_part,
)

ROOT = Path(__file__).parents[2]


def some_moments(seed: int = 0) -> Moments:
    generator = torch.Generator().manual_seed(seed)

    def matrix() -> torch.Tensor:
        return torch.randn(5, 5, generator=generator, dtype=torch.float64)

    within, across = {layer: matrix() for layer in (0, 2, 10)}, {(0, 2): matrix(), (2, 10): matrix()}
    limits = torch.tensor([1.5, torch.inf, 3.0], dtype=torch.float64)
    mean = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    source = {"model": "a", "tokens": 3, "part": "train"}
    return Moments(1234, mean, within, across, {"massive": 3, "first position": 5}, limits, source, {(2, 10): matrix()})


# -- whole and damaged ----------------------------------------------------------------------------


def test_round_trip_keeps_every_bit(tmp_path: Path):
    moments = some_moments()
    write_moments(moments, tmp_path / "a.safetensors")
    found = read_moments(tmp_path / "a.safetensors", moments.source)
    assert found is not None
    assert same_part(found, moments)
    assert (found + found).count == 2468
    assert names_in(tmp_path) == ["a.json", "a.safetensors"]


def test_nothing_is_read_where_nothing_is(tmp_path: Path):
    assert read_moments(tmp_path / "a.safetensors") is None
    assert read_state(tmp_path, "train-state", {"residual": {}}) == ({}, 0)


@pytest.mark.parametrize("manifest", ["[]", "null", "7", '"text"', "{}", '{"sha256": 3}', "{", "\xff"])
def test_any_other_manifest_is_no_manifest(tmp_path: Path, manifest: str):
    write_moments(some_moments(), tmp_path / "a.safetensors")
    (tmp_path / "a.json").write_text(manifest, encoding="latin-1")
    assert read_moments(tmp_path / "a.safetensors") is None


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "cut":
        content = content[:-100]
    elif kind == "flipped":
        middle = len(content) // 2
        content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    else:
        content = b""
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["cut", "flipped", "empty"])
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_damaged_result_is_not_used(tiny: Model, own_cache: Path, kind: str, suffix: str):
    corpus, parts = made_up(), ("residual", "mlp")
    first = collect_moments(tiny, corpus, tokens=1000, window=32, parts=parts)
    for name in ("validation", "test-mlp"):
        path = only_folder(own_cache) / f"{name}{suffix}"
        if (kind, suffix) == ("flipped", ".json"):
            path.write_text(path.read_text().replace('"sha256": "', '"sha256": "0'))
        else:
            damage(path, kind)
        assert read_moments(path.with_suffix(".safetensors")) is None
    assert same(first, collect_moments(tiny, corpus, tokens=1000, window=32, parts=parts))
    for name in ("validation", "test-mlp"):
        assert read_moments(only_folder(own_cache) / f"{name}.safetensors") is not None


def test_changed_count_in_a_manifest_is_noticed(tiny: Model, own_cache: Path):
    first = collect_moments(tiny, made_up(), tokens=1000, window=32)
    path = only_folder(own_cache) / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"count": first.train.count + 1}))
    assert collect_moments(tiny, made_up(), tokens=1000, window=32).train.count == first.train.count


def test_moments_of_something_else_are_refused(tiny: Model, own_cache: Path):
    collect_moments(tiny, made_up(), tokens=1000, window=32)
    path = only_folder(own_cache) / "test.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"source": manifest["source"] | {"model": "another"}}))
    with pytest.raises(InputError, match=r"test\.safetensors holds moments of .*another.*deleting that file"):
        collect_moments(tiny, made_up(), tokens=1000, window=32)


# -- states ---------------------------------------------------------------------------------------


def test_the_furthest_whole_state_counts(tmp_path: Path):
    """A kill leaves the former state, the new one half made, or both whole; whatever is whole is used."""
    sources = dict.fromkeys(("residual", "mlp"), some_moments().source)
    old, new = ({name: some_moments(seed + i) for i, name in enumerate(sources)} for seed in (0, 10))

    def found() -> tuple[dict[str, Moments], int]:
        return read_state(tmp_path, "train-state", sources)

    write_state(old, tmp_path, "train-state", 8)
    assert names_in(tmp_path) == ["train-state-8"]
    (tmp_path / "train-state-8").rename(tmp_path / "kept")
    write_state(new, tmp_path, "train-state", 12)
    (tmp_path / "kept").rename(tmp_path / "train-state-8")  # killed before the old one was removed
    assert found()[1] == 12
    assert all(same_part(found()[0][name], new[name]) for name in sources)
    damage(tmp_path / "train-state-12" / "mlp.safetensors", "cut")
    assert found()[1] == 8
    assert all(same_part(found()[0][name], old[name]) for name in sources)
    write_state(new, tmp_path, "train-state", 12)  # over the damaged one
    assert names_in(tmp_path) == ["train-state-12"]
    assert found()[1] == 12


def test_states_of_other_processes_are_not_ours(tmp_path: Path):
    sources = {"residual": some_moments().source}
    for kind in ("train-state-0-of-2", "train-state-1-of-2", "train-state"):
        write_state({"residual": some_moments(len(kind))}, tmp_path, kind, len(kind))
    assert read_state(tmp_path, "train-state", sources)[1] == len("train-state")
    assert read_state(tmp_path, "train-state-0-of-2", sources)[1] == len("train-state-0-of-2")
    assert read_state(tmp_path, "train-state-0-of-3", sources)[1] == 0
    assert read_state(tmp_path, "test-state", sources)[1] == 0


# -- interruptions --------------------------------------------------------------------------------


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("stop_at", [1, 40, 65])
def test_cancelled_pass_goes_on_where_it_was(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int):
    corpus, options = made_up(200), {"tokens": 6000, "window": 32, "parts": ("residual", "norm_1")}
    whole = Stopper()
    expected = collect_moments(tiny, corpus, check=whole.check, **options)
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "second"))
    with pytest.raises(Cancelled):
        collect_moments(tiny, corpus, check=Stopper(stop_at).check, **options)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in tiny.module.modules())
    rest = Stopper()
    steps: list = []
    assert same(collect_moments(tiny, corpus, check=rest.check, progress=steps.append, **options), expected)
    assert tiny.lock.holder is None
    if stop_at > 60:  # past the pilot, so that a state was written
        assert steps[0].done > 512
        assert rest.count < whole.count
    assert names_in(only_folder(tmp_path / "second")) == finished_names("residual", "norm_1")


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("kind", ["cut", "flipped", "empty"])
def test_damaged_state_is_not_used(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    corpus, options = made_up(300), {"tokens": 8000, "window": 32}
    expected = collect_moments(tiny, corpus, **options)
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "second"))
    with pytest.raises(Cancelled):
        collect_moments(tiny, corpus, check=Stopper(75).check, **options)
    (state,) = only_folder(tmp_path / "second").glob("train-state-*/residual.safetensors")
    damage(state, kind)
    steps: list = []
    assert same(collect_moments(tiny, corpus, progress=steps.append, **options), expected)
    assert steps[0].done <= 256
    assert names_in(only_folder(tmp_path / "second")) == finished_names()


# One process imports everything once, then forks a child for each pass, which inherits no thread: torch has not computed yet.
NURSERY = """
import os, sys
import lens.models.load, transformers.models.llama.modeling_llama
from tests.collect.passes import long_pass, write_often

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        write_often()
        long_pass(lambda step: print(step.label, step.done, flush=True))
        print("done", flush=True)
        os._exit(0)
    print("child", child, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def lines_of_a_child(nursery: subprocess.Popen[str], steps: int | None, delay: float) -> list[str]:
    """What one child reports, killed `delay` seconds after so many steps with no chance to tidy up, or left alone."""
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    nursery.stdin.write("go\n")
    nursery.stdin.flush()
    child, lines = 0, []
    for line in nursery.stdout:
        if line.startswith("ended"):
            assert int(line.split()[1]) == (0 if lines[-1] == "done" else -signal.SIGKILL)
            return lines
        if line.startswith("child"):
            child = int(line.split()[1])
            continue
        lines.append(line.strip())
        if len(lines) == steps:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
    raise AssertionError("the nursery ended")


@pytest.mark.usefixtures("often")
def test_killed_pass_ends_with_the_same_bits(long_pass_moments: MomentParts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Twenty kills, one after the other, each at a random moment of what the former left; then a child that may finish."""
    drawn, killed = random.Random(), tmp_path / "killed"
    settings = {"LENS_CACHE": str(killed), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    pipes = {"stdin": -1, "stdout": -1, "stderr": -1, "text": True}
    starts: list[str] = []
    with subprocess.Popen([sys.executable, "-c", NURSERY], env=os.environ | settings, **pipes) as nursery:
        while len(starts) < 20:
            lines = lines_of_a_child(nursery, drawn.randint(1, 8), drawn.uniform(0, 0.05))
            starts.append(lines[0])
        lines = lines_of_a_child(nursery, None, 0)
        assert nursery.communicate()[1] == ""
    assert lines[-1] == "done"
    assert starts[0] == "made up, train 256"
    assert len(set(starts)) > 3, starts  # later ones went on from what the killed ones left
    assert names_in(only_folder(killed)) == finished_names(*LONG_PASS_PARTS)
    monkeypatch.setenv("LENS_CACHE", str(killed))
    assert same(long_pass(), long_pass_moments)


@pytest.mark.parametrize("part", ["train", "test"])
def test_what_a_kill_left_after_a_part_was_written_is_removed(tiny: Model, own_cache: Path, part: str):
    """States that go on for nothing: whole, or with some of their files already gone."""
    first = collect_moments(tiny, made_up(), tokens=1000, window=32)
    write_state({"residual": some_moments()}, only_folder(own_cache), f"{part}-state", 3)
    (only_folder(own_cache) / f"{part}-state-2").mkdir()
    assert same(collect_moments(tiny, made_up(), tokens=1000, window=32), first)
    assert names_in(only_folder(own_cache)) == finished_names()


# -- no room --------------------------------------------------------------------------------------

CRAMPED = """
import resource, sys
from lens.base.errors import LensError
from tests.collect.passes import long_pass, write_often

write_often()
done = []

def report(step):
    done.append(step.label)
    if done.count(f"made up, {sys.argv[1]}") == 12:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))

try:
    long_pass(report)
except LensError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_full_disk_is_told_in_one_line_and_loses_nothing(long_pass_moments: MomentParts, own_cache: Path, part: str):
    """No file may grow any more once the pass has come twelve batches into one part."""
    command, settings = [sys.executable, "-c", CRAMPED, part], os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    (line,) = child.stdout.splitlines()
    assert line.startswith("DiskSpaceError ")
    assert "could not be written (File too large" in line
    assert "LENS_CACHE" in line
    left = names_in(only_folder(own_cache))
    assert not any(name.startswith(".") for name in left)
    assert any(name.startswith(f"{part}-state-") for name in left)
    assert ("validation.safetensors" in left) == (part == "test")
    steps: list = []
    assert same(long_pass(steps.append), long_pass_moments)
    assert steps[0].done > 256
    assert steps[0].label == f"made up, {part}"
    assert names_in(only_folder(own_cache)) == finished_names(*LONG_PASS_PARTS)
