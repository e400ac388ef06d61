"""Programs and libraries that a test needs."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

_DIRECTORIES = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"])
"""Those of the environment come first."""


def tool(name: str) -> str:
    """Where a program is."""
    return shutil.which(name, path=_DIRECTORIES) or lacks(name)


def lacks(what: str) -> NoReturn:
    """Skip the test and say why; in CI, which has everything, that is a failure."""
    why = f"{what} is not installed: run `make test`, which says what is missing"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
