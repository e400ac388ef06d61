"""Fakes that behave: one a dependency."""
