"""Writing files so that an interruption leaves either the old content or the new, never a half.

Everything is written beside its target under a temporary name, flushed, then renamed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lens.base.errors import DiskSpaceError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_file(target: Path | str) -> Iterator[Path]:
    """Give a temporary path; on a clean exit it replaces `target`, on an exception it is removed.

    Raises:
        DiskSpaceError: no room left while it was written; what was there before still is.
    """
    target = Path(target)
    with _room_for(target.name), _temporary_file(target) as temporary:
        yield temporary


@contextmanager
def _temporary_file(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because writers choose their format by it.
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-", suffix=target.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: Path | str) -> Iterator[Path]:
    """Give a temporary folder that becomes `target` on a clean exit. `target` must not exist yet.

    Raises:
        DiskSpaceError: no room left while it was written.
    """
    target = Path(target)
    with _room_for(target.name), _temporary_folder(target) as temporary:
        yield temporary


@contextmanager
def _temporary_folder(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _flush(path)
        os.chmod(temporary, 0o777 & ~_umask())
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _room_for(name: str) -> Iterator[None]:
    """Say in one line that a disk is full."""
    try:
        yield
    except Exception as error:
        reason = _lacking_room(error)
        if reason is None:
            raise
        hint = "freeing space, or a folder on a larger disk (LENS_CACHE moves the cache); what was finished is kept"
        raise DiskSpaceError(f"{name} could not be written ({reason})", "room on the disk", hint) from error


def _lacking_room(error: Exception) -> str | None:
    """Why a disk took no more, or None for any other error. safetensors reports the system's errors as one of its own."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _NO_ROOM else None
    if type(error).__name__ != "SafetensorError":
        return None
    reason = str(error).rpartition("I/O error: ")[2]
    return reason if any(f"os error {number})" in reason for number in _NO_ROOM) else None


def sha256(path: Path | str) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_space(folder: Path | str, needed: int, purpose: str) -> None:
    """Refuse before writing when `folder`'s disk has fewer than `needed` bytes free.

    Raises:
        DiskSpaceError: with both figures.
    """
    existing = Path(folder)
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskSpaceError(
            f"{free / 1e6:.0f} MB free in {folder}",
            f"{needed / 1e6:.0f} MB for {purpose}",
            "freeing space, or setting LENS_CACHE to a folder on a larger disk",
        )


def _flush(path: Path) -> None:
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
