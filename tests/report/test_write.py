"""The report of a tiny model: one file, nothing loaded, every number the Datasets' own, every hostile text harmless."""

from __future__ import annotations

import base64
import csv
import io
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

import lens
from lens.base.errors import Cancelled, InputError
from lens.figures.report import MOST_BYTES, Report
from lens.probes.linearity import linearity
from lens.report import rotary_section
from lens.report.words import counted
from lens.report.work import Work
from lens.report.write import make_report
from tests.models.families import VOCAB, build

HOSTILE = ("<script>alert(1)</script>", "=cmd|'/c'!A1", "\u202eevil", "</svg><img src=x onerror=alert(1)>", '"><b>', "$x$")


def hostile_tokenizer() -> PreTrainedTokenizerFast:
    """Words that markup, spreadsheets and eyes could take for something else, among ordinary ones."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", *HOSTILE, *(f"w{i}" for i in range(VOCAB - 4 - len(HOSTILE)))]
    raw = Tokenizer(token_models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


class Page(HTMLParser):
    """What a browser would find: tags, addresses, text, and the sections' own text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {"": []}
        self._section = ""
        self.source = text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "section":
            self._section = dict(attrs).get("id") or "notable"
            self.words[self._section] = []

    def handle_data(self, data):
        self.words[self._section].append(data)

    def says(self, section: str) -> str:
        return " ".join(" ".join(self.words[section]).replace("\u00a0", " ").split())

    @property
    def svgs(self) -> list[str]:
        return re.findall(r"<svg.*?</svg>", self.source, flags=re.DOTALL)

    def table(self, name: str) -> list[dict[str, str]]:
        """The file that a link holds."""
        (link,) = [given for tag, given in self.tags if tag == "a" and name in (given.get("download") or "")]
        kind, _, held = str(link["href"]).partition(";base64,")
        assert kind == "data:text/csv;charset=utf-8"
        return list(csv.DictReader(io.StringIO(base64.b64decode(held).decode("utf-8"))))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def texts():
    draws = np.random.default_rng(0).integers(0, 40, (60, 50))
    words = [*HOSTILE, *(f"w{i}" for i in range(34))]
    return lens.corpus(
        [f"{HOSTILE[number % len(HOSTILE)]} " + " ".join(words[k] for k in row) for number, row in enumerate(draws)]
    )


@pytest.fixture(scope="module")
def model():
    module: Any = build("llama")
    module.name_or_path = '<script>"tiny"\u202e</script>'
    return lens.load(module, hostile_tokenizer())


@pytest.fixture(scope="module")
def page(cache, model, texts, tmp_path_factory):
    path = lens.write_report(model, tmp_path_factory.mktemp("page") / "report.html", corpus=texts, tokens=1000)
    return Page(path.read_text(encoding="utf-8"))


SECTIONS = ("checks", "linearity", "rotation", "shortcuts", "early-exit", "residual-spectrum", "attention-spectra", "rotary")


def test_every_section_is_there_and_linked(page):
    assert [given["id"] for tag, given in page.tags if tag == "section" and "id" in given] == list(SECTIONS)
    links = [given["href"] for tag, given in page.tags if tag == "a" and str(given["href"]).startswith("#")]
    assert links == [f"#{anchor}" for anchor in SECTIONS]
    assert all(given.get("class") != "missing" for _, given in page.tags)


