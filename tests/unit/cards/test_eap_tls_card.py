"""The driver against cards that are plain, odd or hostile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dom0_broker.backends.software.element import ElementOptions
from tests.fakes.card import ScriptedCard
from tests.support.cards import NAME, PINS, CardKind
from vmtoken.cards.codes import AID, Features
from vmtoken.cards.eap_peer import EapPeer
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.cards.profile import Fci, StartParameters
from vmtoken.eap.eap_tls import EapTlsMessage
from vmtoken.eap.packet import EapCode, EapPacket, EapType
from vmtoken.errors import (
    PinBlocked,
    PinMissing,
    PinRejected,
    TlsHandshakeFailed,
    TokenNotReady,
    TokenUnavailable,
    VmTokenError,
)
from vmtoken.iso7816.channel import ApduLimits
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import Assurance, CertificateMode, HandshakeStart

PIN = SecretBytes(b"0000")
START = HandshakeStart("server.example", 0x3FAA2B6A)
SELECT = f"00 A4 04 00 10 {AID.hex()} 00"
FCI = Fci(bytes(8), (ProtocolVersion.TLS_1_3,), ApduLimits(), Features(0)).encode().hex()
OPEN = """
    A0 20 00 00                             > 63 03
    A0 20 00 00 08 30 30 30 30 FF FF FF FF  > 90 00
    A0 17 00 02 00                          > 61 62 63 64 90 00
    A0 16 00 80 04 61 62 63 64              > 90 00
