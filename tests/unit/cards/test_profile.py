"""The octets of the profile, both directions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmtoken.cards.codes import FailureCode, Features, Mode
from vmtoken.cards.profile import (
    FailureExport,
    Fci,
    ProfileData,
    ResultExport,
    ServerExport,
    SessionFacts,
    SessionState,
    StartParameters,
    TicketAnswer,
)
from vmtoken.codec import DecodeError
from vmtoken.iso7816.channel import ApduLimits
from vmtoken.iso7816.tlv import BerTlv, encode_tlv
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, NamedGroup, ProtocolVersion
from vmtoken.tls.key_block import KeyBlock
from vmtoken.token import CertificateMode

TLS_1_2, TLS_1_3 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
SERVER = ServerExport("server.example", (bytes(32), b"\x01" * 32), b"\x30\x00", complete=True)
FACTS = SessionFacts(False, True, NamedGroup.X25519, "h2", b"handle")
STATE = SessionState(TLS_1_3, CipherSuite.TLS_AES_128_GCM_SHA256, 0, 0, 16384, 16384, FACTS)
KEY_BLOCK = KeyBlock(
    TLS_1_3, CipherSuite.TLS_AES_128_GCM_SHA256, SecretBytes(bytes(32)), SecretBytes(b"\x01" * 32), 0, 0
)
VALUES = [
    Fci(b"\x00" * 8, (TLS_1_3, TLS_1_2), ApduLimits(), Features.SOFTWARE | Features.RESUMPTION),
    Fci(b"\xff" * 8, (TLS_1_2,), ApduLimits(65535, 65536), Features(0), max_packet=1500),
    StartParameters(0x3FAA2B6A),
    StartParameters(0, Mode.TOKEN, "a.example", ("h2", "http/1.1"), TLS_1_3, TLS_1_3, b"handle", 1020),
    *(StartParameters(0, certificate=mode) for mode in CertificateMode),
    SERVER,
    STATE,
    SessionState(
        TLS_1_2,
        CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        1,
        1,
        512,
        16384,
        SessionFacts(True, False, None, None, b"h"),
    ),
    FailureExport(FailureCode.SERVER_CERTIFICATE, "why not", b"\x15\x03\x03\x00\x02\x02\x2a", 42, 40),
    FailureExport(FailureCode.OTHER, "ü"),
    TicketAnswer(b"handle", TLS_1_3, 7200, SERVER),
    ProfileData(b"web01", (b"\x30\x01\x00", b"\x30\x00"), (b"\x30\x81\x80" + bytes(128),)),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_survive_the_way_there_and_back(value: Fci) -> None:
    assert type(value).decode(value.encode()) == value


def test_reason_that_is_too_long_is_seen_to_be_cut() -> None:
    whole, long = "a" * 399 + ".", "a" * 400 + "."
    messages = [
        FailureExport.decode(FailureExport(FailureCode.OTHER, text).encode()).message
        for text in (whole, long)
    ]
    assert messages == [whole, "a" * 397 + "..."]


def test_result_survives_the_way_there_and_back() -> None:
    result = ResultExport.decode(ResultExport(KEY_BLOCK, FACTS).encode())
    assert result.facts == FACTS
    assert result.key_block == KEY_BLOCK


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@given(data=st.data())
def test_changed_octets_parse_or_raise_the_decode_error(value: Fci, data: st.DataObject) -> None:
    octets = bytearray(value.encode())
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(octets)))
    for damaged in (bytes(octets), bytes(octets[:cut])):
        try:
            type(value).decode(damaged)
        except DecodeError:
            continue


@pytest.mark.parametrize(
    "kind", [Fci, StartParameters, ServerExport, ResultExport, FailureExport, TicketAnswer]
)
@given(octets=st.binary(max_size=40))
def test_any_octets_parse_or_raise_the_decode_error(kind: type[Fci], octets: bytes) -> None:
    try:
        kind.decode(octets)
    except DecodeError:
        return


def test_fci_of_a_later_profile_is_still_read() -> None:
    template = BerTlv.decode(VALUES[0].encode())  # type: ignore[attr-defined]
    dedicated_name, proprietary = BerTlv.decode_all(template.value)
    longer = encode_tlv(0xA5, proprietary.value + encode_tlv(0x90, b"new"))
    assert Fci.decode(encode_tlv(0x6F, dedicated_name.encode() + longer)) == VALUES[0]


def test_start_with_the_time_alone_is_the_one_of_the_draft() -> None:
    assert StartParameters(0x3FAA2B6A).encode() == bytes.fromhex("3F AA 2B 6A")


@pytest.mark.parametrize(
    ("mode", "octets"),
    [
        (CertificateMode.IF_ASKED, ""),
        (CertificateMode.OPTIONAL, "86 01 01"),
        (CertificateMode.ALWAYS, "86 01 02"),
    ],
)
def test_certificate_mode_is_named_unless_it_is_the_usual_one(mode: CertificateMode, octets: str) -> None:
    assert StartParameters(0, certificate=mode).encode() == bytes(4) + bytes.fromhex(octets)


@pytest.mark.parametrize(
    "octets", ["86 01 03", "86 01 FF", "86 00", "86 02 00 01", "86 01 01 86 01 01", "87 01 00"]
)
def test_start_with_what_the_profile_does_not_name_is_refused(octets: str) -> None:
    with pytest.raises(DecodeError):
        StartParameters.decode(bytes(4) + bytes.fromhex(octets))


def test_certificate_mode_may_be_named_even_if_it_is_the_usual_one() -> None:
    assert StartParameters.decode(bytes(4) + bytes.fromhex("86 01 00")) == StartParameters(0)


@pytest.mark.parametrize("group", [NamedGroup.X25519MLKEM768, 0x9999, None])
def test_groups_have_names(group: int | None) -> None:
    facts = SessionFacts(False, True, group, None, b"h")
    assert facts.group_name in ("X25519MLKEM768", "0x9999", None)


def test_secrets_stay_out_of_reprs() -> None:
    assert "\\x01" not in repr(ResultExport(KEY_BLOCK, FACTS))
