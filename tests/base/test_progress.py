"""Progress that nobody has to see, and cancelling from another thread."""

from __future__ import annotations

import os
import pickle
import pty
import subprocess
import sys
import termios
import threading

import pytest

from lens.base.errors import Cancelled
from lens.base.progress import CancelToken, Step, quiet, terminal_progress

REPORTER = """
from lens.base.progress import Step, terminal_progress
with terminal_progress() as report:
    for done in range(0, 101, 25):
        report(Step(done, 100, "blocks", "running"))
    report(Step(5_000_000, 5_000_000, "B", "fetching"))
"""


@pytest.mark.parametrize(
    ("done", "total", "share"), [(0, 4, 0.0), (1, 4, 0.25), (4, 4, 1.0), (9, 4, 1.0), (0, 0, 1.0), (0.5, 2, 0.25)]
)
def test_share_is_the_finished_part(done, total, share):
    assert Step(done, total, "blocks", "running").share == share


def test_steps_are_values():
    step = Step(1, 4, "blocks", "running")
    assert pickle.loads(pickle.dumps(step)) == step
    assert quiet(step) is None


def test_a_token_raises_only_after_cancel_and_ever_after():
    token = CancelToken()
    token.check()
    assert not token.cancelled
    token.cancel()
    assert token.cancelled
    for _ in range(2):
        with pytest.raises(Cancelled):
            token.check()


def test_a_token_stops_another_thread():
    token, started, stopped = CancelToken(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        try:
            while True:
                token.check()
        except Cancelled:
            stopped.set()

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    assert started.wait(10)
    assert not stopped.is_set()
    token.cancel()
    assert stopped.wait(10)


def test_no_bar_where_stderr_is_no_terminal(capfd):
    with terminal_progress() as report:
        assert report is quiet
        report(Step(1, 2, "blocks", "running"))
    assert capfd.readouterr() == ("", "")


def test_a_process_with_its_stderr_in_a_pipe_prints_nothing():
    done = subprocess.run([sys.executable, "-c", REPORTER], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_a_terminal_gets_a_bar_for_each_label():
    shown = _under_a_terminal(REPORTER)
    assert "running: 100%" in shown
    assert "100/100" in shown
    assert "fetching: 100%" in shown
    assert "5.00M/5.00M" in shown


def _under_a_terminal(script: str) -> str:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    with subprocess.Popen([sys.executable, "-c", script], stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's way of saying that the other side is closed
        return b""
