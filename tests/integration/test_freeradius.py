"""The card as the EAP-TLS peer of a server that nobody here wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cards import KINDS, PINS, Card, CardKind
from tests.support.freeradius import authenticate, freeradius
from tests.support.pki import NOW, SERVER_NAME, Authority, KeyKind, client_identity, server_identity
from vmtoken.cards.eap_peer import EapPeer
from vmtoken.cards.profile import StartParameters
from vmtoken.errors import TlsHandshakeFailed, TokenUnavailable

pytestmark = pytest.mark.interop


@pytest.fixture(params=["1.2", "1.3"], ids=lambda version: f"TLS {version}")
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[1024, 200], ids=lambda size: f"fragments of {size}")
def fragment_size(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def server(tmp_path: Path, version: str, fragment_size: int) -> Iterator[int]:
    with freeradius(tmp_path, server_identity(), version, fragment_size) as port:
        yield port


def peer(card: Card, kind: CardKind, fragment_size: int, server_name: str = SERVER_NAME) -> EapPeer:
    parameters = StartParameters(
        time=int(NOW.timestamp()), server_name=server_name, packet_length=fragment_size
    )
    return EapPeer(card.connect(), PINS.user, parameters, t0=kind.options.t0)


@pytest.mark.parametrize("kind", [KINDS[0], KINDS[2]], ids=lambda kind: kind.name)
def test_card_is_accepted_and_has_the_key_of_the_server(
    tmp_path: Path, server: int, fragment_size: int, kind: CardKind
) -> None:
    with kind.card(tmp_path / "elements") as card:
        eap_peer = peer(card, kind, fragment_size)
        outcome = authenticate(server, eap_peer.identity, eap_peer.respond)
        assert outcome.accepted
        assert eap_peer.respond(outcome.eap) is None
        assert eap_peer.session_key().reveal() == outcome.msk
        assert len(outcome.msk) == 64
        eap_peer.close()


@pytest.mark.parametrize("key", [KeyKind.RSA_2048, KeyKind.ECDSA_P384, KeyKind.ED25519])
@pytest.mark.parametrize(("version", "fragment_size"), [("1.2", 1024), ("1.3", 1024)], indirect=True)
def test_other_keys_are_accepted(tmp_path: Path, server: int, key: KeyKind) -> None:
    with KINDS[0].card(tmp_path / "elements", client_identity(key)) as card:
        eap_peer = peer(card, KINDS[0], 1024)
        outcome = authenticate(server, eap_peer.identity, eap_peer.respond)
        assert outcome.accepted
        assert eap_peer.session_key().reveal() == outcome.msk
        eap_peer.close()


@pytest.mark.parametrize(("version", "fragment_size"), [("1.2", 1024), ("1.3", 200)], indirect=True)
def test_card_of_another_ca_is_rejected_and_gives_no_key(
    tmp_path: Path, server: int, fragment_size: int
) -> None:
    stranger = Authority.self_signed("nobody's").issue("web01")
    with KINDS[0].card(tmp_path / "elements", stranger) as card:
        eap_peer = peer(card, KINDS[0], fragment_size)
        outcome = authenticate(server, eap_peer.identity, eap_peer.respond)
        assert not outcome.accepted
        with pytest.raises(TlsHandshakeFailed):
            eap_peer.respond(outcome.eap)
        with pytest.raises(TokenUnavailable, match="6985"):
            eap_peer.session_key()
        eap_peer.close()


@pytest.mark.parametrize(("version", "fragment_size"), [("1.2", 200), ("1.3", 1024)], indirect=True)
def test_server_with_another_name_hears_an_alert(tmp_path: Path, server: int, fragment_size: int) -> None:
    with KINDS[0].card(tmp_path / "elements") as card:
        eap_peer = peer(card, KINDS[0], fragment_size, server_name="other.example")
        outcome = authenticate(server, eap_peer.identity, eap_peer.respond)
        assert not outcome.accepted
        eap_peer.close()
