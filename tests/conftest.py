"""Fixtures and rules for every test."""

from __future__ import annotations

import pytest
from hypothesis import settings

settings.register_profile("vmtoken", deadline=None)  # a machine with other work to do is no defect
settings.load_profile("vmtoken")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--xen-lab", action="store_true", help="boot the Xen lab for tests/xen: `make test-xen` does"
    )
