from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from guest_agent.cli.trace import handshake_messages
from vmtoken.v1 import tls_service_pb2 as pb

HELLO = bytes.fromhex("16 03 01 00 06 01 00 00 02 aa bb")
SERVER_FLIGHT = bytes.fromhex(
    "16 03 03 00 09 02 00 00 01 cc 0b 00 00 00"  # two messages in one record
    "14 03 03 00 01 01 17 03 03 00 02 de ad"
)


def trace(*steps: tuple[bytes, bytes]) -> str:
    timeline = [pb.TimelineStep(sent_records=sent, received_records=received) for sent, received in steps]
    return handshake_messages(pb.SessionInfo(timeline=timeline))


def test_records_and_messages_are_shown_as_s_client_shows_them() -> None:
    assert trace((HELLO, b""), (b"", SERVER_FLIGHT)).splitlines() == [
        ">>> TLS 1.0, RecordHeader [length 0005]",
        "    16 03 01 00 06",
        ">>> TLS 1.0, Handshake, ClientHello [length 0006]",
        "    01 00 00 02 aa bb",
        "<<< TLS 1.2, RecordHeader [length 0005]",
        "    16 03 03 00 09",
        "<<< TLS 1.2, Handshake, ServerHello [length 0005]",
        "    02 00 00 01 cc",
        "<<< TLS 1.2, Handshake, Certificate [length 0004]",
        "    0b 00 00 00",
        "<<< TLS 1.2, RecordHeader [length 0005]",
        "    14 03 03 00 01",
        "<<< TLS 1.2, ChangeCipherSpec [length 0001]",
        "    01",
        "<<< TLS 1.2, RecordHeader [length 0005]",
        "    17 03 03 00 02",
        "<<< TLS 1.2, Encrypted, the token holds the key [length 0002]",
        "    de ad",
    ]


def test_after_change_cipher_spec_nothing_is_taken_for_clear() -> None:
    finished = bytes.fromhex("16 03 03 00 04 14 00 00 0c")
    lines = trace((bytes.fromhex("14 03 03 00 01 01") + finished, b"")).splitlines()
    assert lines[-2] == ">>> TLS 1.2, Handshake, encrypted, the token holds the key [length 0004]"


def test_alert_is_named() -> None:
    lines = trace((b"", bytes.fromhex("15 03 03 00 02 02 46"))).splitlines()
    assert lines[-2] == "<<< TLS 1.2, Alert, protocol_version [length 0002]"


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_octets_are_shown(sent: bytes, received: bytes) -> None:
    trace((sent, received))
