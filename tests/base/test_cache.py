"""The user's cache: where it is, what is in it, and one builder at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest

from lens.base.cache import CacheEntry, cache_entries, cache_folder, cache_lock, clear_cache
from lens.base.errors import Cancelled
from lens.base.files import atomic_folder

HOLDER = """
from lens.base.cache import cache_lock
with cache_lock("model"):
    print("held", flush=True)
    input()
    print("done", flush=True)
"""
WAITER = """
from lens.base.cache import cache_lock
print("waiting", flush=True)
with cache_lock("model"):
    print("in", flush=True)
"""


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LENS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def put(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def start(script: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_the_environment_chooses_the_folder(root):
    assert cache_folder() == root


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LENS_CACHE", "~/lens")
    assert cache_folder() == tmp_path / "lens"


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_choice_it_is_the_platforms_folder(monkeypatch, value):
    monkeypatch.setenv("LENS_CACHE", value) if value is not None else monkeypatch.delenv("LENS_CACHE", raising=False)
    assert cache_folder() == Path(platformdirs.user_cache_dir("lens", appauthor=False))


def test_no_cache_has_no_entries_and_nothing_to_free(root):
    assert cache_entries() == []
    assert clear_cache() == 0
    assert not root.exists()


def test_entries_are_sorted_and_sized_and_interrupted_work_is_hidden(root):
    put(root / "models" / "b" / "deep" / "weights", 70)
    put(root / "models" / "b" / "config", 30)
    put(root / "models" / "a" / "weights", 5)
    put(root / "models" / ".c-x1y2" / "weights", 999)
    put(root / "corpora" / "news.txt", 7)
    put(root / "locks" / "a.lock", 0)
    assert cache_entries() == [
        CacheEntry("corpora", "news.txt", 7, root / "corpora" / "news.txt"),
        CacheEntry("models", "a", 5, root / "models" / "a"),
        CacheEntry("models", "b", 100, root / "models" / "b"),
    ]


def test_work_in_progress_is_not_an_entry_until_it_is_finished(root):
    with atomic_folder(root / "models" / "a") as temporary:
        put(temporary / "weights", 5)
        assert cache_entries() == []
    assert [entry.name for entry in cache_entries()] == ["a"]


def test_clearing_all_frees_what_was_there(root):
    put(root / "models" / "a" / "weights", 5)
    put(root / "corpora" / "news.txt", 7)
    put(root / "models" / ".b-x1y2" / "weights", 11)
    assert clear_cache() == 23
    assert cache_entries() == []
    assert clear_cache() == 0


def test_clearing_leaves_a_lock_that_somebody_holds(root):
    with cache_lock("a"):
        put(root / "models" / "a" / "weights", 5)
        assert clear_cache() == 5
        assert (root / "locks" / "a.lock").exists()


def test_a_second_process_waits_for_the_lock(root):
    with start(HOLDER) as holder:
        assert holder.stdout.readline() == "held\n"
        with start(WAITER) as waiter:
            assert waiter.stdout.readline() == "waiting\n"
            with pytest.raises(subprocess.TimeoutExpired):
                waiter.wait(timeout=0.5)
            holder.communicate("\n")
            assert waiter.communicate()[0] == "in\n"
        assert (holder.returncode, waiter.returncode) == (0, 0)


def test_a_killed_holder_frees_the_lock(root):
    with start(HOLDER) as holder:
        assert holder.stdout.readline() == "held\n"
        holder.kill()
        holder.wait()
    with cache_lock("model"):
        assert (root / "locks").is_dir()


def test_locks_of_different_names_do_not_wait_for_each_other(root):
    with start(HOLDER) as holder:
        assert holder.stdout.readline() == "held\n"
        with cache_lock("another"):
            assert holder.poll() is None
        holder.communicate("\n")


def test_waiting_for_a_lock_can_be_given_up(root):
    looked = 0

    def check() -> None:
        nonlocal looked
        looked += 1
        if looked == 3:
            raise Cancelled

    with start(HOLDER) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Cancelled), cache_lock("model", check):
            raise AssertionError("two hold it")
        with cache_lock("another", check):  # which nobody holds: there is no waiting, and no look
            assert looked == 3
        holder.communicate("\n")
    with cache_lock("model", check):
        assert looked == 3
