"""The user's cache: where fetched and converted things live, and how two processes share it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_LOOK_EVERY = 0.1  # seconds between two looks at whether what waits for a lock is still wanted


def cache_folder() -> Path:
    """Root of the cache: `$LENS_CACHE`, else the platform's own place for caches."""
    chosen = os.environ.get("LENS_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("lens", appauthor=False))


@contextmanager
def cache_lock(name: str, check: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the cross-process lock of one cache entry, so that two notebooks never build it twice.

    Args:
        name: of the entry.
        check: called again and again while somebody else holds it; raising from it gives the waiting up.
    """
    from filelock import FileLock, Timeout

    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{name}.lock", timeout=-1 if check is None else _LOOK_EVERY)
    while True:
        try:
            lock.acquire()
            break
        except Timeout:
            assert check is not None  # without it there is no end of waiting
            check()
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache: its kind (`models`, …), name, size in bytes and folder."""

    kind: str
    name: str
    size: int
    path: Path


def cache_entries() -> list[CacheEntry]:
    """All finished entries, sorted by kind and name. Interrupted work is hidden and not listed."""
    root = cache_folder()
    kinds = [k for k in sorted(root.iterdir()) if k.is_dir() and k.name != "locks"] if root.is_dir() else []
    return [
        CacheEntry(kind.name, entry.name, _size(entry), entry)
        for kind in kinds
        for entry in sorted(kind.iterdir())
        if not entry.name.startswith(".")
    ]


def clear_cache() -> int:
    """Delete every entry and what interrupted work left; locks stay, another process may hold one. Returns bytes freed."""
    root = cache_folder()
    folders = [p for p in root.glob("*") if p.is_dir() and p.name != "locks"]
    before = sum(_size(folder) for folder in folders)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return before - sum(_size(folder) for folder in folders if folder.exists())


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
