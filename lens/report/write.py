"""The report: sections in their order, each with its reason where there is nothing to say, in one file."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lens.base.errors import Cancelled, InputError, LensError, UnsupportedModelError
from lens.base.files import atomic_file
from lens.base.progress import Progress, terminal_progress
from lens.base.provenance import library_versions
from lens.corpora import Corpus
from lens.figures.report import Report, Section, report_page
from lens.models.catalogue import NAMED_MODELS
from lens.models.load import load
from lens.models.model import Model
from lens.models.shipped import shipped_models
from lens.report import (
    attention_section,
    exit_section,
    linearity_section,
    model_section,
    rotary_section,
    rotation_section,
    shortcuts_section,
    spectrum_section,
)
from lens.report.work import Work


@dataclass(frozen=True)
class _Chapter:
    anchor: str
    title: str
    section: Callable[[Work], Section]


_CHAPTERS = (
    _Chapter("checks", "Self-checks", model_section.section),
    _Chapter("linearity", "Linearity of the blocks", linearity_section.section),
    _Chapter("rotation", "Rotation from layer to layer", rotation_section.section),
    _Chapter("shortcuts", "Linear shortcuts", shortcuts_section.section),
    _Chapter("early-exit", "Early exit", exit_section.section),
    _Chapter("residual-spectrum", "Spectra of the residual stream", spectrum_section.section),
    _Chapter("attention-spectra", "Spectra of attention", attention_section.section),
    _Chapter("rotary", "Rotary positions", rotary_section.section),
)


def write_report(
    model: Model | str,
    path: Path | str,
    *,
    corpus: Corpus | str = "wikipedia",
    tokens: int = 20_000,
    device: str | None = None,
    dtype: str = "float32",
    progress: Progress | None = None,
    check: Callable[[], None] | None = None,
) -> Path:
    """One self-contained page about a model: self-checks, linearity, rotation, shortcuts, early exit, spectra, rotary settings.

    A section that does not apply, or whose computation ends in a `LensError`, says why in one line; the others stand. Moments
    and shortcuts are kept in the cache, and are those of panels and notebooks with the same settings.

    Args:
        model: a `lens.Model`, or anything `lens.load` takes.
        path: where to; ends in `.html`.
        corpus: a `lens.Corpus`, or anything `lens.corpus` takes; of texts in the language of the model.
        tokens: how many to fit on; more than the model is wide.
        device, dtype: of a model that is opened here, as for `lens.load`.
        progress: callback; by default bars in a terminal.
        check: called before every block and between pieces of arithmetic; raising from it stops.

    Returns:
        The path. The page has at most 5 MB, loads nothing and runs nothing.

    Raises:
        InputError: another suffix. ModelNotFoundError and others: the model cannot be opened, see `lens.load`.
    """
    target = Path(path)
    if target.suffix != ".html":
        raise InputError(f"The file name {target.name!r} ends in {target.suffix!r}", "one that ends in .html", "report.html")
    opened = model if isinstance(model, Model) else load(model, device=device, dtype=dtype, progress=progress)
    work = Work(opened, corpus, tokens, progress, check)
    page = report_page(make_report(work, "" if isinstance(model, Model) else _command(model, work, device, dtype)))
    with atomic_file(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def make_report(work: Work, command: str = "") -> Report:
    """The report before it is a page.

    Args:
        work: model and text.
        command: that makes it again, "" where none does.
    """
    start = time.perf_counter()
    sections = []
    with terminal_progress() as bar:
        for done, chapter in enumerate(_CHAPTERS):
            work.step(done, len(_CHAPTERS), "sections", "report", bar)
            sections.append(_made(chapter, work))
        work.step(len(_CHAPTERS), len(_CHAPTERS), "sections", "report", bar)
    facts = _facts(work, command) | {"computed in": f"{time.perf_counter() - start:.0f} s"}
    return Report(work.model.name, f"{_known_as(work.model)}a report by lens", facts, sections)


def _made(chapter: _Chapter, work: Work) -> Section:
    try:
        return chapter.section(work)
    except Cancelled:
        raise
    except UnsupportedModelError as error:  # what to try would be another model, which is no help here
        return Section(chapter.anchor, chapter.title, missing=f"Does not apply to this model. {error.found}.")
    except LensError as error:
        return Section(chapter.anchor, chapter.title, missing=f"Not measured. {error}")


def _command(name: str, work: Work, device: str | None, dtype: str) -> str:
    """What makes the page again; of a place on this machine only its last part."""
    words = ["lens", "report", Path(name).name if Path(name).exists() else name, "--corpus", work.corpus_name]
    words += ["--tokens", str(work.tokens), "--dtype", dtype, *(() if device is None else ("--device", device))]
    return shlex.join([*words, "-o", "report.html"])


def _source(model: Model) -> str:
    """Where the weights are from, as far as that is known."""
    known = NAMED_MODELS.get(model.name)
    if known is not None:
        return f"{known.hub_id}, {known.hub_file}, SHA-256 {known.sha256}"
    return "comes with the package" if model.name in shipped_models() else ""


def _known_as(model: Model) -> str:
    known = NAMED_MODELS.get(model.name)
    return "" if known is None else f"{known.title}, {known.licence} · "


def _facts(work: Work, command: str) -> dict[str, str]:
    """What the page was made of and with."""
    model = work.model
    facts = {
        "model": model.name,
        "source": _source(model),
        "revision": model.revision,
        "fingerprint": model.fingerprint,
        "edits": "; ".join(model.edits),
        "dtype, device": f"{model.dtype_name} on {model.device}",
        "corpus": f"{work.corpus_name}, {work.tokens:,} tokens to fit on",
        "versions": ", ".join(f"{name.removesuffix('_version')} {version}" for name, version in library_versions().items()),
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
    }
    return {name: fact for name, fact in facts.items() if fact}
