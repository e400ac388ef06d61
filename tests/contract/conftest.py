"""Every backend runs the suites of this directory.

It adds its kinds of card to `tests.support.cards.KINDS`, of key to `tests.support.signing_keys.SIGNING_KEYS`,
and what it opens as a token to `tests.support.tokens.TOKENS`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.cards import EAP_TLS_DIALECT, KINDS, CardKind, Dialect
from tests.support.pcsc import (
    PCSC_KINDS,
    PCSC_PIV_KINDS,
    AnyCard,
    PcscCardKind,
    PcscPivCard,
    PcscPivKind,
)
from tests.support.piv import PIV_DIALECT, PIV_KINDS, PivHolder, PivKind
from tests.support.signing_keys import SIGNING_KEYS, KeyHolder, SigningKeyKind
from tests.support.tokens import TOKENS, TokenHolder, TokenKind

AnyKind = CardKind | PcscCardKind | PivKind | PcscPivKind


@pytest.fixture(
    scope="module", params=(*KINDS, *PCSC_KINDS, *PIV_KINDS, *PCSC_PIV_KINDS), ids=lambda kind: kind.name
)
def kind(request: pytest.FixtureRequest) -> AnyKind:
    chosen: AnyKind = request.param
    return chosen


@pytest.fixture(scope="module")
def card(kind: AnyKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnyCard]:
    with kind.card(tmp_path_factory.mktemp("elements")) as card:
        yield card


@pytest.fixture(scope="module")
def dialect(card: AnyCard) -> Dialect:
    """Commands of the application that the card has."""
    return PIV_DIALECT if isinstance(card, PivHolder | PcscPivCard) else EAP_TLS_DIALECT


@pytest.fixture(scope="module", params=SIGNING_KEYS, ids=lambda kind: kind.name)
def key_holder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KeyHolder]:
    kind: SigningKeyKind = request.param
    with kind.holder(tmp_path_factory.mktemp("keys")) as holder:
        yield holder


@pytest.fixture(scope="module", params=TOKENS, ids=lambda kind: kind.name)
def token_kind(request: pytest.FixtureRequest) -> TokenKind:
    chosen: TokenKind = request.param
    return chosen


@pytest.fixture(scope="module")
def token_holder(token_kind: TokenKind, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenHolder]:
    with token_kind.holder(tmp_path_factory.mktemp("tokens")) as holder:
        yield holder