def test_nothing_is_loaded_and_nothing_runs(page):
    assert {tag for tag, _ in page.tags} & {"script", "link", "iframe", "img", "object", "embed", "base"} == set()
    assert not [name for _, given in page.tags for name in given if name.startswith("on") or name in ("src", "srcset")]
    for tag, given in page.tags:
        address = given.get("href") or given.get("xlink:href") or "#"
        outside = address.startswith("https://arxiv.org/abs/") and tag == "a"
        assert outside or address.startswith(("#", "data:text/csv", "data:image/png"))
    styles = "".join(re.findall(r"<style>.*?</style>", page.source, flags=re.DOTALL))
    assert "url(" not in styles
    assert "@import" not in styles
    (policy,) = [given["content"] for tag, given in page.tags if given.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy


def test_page_is_small(page):
    assert len(page.source.encode()) < MOST_BYTES / 10


def test_hostile_texts_are_shown_and_do_nothing(page):
    assert "\u202e" not in page.source
    assert "<script" not in page.source
    assert "<img" not in page.source
    assert "<U+202E>" in page.says("attention-spectra") + page.says("")  # the model's name, or the beginning of an article
    assert any(word.split("(")[0] in page.says("attention-spectra") for word in ("<script>alert", "=cmd|", "</svg><img", '"><b>'))


def test_pictures_are_xml_with_names_of_their_own(page):
    names: list[str] = []
    for svg in page.svgs:
        root = ElementTree.fromstring(svg)
        assert root.attrib["viewBox"].split()[:2] == ["0", "0"]
        assert root.attrib["aria-label"]
        own = [part.attrib["id"] for part in root.iter() if "id" in part.attrib]
        used = re.findall(r'(?:url\(|href=")#([^)"]+)', svg)
        assert set(used) == set(own)
        names += own
    assert len(page.svgs) >= 15
    assert len(names) == len(set(names))


def test_colours_of_pictures_belong_to_the_theme(page):
    lines = [svg for svg in page.svgs if 'class="plot"' in svg]
    found = {colour for svg in lines for colour in re.findall(r"#[0-9a-f]{6}\b", re.sub(r'"#[^"]*"|\(#[^)]*\)', "", svg))}
    assert found == set()
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", page.source))
    assert used <= set(re.findall(r"(--[a-z0-9]+):", page.source))


def test_files_hold_the_datasets_own_numbers(page, model, texts):
    moments = lens.collect_moments(model, texts, tokens=1000, pairs="overview", window=64)
    scores = linearity(moments.train, moments.test)
    rows = page.table("linearity")
    assert len(rows) == model.n_layers
    for name in map(str, scores.data_vars):
        np.testing.assert_array_equal([float(row[name]) for row in rows], scores[name].to_numpy().astype(float))


def test_every_file_is_whole_and_safe_for_spreadsheets(page):
    links = [given for tag, given in page.tags if tag == "a" and "download" in given]
    names = [str(given["download"]) for given in links]
    assert len(names) == len(set(names)) >= 8
    for name in names:
        assert re.fullmatch(r"[a-z0-9._-]+\.csv", name)
        rows = page.table(name)
        assert rows
        assert not [cell for row in rows for cell in row.values() if cell.lstrip().startswith(("=", "+", "@"))]


def test_sentences_are_the_numbers(page, model, texts):
    scores = page.table("linearity")
    update = [float(row["score_update"]) for row in scores]
    worst = int(np.argmin(update))
    assert f"Block {worst} is the least linear" in page.says("linearity")
    angles = [float(row["energy_angle"]) for row in page.table("rotation")]
    assert f"Block {int(np.argmax(angles))} turns the states the most, by {max(angles):.1f}°" in page.says("notable")
    heads = page.table("attention")
    shares = np.array([float(row["first_token"]) for row in heads]).reshape(2, -1).mean(0)
    assert counted(int((shares > 0.5).sum()), 12) in page.says("notable")
    theories = page.table("theories")
    met = sum(row["met"] == "True" for row in theories)
    assert f"{met} of {len(theories)} theories of the rotary base are met" in page.says("notable")
    for row in theories:
        assert (f"“{row['theory']}” asks for" in page.says("rotary")) == (row["met"] == "False")


def test_moments_are_those_of_panels_and_notebooks(page, model, texts):
    seen = []
    lens.collect_moments(model, texts, tokens=1000, pairs="overview", window=64, progress=seen.append)
    assert seen == []


def missing(report: Report) -> dict[str, str]:
    return {section.anchor: section.missing for section in report.sections if section.missing}


@pytest.mark.parametrize(
    ("family", "reasons"),
    [
        ("gpt2", {"rotary": "has no rotary position embeddings"}),
        ("falcon-alibi", {"rotary": "No block", "attention-spectra": "adds a bias for each head"}),
    ],
)
def test_a_section_that_does_not_apply_says_why(family: str, reasons: dict[str, str], cache, texts):
    found = missing(make_report(Work(lens.load(build(family), hostile_tokenizer()), texts, 1000)))
    assert found.keys() == reasons.keys()
    for section, reason in reasons.items():
        assert found[section].startswith("Does not apply to this model. ")
        assert reason in found[section]


def test_a_model_without_tokenizer_keeps_what_needs_no_text(texts):
    report = make_report(Work(lens.load(build("llama")), texts, 1000))
    found = missing(report)
    assert list(found) == [section for section in SECTIONS if section not in ("checks", "rotary")]
    assert {reason.partition(" Needed")[0] for reason in found.values()} == {"Not measured. LlamaForCausalLM has no tokenizer."}
    assert "theories of the rotary base are met" in report.sections[-1].notable[0]


def test_too_few_tokens_are_one_line_in_each_section_that_needs_them(cache, model, texts):
    found = missing(make_report(Work(model, texts, 32)))
    assert list(found) == ["linearity", "rotation", "shortcuts", "early-exit", "residual-spectrum"]
    assert {reason.partition(".")[0] for reason in found.values()} == {"Not measured"}


def test_each_kind_of_layer_has_its_own_verdict(texts):
    rotary = rotary_section.section(Work(lens.load(build("gemma3-both")), texts, 1000))
    assert [table.name for table in rotary.tables] == [
        f"theories-Gemma3ForCausalLM, {kind}_attention" for kind in ("full", "sliding")
    ]
    assert len(rotary.notable) == 2
    assert rotary.notable[0].startswith("Gemma3ForCausalLM, full_attention: ")
    assert "Frequencies scaled by linear." in rotary.says[0]


def test_places_on_this_machine_are_not_told(model, tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "letters.txt").write_text("w1 w2")
    report = make_report(Work(model, str(tmp_path / "secret" / "letters.txt"), 1000))
    assert "secret" not in " ".join([*report.facts.values(), *missing(report).values()])


def test_wrong_suffix_is_refused_before_a_model_is_opened(tmp_path):
    with pytest.raises(InputError, match="one that ends in .html"):
        lens.write_report("no-such-model-anywhere", tmp_path / "report.pdf")


def test_what_is_stopped_leaves_the_old_page(model, texts, tmp_path):
    target = tmp_path / "report.html"
    target.write_text("before")

    def stop() -> None:
        raise Cancelled()

    with pytest.raises(Cancelled):
        lens.write_report(model, target, corpus=texts, tokens=1000, check=stop)
    assert target.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("some", "told"), [(0, "None of the 12 heads gives"), (1, "One of the 12 heads gives"), (12, "12 of the 12 heads give")]
)
def test_heads_are_counted_in_words(some: int, told: str):
    assert counted(some, 12) == told


def test_a_theory_that_more_than_the_base_decides_is_not_told_as_too_small_a_base(texts):
    """At 128 tokens the kernel of base 10,000 on eight lanes falls below zero, though a smaller base would keep it above."""
    rotary = rotary_section.section(Work(lens.load("three-phase-n3", device="cpu"), texts, 1000))
    assert "“similar beats random” asks for at least 2,775, and is not met by the lanes themselves" in rotary.notable[0]
    assert "“similar beats random, safely” asks for at least 27,754." in rotary.notable[0]
