"""One pass shared by two real processes: the same moments as alone, the same bits in both, also after a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import lens
from lens.collect import MomentParts, read_moments
from lens.collect.processes import Processes, current_processes
from lens.corpora import PARTS
from tests.collect.passes import LONG_PASS_PARTS, finished_names, names_in, only_folder, real_pass, same, tensors_of, write_often

ROOT = Path(__file__).parents[2]


def environment(cache: Path) -> dict[str, str]:
    own = {"LENS_CACHE": str(cache), "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | own | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def started(command: list[str], settings: dict[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, *command], env=settings, stdout=-1, stderr=-1, text=True)


def torchrun(cache: Path, out: Path, *texts: Path) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return started([*launcher, "-m", "tests.collect.worker", str(out), *map(str, texts)], environment(cache))


def finish(processes: subprocess.Popen[str]) -> list[str]:
    """Everything that was printed, of processes that end well and have nothing to complain about."""
    out, error = processes.communicate()
    assert (processes.returncode, error) == (0, "")
    return out.splitlines()


def read(out: Path, turn: str, rank: int, names: tuple[str, ...] = LONG_PASS_PARTS) -> MomentParts:
    def part(name: str) -> MomentParts:
        found = [read_moments(out / turn / str(rank) / f"{name}-{part}.safetensors") for part in PARTS]
        return MomentParts(*found, {})  # type: ignore[arg-type]

    whole = part("residual")
    return MomentParts(whole.train, whole.validation, whole.test, {name: part(name) for name in names if name != "residual"})


def assert_close(left: MomentParts, right: MomentParts, relative: float = 1e-6) -> None:
    """Counts, limits and sources exactly; sums as closely as float32 adds up in another order."""
    for name in ("residual", *right.of_blocks):
        for part in PARTS:
            a, b = getattr(left[name], part), getattr(right[name], part)
            assert (a.count, a.dropped, a.source) == (b.count, b.dropped, b.source)
            assert torch.equal(a.limits, b.limits)
            sums = {key: value for key, value in tensors_of(b).items() if key != "limits"}
            for key, value in sums.items():
                if isinstance(key, tuple) and key[0] == "shuffled":
                    continue  # another share of the batches, other partners
                assert (tensors_of(a)[key] - value).norm() <= relative * value.norm()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[str]]:
    """What two undisturbed processes gave, their cache, and what they printed."""
    root = tmp_path_factory.mktemp("shared")
    return root / "cache", root / "out", finish(torchrun(root / "cache", root / "out"))


def test_two_processes_gather_what_one_does(shared: tuple[Path, Path, list[str]], long_pass_moments: MomentParts):
    _, out, _ = shared
    assert_close(read(out, "first", 0), long_pass_moments)


def test_both_processes_get_the_same_bits_at_once_and_later(shared: tuple[Path, Path, list[str]]):
    _, out, _ = shared
    first = read(out, "first", 0)
    assert same(first, read(out, "first", 1))
    assert same(first, read(out, "second", 0))
    assert same(first, read(out, "second", 1))


def test_every_batch_is_run_by_one_process_and_no_second_time(shared: tuple[Path, Path, list[str]]):
    """The second call reads the file in both, so that nothing is reported between the first "done" and the second."""
    cache, _, lines = shared
    of_rank = [[line.split(" ", 2)[2] for line in lines if line.startswith(f"{rank} ")] for rank in (0, 1)]
    for own in of_rank:
        assert own[-2:] == ["first done", "second done"]
        assert len(own) > 40
    assert abs(len(of_rank[0]) - len(of_rank[1])) <= 3
    last = [max(int(line.split()[-1]) for line in own if "train" in line) for own in of_rank]
    assert 19_900 < sum(last) <= 20_000
    assert names_in(only_folder(cache)) == finished_names(*LONG_PASS_PARTS)


def test_killed_worker_and_a_restart_give_the_same_bits(shared: tuple[Path, Path, list[str]], tmp_path: Path):
    """One of the two is struck at a random moment; torchrun stops the other, and the next run goes on."""
    _, undisturbed, _ = shared
    drawn = random.Random()
    victim, strike_at = drawn.choice("01"), drawn.randint(6000, 9000)  # of about 10,000 tokens each
    processes, reached = torchrun(tmp_path / "cache", tmp_path / "out"), {"0": 0, "1": 0}
    assert processes.stdout is not None
    for line in processes.stdout:
        rank, process, *what = line.split()
        reached[rank] = int(what[-1])
        if rank == victim and reached[rank] >= strike_at and min(reached.values()) > 4000:
            time.sleep(drawn.uniform(0, 0.02))
            os.kill(int(process), signal.SIGKILL)
            break
    out, _ = processes.communicate(timeout=60)
    assert processes.returncode != 0
    assert "done" not in out
    states = [name for name in names_in(only_folder(tmp_path / "cache")) if not name.startswith(".")]
    assert {name.rpartition("-")[0] for name in states} == {"train-state-0-of-2", "train-state-1-of-2"}
    lines = finish(torchrun(tmp_path / "cache", tmp_path / "out"))
    starts = [next(int(line.split()[-1]) for line in lines if line.startswith(f"{rank} ")) for rank in (0, 1)]
    assert min(starts) > 1024
    for rank in (0, 1):
        assert same(read(tmp_path / "out", "first", rank), read(undisturbed, "first", 0))
    assert names_in(only_folder(tmp_path / "cache")) == finished_names(*LONG_PASS_PARTS)


@pytest.fixture(scope="session")
def docstrings(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six hundred of the built-in corpus, from all of its parts, for SmolLM2's tokenizer."""
    path = tmp_path_factory.mktemp("docstrings") / "texts.json"
    texts = [document.text for document in lens.corpus("docstrings").documents[::16]]
    path.write_text(json.dumps({"tokenizer": str(smollm2_folder), "texts": texts}), encoding="utf-8")
    return path


