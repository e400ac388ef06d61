from __future__ import annotations

from pathlib import Path

import pytest

from dom0_broker.backends.software.backend import SoftwareBackend
from tests.support.cards import NAME, PINS, SEALING_KEY, Card, personalise
from tests.support.pki import client_identity


@pytest.fixture
def backend(tmp_path: Path) -> SoftwareBackend:
    """With one element that has PINs and nothing else."""
    backend = SoftwareBackend(tmp_path / "elements", SEALING_KEY)
    backend.create(NAME, PINS)
    return backend


@pytest.fixture
def card(backend: SoftwareBackend) -> Card:
    """Personalised."""
    issuer = backend.open_issuer(NAME, PINS.operator)
    personalise(issuer, client_identity())
    issuer.close()
    return Card(backend, client_identity())
