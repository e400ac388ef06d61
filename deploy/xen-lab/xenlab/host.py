"""Programs of the host: run with a time limit, and known to be there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from xenlab import recipe
from xenlab.errors import LabError, LabUnavailable


def require() -> None:
    """Raise LabUnavailable, with what to do, when this machine cannot build and run the lab."""
    missing = {package for program, package in recipe.HOST_PROGRAMS.items() if not shutil.which(program)}
    if missing:
        raise LabUnavailable(f"the Xen lab needs: apt-get install {' '.join(sorted(missing))}")
    if os.geteuid() != 0:
        raise LabUnavailable("the Xen lab builds root file systems: run it as root")


def run(command: Sequence[str | Path], *, seconds: float = 300) -> str:
    """Run a program to its end and give what it printed; LabError shows the end of what it said."""
    try:
        ended = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{command[0]} did not end within {seconds:.0f} s") from error
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip()[-3000:]
        raise LabError(f"{command[0]} failed with exit code {ended.returncode}: {said}")
    return ended.stdout
