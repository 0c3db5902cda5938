"""Opening a model: by name, hub id, folder, GGUF file, or as a live module."""

from __future__ import annotations

import difflib
import os
import re
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import DeviceError, InputError, LensError, ModelNotFoundError, UnsupportedModelError
from lens.base.files import sha256
from lens.base.progress import Progress, terminal_progress
from lens.models.catalogue import NAMED_MODELS, known_names
from lens.models.fetch import pull
from lens.models.gguf import convert_gguf, estimate_gguf_memory, gguf_architecture, library_tokenizer
from lens.models.model import Model
from lens.models.shipped import shipped_models, shipped_record, tokenizer_place

_OPEN: weakref.WeakValueDictionary[tuple[Any, ...], Model] = weakref.WeakValueDictionary()
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load(
    source: str | os.PathLike[str] | nn.Module,
    tokenizer: Any = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "float32",
    device_map: Any = None,
    revision: str | None = None,
    anatomy: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Model:
    """Open a model and prove that it can be read.

    The same name, dtype and device give the same `Model` as long as it is in use. Weights are read
    from safetensors or GGUF only; pickled weights and code from the hub are refused.

    Args:
        source: a name of the catalogue (`smollm2-135m`), a model that comes with the package (`three-phase-n3`), a hub id,
            a folder, a `.gguf` file, or a live transformers module (used as it is: `device`, `dtype`, `device_map` do not apply).
        tokenizer: a tokenizer to use instead of the source's own; needed with a live module for
            working with texts rather than token ids.
        device: where to put the weights; by default CUDA where there is one (under `torchrun`, this
            process's own), else the CPU.
        dtype: of weights and activations, applied while loading, never as a cast afterwards.
        device_map: passed on to transformers (`"auto"` spreads a model over several GPUs).
        revision: commit, tag or branch on the hub.
        anatomy: dotted paths of parts that the search does not find, see `lens.models.anatomy`.
        progress: callback for a download or conversion; by default a bar in a terminal.

    Raises:
        ModelNotFoundError, FetchError, UnsupportedModelError, AnatomyError, DeviceError,
        DiskSpaceError, InputError: each with what was found, what was needed and what to try.
    """
    if isinstance(source, nn.Module):
        return Model(source, tokenizer, anatomy=anatomy, name=str(getattr(source, "name_or_path", "") or ""))
    place, number = require_device(device), _dtype(dtype)
    key = (_identity(str(source)), revision, str(place), number, repr(device_map), repr(anatomy), id(tokenizer))
    known = _OPEN.get(key)
    if known is not None:
        return known
    with terminal_progress() as bar:
        folder, name, version = _locate(str(source), revision, progress or bar)
    options: dict[str, Any] = {"dtype": number, "device_map": device_map or str(place), "revision": revision}
    module = _open(folder, options)
    tokenizer = tokenizer if tokenizer is not None else _open_tokenizer(tokenizer_place(folder), revision)
    model = Model(
        module, tokenizer, name=name, revision=version or getattr(module.config, "_commit_hash", None) or "", anatomy=anatomy
    )
    _OPEN[key] = model
    return model


def _identity(source: str) -> tuple[Any, ...]:
    """What tells one source from another: for files, where they lie and when they were written."""
    path = Path(source).expanduser()
    if source in NAMED_MODELS or source in shipped_models() or not path.exists():
        return (source,)
    files = [path] if path.is_file() else sorted(path.glob("*.json")) + sorted(path.glob("*.safetensors"))
    return (str(path.resolve()), *((file.name, file.stat().st_mtime_ns) for file in files))


def require_device(device: str | torch.device | None) -> torch.device:
    """The device that was asked for, by default the machine's best, after it has computed something.

    Raises:
        DeviceError: no such device, or one that does not answer.
    """
    available = torch.cuda.is_available()
    try:
        chosen = torch.device(device if device is not None else default_device())
    except RuntimeError:
        raise DeviceError(f"The device {device!r}", "a device that torch knows, such as cpu or cuda:0", "device='cpu'") from None
    if chosen.type == "cuda" and (not available or (chosen.index or 0) >= torch.cuda.device_count()):
        raise DeviceError(f"{torch.cuda.device_count()} CUDA devices here", f"{chosen}", "device='cpu'")
    try:
        torch.ones(1, device=chosen).item()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        raise DeviceError(
            f"The device {chosen} does not answer ({_first_line(error)})", "one that computes", "device='cpu'"
        ) from error
    return chosen


def default_device() -> str:
    """CUDA where there is one, and of several the one that a launcher has given to this process; else the CPU."""
    if not torch.cuda.is_available():
        return "cpu"
    own = os.environ.get("LOCAL_RANK")
    # Some launchers show each process its own device only.
    return "cuda" if own is None else f"cuda:{int(own) % torch.cuda.device_count()}"


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise InputError(f"The dtype is {dtype!r}", "float32, bfloat16, float16 or float64", "dtype='float32'")
    return found


def _locate(source: str, revision: str | None, progress: Progress) -> tuple[str, str, str]:
    """Where the files are (folder or hub id), how the model is called, and its version if known."""
    shipped = shipped_models()
    if revision is not None and (source in NAMED_MODELS or source in shipped or Path(source).expanduser().exists()):
        raise InputError(f"A revision ({revision}) of {source}", "a hub id, the only source with revisions", "leaving it out")
    if source in NAMED_MODELS:
        folder = pull(source, progress=progress)
        return str(folder), source, NAMED_MODELS[source].sha256[:12]
    if source in shipped:
        return str(shipped[source]), source, shipped_record(source)["weights_sha256"][:12]
    path = Path(source).expanduser()
    if path.suffix == ".gguf":
        return _expand_gguf(path, progress)
    if path.is_dir():
        _require_complete(path)
        return str(path), path.resolve().name, ""
    near = difflib.get_close_matches(source, [*NAMED_MODELS, *shipped], cutoff=0.6)
    looks_like_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_like_path or (near and "/" not in source):
        raise ModelNotFoundError(
            f"No model {source!r}", f"a known name ({known_names()}), a hub id, a folder or a .gguf file",
            f"lens.load({near[0]!r})" if near else "checking the path",
        )  # fmt: skip
    return source, source, revision or ""


def _expand_gguf(path: Path, progress: Progress) -> tuple[str, str, str]:
    if not path.is_file():
        raise ModelNotFoundError(f"No file {path}", "a .gguf file", "checking the path")
    if gguf_architecture(path) != "llama":
        return str(path), path.stem, ""
    digest = sha256(path)[:12]
    folder = cache_folder() / "models" / f"{path.stem}-{digest}"
    with cache_lock(folder.name):
        if not folder.is_dir():
            convert_gguf(path, folder, progress)
    return str(folder), path.stem, digest


def _require_complete(folder: Path) -> None:
    names = {p.name for p in folder.iterdir()}
    if "config.json" not in names:
        raise ModelNotFoundError(
            f"{folder} has no config.json", "a folder as save_pretrained writes it", "the folder one level deeper"
        )
    if any(name.endswith(".safetensors") for name in names):
        return
    pickled = sorted(name for name in names if name.endswith(_PICKLED))
    if pickled:
        raise UnsupportedModelError(
            f"{folder} holds pickled weights ({pickled[0]})", "safetensors, which cannot run code when opened",
            "model.save_pretrained(folder) in a place where the pickle is trusted",
        )  # fmt: skip
    raise ModelNotFoundError(f"{folder} has no weights", "model.safetensors", "saving the model again, or another folder")


def _open(place: str, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoModelForCausalLM

    import lens.models.three_phase  # noqa: F401  (transformers opens our own family once it is imported)

    if place.endswith(".gguf"):
        options = {**options, "gguf_file": Path(place).name}
        _require_ram(place)
        place = str(Path(place).parent)
    with quiet_transformers(), _translated(place):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            place, trust_remote_code=False, use_safetensors=True, output_loading_info=True, **options
        )
    module, report = loaded
    _require_all_weights(module, report, place)
    return module


def _require_all_weights(module: nn.Module, report: Mapping[str, Any], place: str) -> None:
    """Refuse a checkpoint that does not fill the model: the library would draw what is missing at random."""
    own = {_without_numbers(name) for name, _ in module.named_parameters()}
    extra = sorted(name for name in report["unexpected_keys"] if _without_numbers(name) in own)
    for what, names in (("lacks", sorted(report["missing_keys"])), ("holds more than its configuration says:", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UnsupportedModelError(
                f"{place} {what} {names[0]}{more}", "exactly the weights of its configuration", "saving it again"
            )


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _require_ram(path: str) -> None:
    from lens.models.run import require_memory

    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return  # elsewhere the system itself says when memory is short
    available = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    if available is not None:
        limit = int(available[1]) * 1024
        require_memory("Expanding this GGUF file", estimate_gguf_memory(Path(path)), "a smaller model", limit=limit)


def _open_tokenizer(place: str, revision: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet_transformers():
            if place.endswith(".gguf"):
                return library_tokenizer(Path(place))
            return AutoTokenizer.from_pretrained(place, trust_remote_code=False, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        raise ModelNotFoundError(
            f"{place} has no usable tokenizer ({_first_line(error)})", "the tokenizer's files beside the weights",
            "tokenizer.save_pretrained(folder), or lens.load(module, tokenizer=None) and token ids",
        ) from error  # fmt: skip


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no advice on stderr while loading: nbval compares it, and our errors say the rest."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _translated(place: str) -> Iterator[None]:
    """Turn the library's loading errors into one line with a next step."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise InputError(
            f"The weights in {place} cannot be read ({_first_line(error)})", "whole safetensors files", "fetching them again"
        ) from error
    except OSError as error:
        if isinstance(error, LensError):
            raise
        raise ModelNotFoundError(
            f"No model could be opened from {place!r} ({_first_line(error)})",
            f"a known name ({known_names()}), a reachable hub id, or a folder with config.json and safetensors",
            "checking the spelling and the network, or a local folder",
        ) from error
    except RuntimeError as error:
        found = f"The weights in {place} do not fit its configuration ({_first_line(error)})"
        raise UnsupportedModelError(found, "exactly the weights of its configuration", "saving it again") from error
    except (ValueError, KeyError) as error:
        raise UnsupportedModelError(
            f"{place} is not a causal language model that transformers opens ({_first_line(error)})",
            "a decoder-only architecture of the installed transformers, without code of its own",
            "another model, or lens.load(module, tokenizer)",
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160].rstrip(".")
