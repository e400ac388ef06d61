from __future__ import annotations

from pathlib import Path

import pytest

from dom0_broker.backends.software.key_shares import KeyShareStock
from tests.support.cards import Card
from tests.support.memory import PythonServer, python_context
from tests.support.pki import NOW, SERVER_NAME
from vmtoken.tls.codes import NamedGroup
from vmtoken.tls.config import DEFAULT_KEY_SHARES
from vmtoken.token import HandshakeStart


def test_ready_shares_are_given_out_once() -> None:
    stock = KeyShareStock()
    stock.prepare()
    stock.prepare()
    given = [stock.take(DEFAULT_KEY_SHARES) for _ in range(3)]
    assert len({share.public for shares in given for share in shares}) == 3 * len(DEFAULT_KEY_SHARES)
    assert all(tuple(share.group for share in shares) == DEFAULT_KEY_SHARES for shares in given)


@pytest.mark.parametrize("groups", [(NamedGroup.SECP256R1,), (NamedGroup.X25519,), ()])
def test_other_groups_get_fresh_shares_and_the_ready_ones_stay(groups: tuple[NamedGroup, ...]) -> None:
    stock = KeyShareStock()
    stock.prepare()
    assert tuple(share.group for share in stock.take(groups)) == groups
    ready = stock._ready
    assert stock.take(DEFAULT_KEY_SHARES) is ready


def test_no_hello_repeats_a_share(card: Card, tmp_path: Path) -> None:
    """With a ticket taken in between, which is when the next ones are made."""
    token = card.token()
    start = HandshakeStart(SERVER_NAME, int(NOW.timestamp()))
    context = python_context(tmp_path)
    shares = set()
    for _ in range(4):
        server = PythonServer(context)
        hello = token.start(start, lambda _: None).client_flight
        _, found, share = hello.rpartition(bytes.fromhex("00 1D 00 20"))  # X25519, 32 octets
        assert found
        shares.add(share[:32])
        step = token.process(server.receive(hello))
        assert step.result is not None
        token.accept_ticket(step.result.session, b"")
    assert len(shares) == 4
    token.close()
