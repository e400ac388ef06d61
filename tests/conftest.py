"""Fixtures and rules for every test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("vmtoken", deadline=None)  # a machine with other work to do is no defect
settings.load_profile("vmtoken")
