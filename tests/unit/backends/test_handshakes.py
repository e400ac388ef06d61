"""Handshakes that OpenSSL 3.0 does not know, with hybrid groups and ML-DSA; cards that are cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from OpenSSL import SSL

from tests.support.cards import KINDS, Card
from tests.support.memory import PyOpenSslServer, PythonServer, pyopenssl_context, python_context
from tests.support.pki import KeyKind, client_identity, server_identity
from tests.support.token_sessions import connect, start
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.errors import TokenUnavailable
from vmtoken.token import HandshakeFailed


@pytest.mark.parametrize("client", [kind for kind in KeyKind if kind is not KeyKind.RSA_PSS_2048])
def test_every_key_signs_for_openssl_4(tmp_path: Path, client: KeyKind) -> None:
    with KINDS[0].card(tmp_path / "elements", client_identity(client)) as card:
        token = card.token()
        server = PyOpenSslServer(pyopenssl_context(tmp_path))
        assert connect(token, server).result.group == "X25519MLKEM768"
        token.close()


@pytest.mark.parametrize("kind", KeyKind)
def test_every_server_key_is_verified(tmp_path: Path, card: Card, kind: KeyKind) -> None:
    token = card.token()
    connect(
        token, PyOpenSslServer(pyopenssl_context(tmp_path, server_identity(kind), version=SSL.TLS1_3_VERSION))
    )
    token.close()


def test_reset_between_two_flights_ends_the_handshake(card: Card, tmp_path: Path) -> None:
    """Somebody else reset the card: PIN and application are gone, and so is the token."""
    connection = card.connect()
    token = EapTlsCard(connection, card.pins.user)
    server = PythonServer(python_context(tmp_path))
    records = server.receive(token.start(start(), lambda _: None).client_flight)
    connection.reset()
    with pytest.raises((TokenUnavailable, HandshakeFailed)):
        token.process(records)
    fresh = card.token()
    assert connect(fresh, python_context(tmp_path)).result.client_certificate_sent
    fresh.close()


def cut_off(card: Card, apdus: int) -> EapTlsCard:
    """A token whose card is gone after so many APDUs."""
    return EapTlsCard(_Vanishing(card, apdus), card.pins.user)


class _Vanishing:
    def __init__(self, card: Card, apdus: int) -> None:
        self._connection = card.connect()
        self._left = apdus

    def transmit(self, command: bytes) -> bytes:
        if self._left == 0:
            raise TokenUnavailable("the card was removed")
        self._left -= 1
        return self._connection.transmit(command)

    def reset(self) -> None: ...

    def close(self) -> None:
        self._connection.close()


def test_card_that_is_removed_at_any_apdu_is_unavailable(card: Card, tmp_path: Path) -> None:
    context = python_context(tmp_path)
    outcomes = []
    for apdus in range(60):
        try:
            token = cut_off(card, apdus)
            result = connect(token, context).result
        except TokenUnavailable:
            outcomes.append("unavailable")
            continue
        outcomes.append("done")
        assert result.client_certificate_sent
        token.close()
    assert outcomes[0] == "unavailable"
    assert outcomes[-1] == "done"
    assert outcomes == sorted(outcomes, reverse=True)
