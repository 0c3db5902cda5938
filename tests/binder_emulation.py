"""Build the repository as Binder does, run the first notebook, and measure what it takes.

    python tests/binder_emulation.py

In a temporary folder: a copy of what git would hand over, a fresh environment, fresh home and cache folders,
`binder/postBuild`, then a Jupyter server and the first notebook, both through `binder/start`. One step of the build is
skipped: torch comes from the package index instead of torch's own CPU index.

Memory is the PSS (proportional set size: private pages plus a fair share of shared ones) summed over every process that
this script has started, sampled ten times a second; the model's memory-mapped weights are in it. Linux only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import venv
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
NOTEBOOK = "notebooks/00-start-here.ipynb"
LIMIT_MB = 2000  # what a public Binder grants a session, in units of a million bytes
INTERVAL = 0.1
# What pip needs to reach a package index from this machine; all else starts from nothing.
KEPT = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "LANG", "LC_ALL", "TMPDIR")


class MemoryWatch(threading.Thread):
    """Samples the memory of this process's descendants; `peak` is the largest sum of PSS seen, in bytes."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0
        self._stop_asked = threading.Event()

    def __enter__(self) -> MemoryWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        """Sample until the watch is left."""
        this = psutil.Process()
        while not self._stop_asked.wait(INTERVAL):
            self.peak = max(self.peak, sum(_pss(child) for child in this.children(recursive=True)))


def _pss(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return 0  # it ended between the listing and the reading


def copy_repository(target: Path) -> None:
    """Copy what a commit of everything here would hold: tracked files and untracked ones that git does not ignore."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listing.split("\0")):
        source = REPOSITORY / name
        if source.is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name)


def clean_environment(work: Path) -> dict[str, str]:
    """Environment variables of a fresh user whose `python` is the fresh environment's."""
    kept = {name: value for name, value in os.environ.items() if name.upper() in KEPT or name.startswith("PIP_")}
    folders = {
        "HOME": "home",
        "XDG_CACHE_HOME": "cache",
        "XDG_CONFIG_HOME": "config",
        "XDG_DATA_HOME": "data",
        "LENS_CACHE": "lens",
    }
    for folder in folders.values():
        (work / folder).mkdir()
    return {
        **kept,
        **{name: str(work / folder) for name, folder in folders.items()},
        "PATH": f"{work / 'venv' / 'bin'}{os.pathsep}{os.defpath}",
        "LENS_BINDER_SKIP_TORCH_INDEX": "1",
    }


def megabytes_on_disk(folder: Path) -> float:
    """Disk space that the files under a folder occupy."""
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*")) / 1e6


def open_notebook(clone: Path, environment: dict[str, str], log: Path) -> None:
    """Execute every cell of the first notebook beside an idle Jupyter server; a failing cell raises."""
    with log.open("w") as stream:
        server = subprocess.Popen(
            ["binder/start", "jupyter", "lab", "--no-browser", "--allow-root", "--port=0"],
            cwd=clone,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        subprocess.run(
            ["binder/start", "jupyter", "execute", "--timeout=600", "--startup_timeout=120", NOTEBOOK],
            cwd=clone,
            env=environment,
            check=True,
        )
        if server.poll() is not None:
            raise SystemExit(f"Binder: the Jupyter server ended by itself:\n{log.read_text()}")
    finally:
        server.terminate()
        server.wait(timeout=60)


def main() -> int:
    """Build, run, measure, and print one line. Returns 0 if the notebook stayed below the limit."""
    with tempfile.TemporaryDirectory(prefix="binder-") as folder:
        work = Path(folder)
        clone = work / "repository"
        copy_repository(clone)
        environment = clean_environment(work)

        started = time.perf_counter()
        with MemoryWatch() as build:
            venv.create(work / "venv", with_pip=True)
            subprocess.run(["binder/postBuild"], cwd=clone, env=environment, check=True)
        build_seconds = time.perf_counter() - started
        disk = megabytes_on_disk(work)

        started = time.perf_counter()
        with MemoryWatch() as session:
            open_notebook(clone, environment, work / "server.log")
        notebook_seconds = time.perf_counter() - started

    peak = session.peak / 1e6
    fits = peak < LIMIT_MB
    print(
        f"Binder: build {build_seconds:.0f} s (peak {build.peak / 1e6:.0f} MB), {disk:.0f} MB on disk, "
        f"{NOTEBOOK} {notebook_seconds:.0f} s, peak {peak:.0f} MB of PSS, "
        f"{'below' if fits else 'NOT below'} {LIMIT_MB} MB"
    )
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
