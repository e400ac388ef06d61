"""Every backend runs the suites of this directory: add its kind of card to `tests.support.cards.KINDS`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cards import KINDS, Card, CardKind


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> CardKind:
    chosen: CardKind = request.param
    return chosen


@pytest.fixture(scope="module")
def card(kind: CardKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Card]:
    with kind.card(tmp_path_factory.mktemp("elements")) as card:
        yield card
