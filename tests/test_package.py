"""The package as a whole: what an import costs, what every name resolves to, and what is shipped."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path, PurePosixPath

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
MODULES = sorted(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
    for path in (REPOSITORY / "lens").rglob("*.py")
    if path.name != "__main__.py"
)
HEAVY = {"torch", "transformers", "plotly", "matplotlib", "xarray", "ipywidgets", "anywidget"}
# Room -> what importing all of it must leave alone. `None` stands for `import lens` and nothing more.
LIGHT = {
    None: HEAVY,
    "lens.base": HEAVY,
    "lens.models": {"xarray", "plotly", "matplotlib", "ipywidgets", "anywidget"},
    "lens.probes": {"plotly", "matplotlib", "ipywidgets", "anywidget"},
    "lens.figures": {"torch", "transformers", "ipywidgets", "anywidget"},
    "lens.cli": HEAVY,
}
BINARY = {".png", ".gif", ".jpg", ".webp", ".woff2", ".safetensors", ".nc", ".gguf"}
# A place on a real machine: not the same words inside an address, and not the placeholder "somebody".
MACHINE_PATH = re.compile(r"(?<![\w.:/~-])(?:/(?:home|root|work|Users)|[A-Z]:\\{1,2}Users)[/\\]+(?!somebody\b)\w")
# The name on the package index is someone else's. Split, so that this file does not hold what it looks for.
FOREIGN_INSTALL = re.compile(r"\binstall +" + r"lens\b(?!-laboratory)")


def fresh_python(code: str, *arguments: str) -> object:
    """Run code in a new interpreter where warnings are errors, and return what it prints as JSON."""
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def repository_files() -> list[Path]:
    """Files of the next commit of everything here: tracked ones, and untracked ones that git does not ignore."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git clone")
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listing = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    return [REPOSITORY / name for name in sorted(set(filter(None, listing.split("\0")))) if (REPOSITORY / name).is_file()]


def text_files() -> list[Path]:
    return [path for path in repository_files() if path.suffix not in BINARY]


IMPORT_ALL = """
import importlib, json, sys
import lens
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps(sorted(name.partition(".")[0] for name in sys.modules)))
"""


@pytest.mark.parametrize("room", LIGHT, ids=str)
def test_a_room_brings_in_only_what_it_may(room: str | None):
    wanted = [name for name in MODULES if room and (name == room or name.startswith(f"{room}."))]
    assert wanted or room is None
    loaded = fresh_python(IMPORT_ALL, *wanted)
    assert isinstance(loaded, list)
    assert LIGHT[room] & set(loaded) == set()


RESOLVE = """
import importlib, json, sys, types
import lens

first = {name: getattr(lens, name) for name in lens.__all__}
for name in sys.argv[1:]:
    importlib.import_module(name)
again = {name: getattr(lens, name) for name in lens.__all__}
listed = dir(lens)
print(json.dumps({
    "changed": [name for name in first if first[name] is not again[name]],
    "wrong module": [
        name for name, value in first.items()
        if isinstance(value, types.ModuleType) and value.__name__ not in (f"lens.{name}", f"lens.models.{name}")
    ],
    "hidden submodule": [
        name for name, value in first.items() if not isinstance(value, types.ModuleType) and f"lens.{name}" in sys.modules
    ],
    "not listed": [name for name in lens.__all__ if name not in listed],
    "unknown": [name for name in lens.__all__ if not name.isidentifier()],
}))
"""


def test_every_module_imports_and_no_public_name_is_replaced():
    found = fresh_python(RESOLVE, *MODULES)
    assert isinstance(found, dict)
    assert {fault: names for fault, names in found.items() if names} == {}


def test_public_names_do_not_meet_submodules_of_another_kind():
    submodules = {name.split(".")[1] for name in MODULES if name.count(".") == 1}
    import lens

    functions = {name for name in lens.__all__ if callable(getattr(lens, name))}
    assert functions & submodules == set()


def test_an_unknown_name_is_an_attribute_error():
    import lens

    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lens.no_such_name


def test_import_contracts_hold():
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    done = subprocess.run([command, "--no-cache"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel_members(tmp_path_factory: pytest.TempPathFactory) -> set[PurePosixPath]:
    """Names in a wheel that is built here, without a network and without leaving anything in the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {PurePosixPath(name) for name in archive.namelist()}


def test_wheel_holds_the_package_with_its_data(wheel_members: set[PurePosixPath]):
    needed = {path.relative_to(REPOSITORY).as_posix() for path in repository_files() if path.is_relative_to(REPOSITORY / "lens")}
    assert {name for name in needed if not name.endswith(".py")} >= {
        "lens/figures/token_grid.js",
        "lens/figures/token_grid.css",
        "lens/panels/panel.css",
    }
    assert needed - {str(name) for name in wheel_members} == set()


def test_wheel_holds_nothing_else(wheel_members: set[PurePosixPath]):
    roots = {name.parts[0] for name in wheel_members}
    (metadata,) = (root for root in roots if root.endswith(".dist-info"))
    assert roots == {"lens", metadata}
    assert PurePosixPath(metadata, "licenses", "LICENSE") in wheel_members


def test_no_text_names_a_place_on_a_machine_or_holds_nul():
    faults = []
    for path in text_files():
        content = path.read_bytes()
        place = MACHINE_PATH.search(content.decode("utf-8"))
        if b"\0" in content or place:
            faults.append(f"{path.relative_to(REPOSITORY)}: {place[0] if place else 'NUL'}")
    assert faults == []


def test_no_text_installs_the_foreign_distribution():
    faults = [str(path.relative_to(REPOSITORY)) for path in text_files() if FOREIGN_INSTALL.search(path.read_text("utf-8"))]
    assert faults == []


@pytest.mark.parametrize("text", ["see /home/" + "someone/x", '"C:\\\\Users\\\\' + 'someone"', "(/root/" + "x)", "/work/" + "x"])
def test_machine_paths_are_recognised(text: str):
    assert MACHINE_PATH.search(text)


@pytest.mark.parametrize("text", ["https://example.org/home/x", "docs/work/x", "~/home/x", "/homes/x", "/home/somebody/x"])
def test_addresses_and_placeholders_are_not_machine_paths(text: str):
    assert not MACHINE_PATH.search(text)


def test_constraints_pin_releases_only():
    lines = (REPOSITORY / "binder" / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    assert [line for line in pins if re.match(r"nvidia|cuda|triton", line)] == []
    assert "torch==2.13.0" in pins
