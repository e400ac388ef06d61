from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dom0_broker.elements import Elements
from dom0_broker.pins import PinKeeper
from dom0_broker.safe import Safe
from dom0_broker.store import Store, TokenRecord
from tests.support.cards import NAME, SEALING_KEY, CardKind
from vmtoken.clock import SystemClock
from vmtoken.errors import TokenNotFound

CARDS = CardKind("software")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "broker.sqlite")
    yield store
    store.close()


def test_token_that_was_retired_while_somebody_waited_for_it_is_not_there(
    store: Store, tmp_path: Path
) -> None:
    """A pool then goes on to another of its cards."""
    keeper = PinKeeper(store, Safe(SEALING_KEY), SystemClock(), lambda event, fields: None, reserve=1)
    elements = Elements(lambda scheme: CARDS.backend(tmp_path / "elements"), keeper)
    with CARDS.card(tmp_path / "elements"), pytest.raises(TokenNotFound, match="'web' is not there any more"):
        elements.open(TokenRecord("web", f"soft:{NAME}"))
