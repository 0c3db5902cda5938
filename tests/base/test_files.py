"""A file or folder is the old one or the new one, whatever interrupts its writing."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lens.base.errors import DiskSpaceError
from lens.base.files import atomic_file, atomic_folder, require_space, sha256

FILE_WRITER = """
import sys, time
from lens.base.files import atomic_file
with atomic_file(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""
FOLDER_WRITER = """
import sys, time
from lens.base.files import atomic_folder
with atomic_folder(sys.argv[1]) as temporary:
    (temporary / "half").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kill_while_writing(script: str, target: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL


@pytest.fixture
def usual_umask():
    former = os.umask(0o022)
    yield
    os.umask(former)


# -- files ----------------------------------------------------------------------------------------


def test_a_clean_exit_replaces_the_file_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    with atomic_file(target) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["a.csv"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_other(tmp_path, stop):
    target = tmp_path / "a.csv"
    target.write_text("old")
    with pytest.raises(stop), atomic_file(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise stop
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.csv"]


def test_an_exception_leaves_no_file_where_there_was_none(tmp_path):
    with pytest.raises(ValueError), atomic_file(tmp_path / "a.csv") as temporary:  # noqa: PT011, PT012
        temporary.write_text("half")
        raise ValueError
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["picture.png", "data.nc", "no-suffix", "two.dots.html", "space and $.svg"])
def test_writers_see_the_targets_suffix_in_the_targets_folder(tmp_path, name):
    with atomic_file(tmp_path / name) as temporary:
        assert temporary.suffix == Path(name).suffix
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
    assert names(tmp_path) == [name]


def test_missing_folders_are_made_and_names_may_be_texts(tmp_path):
    with atomic_file(str(tmp_path / "deep" / "er" / "a.txt")) as temporary:
        temporary.write_text("new")
    assert (tmp_path / "deep" / "er" / "a.txt").read_text() == "new"


def test_a_new_file_is_readable_by_others_as_the_umask_allows(tmp_path, usual_umask):
    with atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o644


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.csv"
    target.write_text("old")
    kill_while_writing(FILE_WRITER, target)
    assert target.read_text() == "old"
    with atomic_file(target) as temporary:
        temporary.write_text("new")
    assert target.read_text() == "new"


# -- folders --------------------------------------------------------------------------------------


def test_a_folder_appears_whole(tmp_path, usual_umask):
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("a")
        assert names(tmp_path) == [temporary.name]
        assert temporary.name.startswith(".")
    assert names(tmp_path) == ["model"]
    assert (tmp_path / "model" / "inner" / "a").read_text() == "a"
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755


def test_an_exception_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError), atomic_folder(tmp_path / "model") as temporary:  # noqa: PT011, PT012
        (temporary / "a").write_text("half")
        raise ValueError
    assert names(tmp_path) == []


def test_a_full_folder_in_the_way_is_kept(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").write_text("old")
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["old"]


def test_a_killed_writer_leaves_no_folder_of_that_name(tmp_path):
    kill_while_writing(FOLDER_WRITER, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert all(name.startswith(".") for name in names(tmp_path))


# -- hash and space -------------------------------------------------------------------------------


def test_sha256_is_the_files_hash(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_enough_space_is_silent_also_for_a_folder_yet_to_be_made(tmp_path):
    require_space(tmp_path / "not" / "there" / "yet", 1, "a byte")


def test_too_little_space_is_refused_with_both_figures(tmp_path):
    with pytest.raises(DiskSpaceError, match=r"\d+ MB free in .*Needed: 1000000000000 MB for the moon") as refusal:
        require_space(tmp_path, 10**18, "the moon")
    assert str(tmp_path) in refusal.value.found
    assert "LENS_CACHE" in refusal.value.hint


# -- a full disk ----------------------------------------------------------------------------------

CRAMPED = """
import resource, sys
import torch
from safetensors.torch import save_file
from lens.base.errors import LensError
from lens.base.files import atomic_file, atomic_folder

def write(path):
    if sys.argv[1] == "text":
        path.write_bytes(bytes(100_000))
    else:
        save_file({"a": torch.zeros(100_000)}, path)

resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
try:
    with atomic_file("file.safetensors") as temporary:
        write(temporary)
except LensError as error:
    print(type(error).__name__, error)
try:
    with atomic_folder("folder") as temporary:
        write(temporary / "part.safetensors")
except LensError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("content", ["text", "tensors"])
def test_a_full_disk_is_one_clear_error_and_keeps_what_was_there(tmp_path, content: str):
    """No file may grow beyond 20 kB, whoever writes it: Python, or the tensor library with an error of its own."""
    (tmp_path / "file.safetensors").write_text("old")
    command = [sys.executable, "-c", CRAMPED, content]
    child = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (child.returncode, child.stderr) == (0, "")
    for line, name in zip(child.stdout.splitlines(), ("file.safetensors", "folder"), strict=True):
        assert line.startswith(f"DiskSpaceError {name} could not be written (File too large")
        assert "LENS_CACHE" in line
    assert names(tmp_path) == ["file.safetensors"]
    assert (tmp_path / "file.safetensors").read_text() == "old"


def test_other_errors_pass_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "a.txt") as temporary:
        (temporary.parent / "missing" / "b").write_text("x")
