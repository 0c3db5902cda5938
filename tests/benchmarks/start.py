"""Cold starts, each in a process of its own, and the memory that they take.

The processes are new, the files are not: after the first round they are in the machine's page cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lens.models.fetch import pull
from tests.benchmarks.measure import GIB, Row

_CLOCK = "import json, time; start = time.perf_counter(); "
_SCRIPTS = {
    "import": _CLOCK + "import lens; print(json.dumps(time.perf_counter() - start))",
    "load": _CLOCK + "import lens; lens.load('smollm2-135m', device='cpu'); print(json.dumps(time.perf_counter() - start))",
    "open": (
        "import lens.models.load, xarray, transformers.models.llama.modeling_llama, transformers.models.auto.tokenization_auto; "
        + _CLOCK
        + "lens.models.load.load('smollm2-135m', device='cpu'); print(json.dumps(time.perf_counter() - start))"
    ),
}
_PULL = """
import json, pathlib, resource, sys
from lens.cli import main
code = main(["pull", "smollm2-135m"])
peak = next(line.split()[1] for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([int(peak) * 1024, child * 1024]))
sys.exit(code)
"""
_PANEL = "import lens; p = lens.panels.LogitLens(); p"
_PICTURE_WITHIN = 300.0


def rows(repeats: int) -> list[Row]:
    """Importing, opening, the first picture, and memory of a kernel and of a first fetch."""
    pull("smollm2-135m")
    seconds = {name: float("inf") for name in _SCRIPTS}
    kernels = []
    for turn in range(repeats + 1):
        found = {name: _answer(script) for name, script in _SCRIPTS.items()}
        kernel = _first_picture()
        if turn:  # The first round only brings the files into memory.
            seconds = {name: min(seconds[name], found[name]) for name in _SCRIPTS}
            kernels.append(kernel)
    picture = min(kernel["seconds"] for kernel in kernels)
    peak = max(kernel["VmHWM"] for kernel in kernels)
    mapped = max(kernel["RssFile"] for kernel in kernels)
    return [
        Row("import lens", seconds["import"]),
        Row("import lens and lens.load, from the cache", seconds["load"]),
        Row("lens.load alone, after the imports", seconds["open"], goal=3, strict=True),
        Row("kernel start to a displayed LogitLens panel", picture, goal=20),
        Row("peak memory of that kernel (VmHWM), mapped weights counted", peak / GIB, goal=1.6, unit="GiB"),
        Row("of it, mapped files at the end (weights and libraries)", mapped / GIB, unit="GiB"),
        *_fetch(),
    ]


def _answer(script: str) -> Any:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _first_picture() -> dict[str, float]:
    """Seconds until the panel's message has arrived and the kernel is idle again; its memory in bytes."""
    start = time.perf_counter()
    with _kernel() as (manager, client):
        shown: list[str] = []

        def note(message: dict[str, Any]) -> None:
            if message["msg_type"] in ("display_data", "execute_result"):
                shown.extend(message["content"]["data"])

        reply = client.execute_interactive(_PANEL, output_hook=note, timeout=_PICTURE_WITHIN)
        seconds = time.perf_counter() - start
        if reply["content"]["status"] != "ok" or "application/vnd.jupyter.widget-view+json" not in shown:
            raise RuntimeError(f"the kernel showed no panel: {reply['content']}")
        return {"seconds": seconds, **_memory(manager.provisioner.pid)}


@contextmanager
def _kernel() -> Iterator[tuple[Any, Any]]:
    from jupyter_client.manager import KernelManager

    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield manager, client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _memory(process: int) -> dict[str, float]:
    with open(f"/proc/{process}/status", encoding="utf-8") as stream:
        fields = dict(line.split(":", 1) for line in stream)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "RssFile")}


def _fetch() -> list[Row]:
    """Peak memory of fetching and converting into an empty cache; nothing where the network is out of reach."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        command = [sys.executable, "-c", _PULL]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"LENS_CACHE": folder}, check=False)
        seconds = time.perf_counter() - start
    if done.returncode:
        print(f"skipped the fetch: {(done.stderr.strip().splitlines() or ['lens pull failed'])[-1]}", flush=True)
        return []
    own, child = json.loads(done.stdout.splitlines()[-1])
    return [
        Row("lens pull into an empty cache: time", seconds),
        Row("lens pull: peak memory of fetching and converting", own / GIB, goal=1.5, unit="GiB", strict=True),
        Row("lens pull: peak memory of pip beside it", child / GIB, unit="GiB"),
    ]
