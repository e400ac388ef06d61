"""The tests marked `xen`, in a lab of their own, with a time limit and results in files."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from xenlab import images, snapshot
from xenlab.errors import LabError
from xenlab.product import REPOSITORY

RESULTS = images.BUILD / "results"
"""Where `junit.xml`, `report.txt` and the consoles are after a run."""

SUITE_WITHIN = 3000.0
"""Seconds for the whole suite: a suite that needs more hangs, or wants to be made faster."""


def run(arguments: Sequence[str]) -> int:
    """Build what is old and run the tests; gives pytest's exit code."""
    snapshot.of(images.build())
    RESULTS.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "xen and not long",
        "--xen-lab",
        "--override-ini=testpaths=tests/xen",
        f"--junitxml={RESULTS / 'junit.xml'}",
    ]
    pytest = subprocess.Popen(
        ["setpriv", "--pdeathsig=TERM", *command, *arguments],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    timer = _after(SUITE_WITHIN, pytest)
    try:
        return _report(pytest)
    finally:
        timer.cancel()
        _end(pytest)


def _report(pytest: subprocess.Popen[bytes]) -> int:
    """Copy what pytest says to the terminal and to the report, as it says it."""
    assert isinstance(pytest.stdout, io.BufferedReader)
    with (RESULTS / "report.txt").open("wb") as report:
        while text := pytest.stdout.read1():
            report.write(text)
            sys.stdout.buffer.write(text)
            sys.stdout.buffer.flush()
    code = pytest.wait()
    if code == -signal.SIGKILL:
        raise LabError(f"the suite did not end within {SUITE_WITHIN:.0f} s")
    return code


def _after(seconds: float, pytest: subprocess.Popen[bytes]) -> threading.Timer:
    timer = threading.Timer(seconds, lambda: os.killpg(pytest.pid, signal.SIGKILL))
    timer.daemon = True
    timer.start()
    return timer


def _end(pytest: subprocess.Popen[bytes]) -> None:
    """Let pytest take its lab down, when we are told to end before it did."""
    if pytest.poll() is None:
        os.killpg(pytest.pid, signal.SIGINT)
        try:
            pytest.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(pytest.pid, signal.SIGKILL)
