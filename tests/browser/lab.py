"""A Chromium and a JupyterLab of their own, for tests and for measuring."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
START = 120  # seconds until JupyterLab must answer
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
}


class MissingError(Exception):
    """What this machine lacks."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser.

    Raises:
        MissingError: no Chromium, or no playwright.
    """
    try:
        from playwright import sync_api
    except ImportError:
        raise MissingError("playwright is not installed") from None
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        raise MissingError(f"none of {', '.join(BROWSERS)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: where it answers, and the folder that it shows."""

    url: str
    token: str
    folder: Path

    def address(self, notebook: str) -> str:
        return f"{self.url}/lab/tree/{notebook}?reset&token={self.token}"


@contextmanager
def jupyterlab(home: Path) -> Iterator[Lab]:
    """A JupyterLab that shows `home / "notebooks"`, which must be there, and keeps its own settings beside it."""
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    lab = Lab(f"http://127.0.0.1:{_free_port()}", secrets.token_hex(16), home / "notebooks")
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(_command(lab), env=_environment(home), stdout=log, stderr=log, start_new_session=True)
        try:
            _wait_for(lab, process, home / "log")
            yield lab
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command(lab: Lab) -> list[str]:
    return [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
        f"--port={lab.url.rpartition(':')[2]}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={lab.token}",
        f"--ServerApp.root_dir={lab.folder}", "--LabApp.expose_app_in_browser=True", "--LabApp.collaborative=False",
    ]  # fmt: skip


def _environment(home: Path) -> dict[str, str]:
    own = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "JUPYTER_CONFIG_DIR": "config",
           "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}  # fmt: skip
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **{name: str(home / folder) for name, folder in own.items()}}


def _wait_for(lab: Lab, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab does not answer:\n{log.read_text()[-3000:]}")


def _stop(process: subprocess.Popen) -> None:
    """End JupyterLab and its kernels: the group is theirs alone."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