def test_two_processes_agree_on_a_real_text(docstrings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache, out, names = tmp_path / "cache", tmp_path / "out", ("residual", "attention")
    finish(torchrun(cache, out, docstrings))
    first = read(out, "first", 0, names)
    for turn, rank in (("first", 1), ("second", 0), ("second", 1)):
        assert same(first, read(out, turn, rank, names))
    assert names_in(only_folder(cache)) == finished_names(*names)
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "alone"))
    write_often(monkeypatch.setattr)
    assert_close(first, real_pass(docstrings))


def test_machines_without_a_common_disk_each_keep_what_is_finished(shared: tuple[Path, Path, list[str]], tmp_path: Path):
    """Two machines of one process each, as their environments tell them; here they differ in their cache only."""
    _, undisturbed, _ = shared
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launched = []
    for rank in ("0", "1"):
        group = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = ["-m", "tests.collect.worker", str(tmp_path / "out")]
        launched.append(started(command, environment(tmp_path / f"cache-{rank}") | group))
    for rank, process in enumerate(launched):
        lines = finish(process)
        assert [line.split(" ", 2)[2] for line in lines[-2:]] == ["first done", "second done"]
        assert same(read(tmp_path / "out", "first", rank), read(undisturbed, "first", rank))
        assert names_in(only_folder(tmp_path / f"cache-{rank}")) == finished_names(*LONG_PASS_PARTS)


def test_a_torchrun_and_a_notebook_take_turns(tmp_path: Path):
    """Whoever comes first gathers, the other reads: alone or shared, their sums would differ in the last bits."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    both = torchrun(cache, out), started(["-m", "tests.collect.worker", str(out)], environment(cache) | {"RANK": "9"})
    steps = [sum("train" in line for line in finish(process)) for process in both]
    assert min(steps) == 0 < max(steps)
    first = read(out, "first", 9)
    for turn, rank in (("second", 9), ("first", 0), ("first", 1)):
        assert same(first, read(out, turn, rank))
    assert names_in(only_folder(cache)) == finished_names(*LONG_PASS_PARTS)


# -- one process ----------------------------------------------------------------------------------


@pytest.mark.parametrize("left_over", [{}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": "4", "RANK": "1"}])
def test_outside_of_a_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch, left_over: dict[str, str]):
    """Batch systems set some of the variables for programs that do not share their work."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left_over.items():
        monkeypatch.setenv(name, value)
    assert current_processes() == Processes(rank=0, count=1, local_rank=0)


def test_a_torchrun_of_one_is_one_process(tmp_path: Path):
    code = "from lens.collect.processes import current_processes; import torch.distributed as group; "
    code += "print(current_processes(), group.is_initialized())"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1", "--no-python"]
    lines = finish(started([*launcher, sys.executable, "-c", code], environment(tmp_path)))
    assert lines == ["Processes(rank=0, count=1, local_rank=0) False"]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_disjoint_and_whole(count: int):
    items = list(range(20))
    shares = [Processes(rank, count).share(items) for rank in range(count)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