"""
PLAIN = f"{SELECT} > 90 00 {OPEN}"
PROFILED = f"{SELECT} > {FCI} 90 00 {OPEN}"
A_START = (
    "A0 80 00 00 1D 01 00 00 06 0D 20 3F AA 2B 6A 80 01 01 81 0E 73 65 72 76 65 72 2E 65 78 61 6D 70 6C 65 00"
)


def nobody(_: object) -> None:
    raise AssertionError("nobody was verified")


def test_plain_card_of_the_draft_is_opened_but_gives_no_token_session() -> None:
    card = ScriptedCard(PLAIN + "A0 1A 00 00 00 > 6D 00")
    token = EapTlsCard(card, PIN)
    description = token.describe()
    assert (description.serial, description.versions, description.application) == ("", (), "EAP-TLS card")
    with pytest.raises(TokenNotReady, match="without our profile"):
        token.start(START, nobody)
    assert token.accept_ticket(b"s", b"") is None


def test_plain_card_leaves_the_client_certificate_to_the_server() -> None:
    card = _Closeable(f"{SELECT} > 90 00")
    with pytest.raises(TokenNotReady, match="client certificate"):
        EapPeer(card, PIN, StartParameters(0, certificate=CertificateMode.ALWAYS))
    assert card.is_closed


def test_certificate_mode_is_told_to_the_card() -> None:
    a_start = A_START.replace("00 00 1D 01", "00 00 20 01").removesuffix(" 00") + " 86 01 02 00"
    card = ScriptedCard(f"{PROFILED}\n{a_start} > 02 00 00 09 0D 00 16 03 03 90 00")
    token = EapTlsCard(card, PIN)
    assert token.start(replace(START, certificate=CertificateMode.ALWAYS), nobody).client_flight
    token.close()


def test_plain_card_serves_an_eap_server() -> None:
    card = ScriptedCard(
        PLAIN
        + """
        A0 80 00 00 05 01 A5 00 05 01 00                 > 02 A5 00 09 01 61 62 63 64 90 00
        A0 80 00 00 0A 01 14 00 06 0D 20 3F AA 2B 6A 00  > 02 14 00 07 0D 00 16 90 00
        A0 80 00 00 04 03 15 00 04 00                    > 90 00
        A0 A6 00 00 40                                   > """
        + "AB" * 64
        + "90 00"
    )
    peer = EapPeer(card, PIN, StartParameters(0x3FAA2B6A, server_name="not for plain cards"))
    assert peer.identity == b"abcd"
    assert peer.respond(bytes.fromhex("01 A5 00 05 01")) == bytes.fromhex("02 A5 00 09 01 61 62 63 64")
    assert peer.respond(bytes.fromhex("01 14 00 06 0D 20")) == bytes.fromhex("02 14 00 07 0D 00 16")
    assert peer.respond(bytes.fromhex("03 15 00 04")) is None
    assert peer.session_key() == SecretBytes(b"\xab" * 64)
    peer.close()


def test_card_of_a_reader_is_what_the_reader_says() -> None:
    assert EapTlsCard(ScriptedCard(PROFILED), PIN).assurance is Assurance.CARD_HANDSHAKE


def test_card_that_says_to_be_software_is_believed() -> None:
    fci = Fci(bytes(8), (), ApduLimits(), Features.SOFTWARE).encode().hex()
    token = EapTlsCard(ScriptedCard(f"{SELECT} > {fci} 90 00 {OPEN}"), PIN)
    assert token.assurance is Assurance.SOFTWARE


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (f"{SELECT} > 6A 82", TokenUnavailable),
        (f"{SELECT} > 6F 00", TokenUnavailable),
        (f"{SELECT} > 6F 02 84 00 90 00", TokenUnavailable),
        (f"{SELECT} > 90 00\nA0 20 00 00 > 69 83", PinBlocked),
        (f"{SELECT} > 90 00\nA0 20 00 00 > 63 01", PinBlocked),
        (f"{SELECT} > 90 00\nA0 20 00 00 > 6D 00", TokenUnavailable),
        (
            f"{SELECT} > 90 00\nA0 20 00 00 > 63 C3\nA0 20 00 00 08 30 30 30 30 FF FF FF FF > 63 C2",
            PinRejected,
        ),
        (f"{SELECT} > 90 00\nA0 20 00 00 > 90 00\nA0 17 00 02 00 > 6A 88", TokenNotReady),
    ],
)
def test_card_that_cannot_be_opened(script: str, error: type[VmTokenError]) -> None:
    card = _Closeable(script)
    with pytest.raises(error):
        EapTlsCard(card, PIN)
    assert card.is_closed


def test_pin_that_nobody_gave() -> None:
    with pytest.raises(PinMissing):
        EapTlsCard(ScriptedCard(f"{SELECT} > 90 00\nA0 20 00 00 > 63 03"), None)


def test_card_without_pin_needs_none() -> None:
    card = ScriptedCard(
        f"{SELECT} > 90 00\nA0 20 00 00 > 90 00\nA0 17 00 02 00 > 61 90 00\nA0 16 00 80 01 61 > 90 00"
    )
    EapTlsCard(card, None).close()


@pytest.mark.parametrize(
    "answer",
    [
        "6F 00",
        "63 03",
        "90 00",
        "00 90 00",
        "01 00 00 06 0D 00 90 00",
        "02 07 00 06 0D 00 90 00",
        "02 00 00 05 01 90 00",
        "02 00 00 0B 0D 80 00 00 00 09 16 90 00",
        "",
    ],
    ids=[
        "6F00", "PIN lost", "nothing", "no EAP", "a request", "another identifier", "another type",
        "a wrong length", "no status",
    ],
)  # fmt: skip
def test_card_that_makes_no_sense_is_unavailable_and_closed(answer: str) -> None:
    card = _Closeable(f"{PROFILED}\n{A_START} > {answer}")
    token = EapTlsCard(card, PIN)
    with pytest.raises(TokenUnavailable):
        token.start(START, nobody)
    assert card.is_closed
    token.close()


def test_card_that_verified_another_server_is_not_believed() -> None:
    card = _Closeable(
        f"""{PROFILED}
        {A_START} > 02 00 00 07 0D 00 16 90 00
        A0 80 00 00 0B 01 01 00 0B 0D 80 00 00 00 01 16 00 > 02 01 00 07 0D 00 17 90 00
        A0 86 00 00 01 86 00 > 80 01 01 81 05 6F 74 68 65 72 82 20 {"00" * 32} 83 02 30 00 90 00
        """
    )
    token = EapTlsCard(card, PIN)
    token.start(START, nobody)
    with pytest.raises(TokenUnavailable, match="another server name"):
        token.process(b"\x16")
    assert card.is_closed


def test_card_that_is_gone_is_unavailable() -> None:
    token = EapTlsCard(_Vanishing(PROFILED), PIN)
    for use in _uses(token):
        with pytest.raises(TokenUnavailable):
            use()


def test_extended_apdus_are_used_where_reader_and_card_have_them(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    kind = CardKind("extended", ElementOptions(extended=True))
    with kind.card(tmp_path_factory.mktemp("extended")) as card:
        token = card.token()
        token.start(START, nobody)
        assert token.traffic.apdus == 1
        token.close()


def _uses(token: EapTlsCard) -> list[Callable[[], object]]:
    return [
        lambda: token.start(START, nobody),
        lambda: token.process(b"\x16"),
        token.abort,
        token.describe,
    ]


class _Closeable(ScriptedCard):
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


class _Vanishing(ScriptedCard):
    """Is pulled out of the reader when its script ends."""

    def transmit(self, command: bytes) -> bytes:
        if self._position == len(self._expected):
            raise TokenUnavailable("the card was removed")
        return super().transmit(command)


@pytest.mark.parametrize("status", ["70 01", "69 85"])
def test_peer_hears_of_the_failure(status: str) -> None:
    peer = EapPeer(ScriptedCard(PLAIN + f"A0 80 00 00 04 04 15 00 04 00 > {status}"), PIN, StartParameters(0))
    with pytest.raises(TlsHandshakeFailed):
        peer.respond(bytes.fromhex("04 15 00 04"))


@pytest.mark.parametrize("status", ["70 00", "69 85"])
def test_packet_that_the_card_discards_has_no_answer(status: str) -> None:
    script = PLAIN + f"A0 80 00 00 06 01 15 00 06 0D 00 00 > {status}"
    peer = EapPeer(ScriptedCard(script), PIN, StartParameters(0))
    assert peer.respond(bytes.fromhex("01 15 00 06 0D 00")) is None


def test_peer_without_personalisation_says_so(tmp_path: Path) -> None:
    backend = CardKind("bare").backend(tmp_path)
    backend.create(NAME, PINS)
    backend.open_issuer(NAME, PINS.operator).close()
    peer = EapPeer(backend.connect(NAME), PINS.user, StartParameters(0, server_name="server.example"))
    with pytest.raises(TokenNotReady, match="no certificate"):
        peer.respond(bytes.fromhex("01 14 00 06 0D 20"))
    peer.close()


@pytest.mark.parametrize(
    "flight",
    [
        "17 03 03 00 01 00",
        "16 03 03 00 04 0B 00 00 00",
        "16 03 03 00 04 01 00 00 00 17 03 03 00 01 00",
        "16 03 03 00 08 01 00 00 00 0B 00 00 00",
        "14 03 03 00 01 01 17 03 03 00 01 00",
    ],
    ids=["protected", "Certificate", "a record too many", "a message too many", "behind change_cipher_spec"],
)
def test_flight_for_a_server_that_nobody_verified_stays_here(flight: str) -> None:
    octets = bytes.fromhex(flight)
    answer = EapPacket(EapCode.RESPONSE, 1, EapType.EAP_TLS, EapTlsMessage(octets).encode()).encode()
    card = _Closeable(
        f"""{PROFILED}
        {A_START} > 02 00 00 07 0D 00 16 90 00
        A0 80 00 00 0B 01 01 00 0B 0D 80 00 00 00 01 16 00 > {answer.hex()} 90 00
        A0 86 00 00 01 86 00 > 69 85
        """
    )
    token = EapTlsCard(card, PIN)
    token.start(START, nobody)
    with pytest.raises(TokenUnavailable, match="without saying which"):
        token.process(b"\x16")
    assert card.is_closed
