"""Everything that ever leaves the element in real sessions, searched for what must not leave it."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from dom0_broker.tls_client import handshake
from tests.fakes.card import RecordingCard
from tests.support.cards import PINS, Card
from tests.support.memory import PythonServer, python_context
from tests.support.pki import NOW, SERVER_NAME, client_identity
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.events import TicketReceived
from vmtoken.token import HandshakeResult, HandshakeStart

MAY_LEAVE = ("CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0")
"""The key block of TLS 1.3."""


@pytest.fixture
def key_log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    logging_config = functools.partial(handshake.ClientConfig, key_log=lines.append)
    monkeypatch.setattr(handshake, "ClientConfig", logging_config)
    return lines


def session(
    token: EapTlsCard, context: ssl.SSLContext, resumption: bytes | None
) -> tuple[HandshakeResult, bytes]:
    """A handshake; what follows it is a ticket in TLS 1.3."""
    server = PythonServer(context)
    step = token.start(
        HandshakeStart(SERVER_NAME, int(NOW.timestamp()), resumption=resumption), lambda _: None
    )
    while step.result is None:
        step = token.process(server.receive(step.client_flight))
    after = server.receive(step.client_flight)
    guest = DelegatedConnection(step.result.key_block)
    guest.receive_data(after)
    event = guest.next_event()
    return step.result, bytes(event.message) if isinstance(event, TicketReceived) else b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_only_the_key_block_leaves(
    card: Card, tmp_path: Path, key_log: list[str], version: ssl.TLSVersion
) -> None:
    connection = RecordingCard(card.connect())
    token = EapTlsCard(connection, PINS.user)
    context = python_context(tmp_path, version=version)
    result, ticket = session(token, context, None)
    resumption = token.accept_ticket(result.session, ticket)
    assert resumption is not None
    resumed, _ = session(token, context, resumption.handle)
    assert resumed.resumed
    token.close()

    answers = b"".join(answer[:-2] for _, answer in connection.exchanges)
    secrets = {label: bytes.fromhex(secret) for label, _, secret in (line.split() for line in key_log)}
    assert len(secrets) >= (1 if version is ssl.TLSVersion.TLSv1_2 else 5)
    found = {label for label, secret in secrets.items() if secret in answers}
    assert found == (set() if version is ssl.TLSVersion.TLSv1_2 else set(MAY_LEAVE))
    key = client_identity().key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.private_numbers().private_value.to_bytes(32, "big") not in answers
    assert PINS.user.reveal() not in answers
