"""A TLS 1.3 session with a card as the server (draft-urien-tls-se): external PSK with ECDHE."""

from __future__ import annotations

import dataclasses
import re

from cryptography.hazmat.primitives.ciphers.aead import AESCCM

from tests.support.sections import VECTORS
from vmtoken.tls.codes import CipherSuite, ContentType, NamedGroup, ProtocolVersion
from vmtoken.tls.extensions import KeyShareServerHello, OfferedPsks, SelectedPsk
from vmtoken.tls.key_schedule import EarlySecret, finished_verify_data
from vmtoken.tls.messages import (
    ClientHello,
    EncryptedExtensions,
    Finished,
    ServerHello,
    decode_message,
    encode_message,
)
from vmtoken.tls.record import RecordReader, record_protection
from vmtoken.tls.suites import suite_of
from vmtoken.tls.transcript import TranscriptBuffer

PSK = bytes(range(1, 33))
SHARED_SECRET = bytes.fromhex("037E6E633541EC03DB700A28E7DABB74F8E84D4A28E5F024B46F468A7821305D")
"""Both from the head of the file."""

AES_128_GCM = suite_of(CipherSuite.TLS_AES_128_GCM_SHA256)
assert AES_128_GCM is not None
SUITE = dataclasses.replace(AES_128_GCM, aead=AESCCM)
"""TLS_AES_128_CCM_SHA256, which we do not speak: the same but for the mode."""

HEADER_OF_APDU = 5


def test_the_whole_session() -> None:
    to_card, from_card = streams()
    client_records = records(to_card)
    server_records = records(from_card)

    # Hellos in clear
    client_hello, server_hello = client_records[0][5:], server_records[0][5:]
    hello = decode_message(client_hello)
    answer = decode_message(server_hello)
    assert isinstance(hello, ClientHello)
    assert isinstance(answer, ServerHello)
    assert encode_message(hello) == client_hello
    assert encode_message(answer) == server_hello
    assert (answer.version, answer.cipher_suite) == (ProtocolVersion.TLS_1_3, 0x1304)
    assert answer.extensions.find(SelectedPsk) == SelectedPsk(0)
    share = answer.extensions.find(KeyShareServerHello)
    assert share is not None
    assert share.server_share.group == NamedGroup.SECP256R1

    # Binder of the external PSK
    offered = hello.extensions.find(OfferedPsks)
    assert offered is not None
    assert offered.identities[0].identity == b"Client_identity"
    transcript = TranscriptBuffer()
    early = EarlySecret(SUITE, PSK)
    truncated = client_hello[: -hello.binders_length]
    digest = transcript.digest_with(SUITE, truncated)
    assert early.binder(digest, external=True) == offered.binders[0]
    assert early.binder(digest) != offered.binders[0]

    # Handshake keys: EncryptedExtensions, both Finished
    transcript.add(client_hello)
    transcript.add(server_hello)
    handshake = early.handshake_secret(SHARED_SECRET)
    client_secret = handshake.client_traffic_secret(transcript.digest(SUITE))
    server_secret = handshake.server_traffic_secret(transcript.digest(SUITE))
    from_server = record_protection(SUITE, server_secret)
    extensions = take(transcript, *from_server.unprotect(server_records[1]))
    assert extensions == EncryptedExtensions(decode_message(bytes((8, 0, 0, 2, 0, 0)), V13).extensions)
    verify_data = finished_verify_data(SUITE, server_secret, transcript.digest(SUITE))
    assert take(transcript, *from_server.unprotect(server_records[2])) == Finished(verify_data)
    digest = transcript.digest(SUITE)
    from_client = record_protection(SUITE, client_secret)
    verify_data = finished_verify_data(SUITE, client_secret, digest)
    assert take(transcript, *from_client.unprotect(client_records[1])) == Finished(verify_data)

    # Application data
    master = handshake.master_secret()
    from_client = record_protection(SUITE, master.client_traffic_secret(digest))
    from_server = record_protection(SUITE, master.server_traffic_secret(digest))
    said = (ContentType.APPLICATION_DATA, b"hello world!\r\n")
    assert from_client.unprotect(client_records[2]) == said
    assert from_server.unprotect(server_records[3]) == said


V13 = ProtocolVersion.TLS_1_3


def take(transcript: TranscriptBuffer, content_type: int, content: memoryview) -> object:
    assert content_type == ContentType.HANDSHAKE
    transcript.add(bytes(content))
    return decode_message(bytes(content), V13)


def records(stream: bytes) -> list[bytes]:
    reader = RecordReader()
    found = [bytes(record) for record in reader.records(stream)]
    assert reader.held == b""
    return found


def streams() -> tuple[bytes, bytes]:
    """What TLS said to the card and what it answered, out of the APDUs (INS D8: TLS, C0: GET RESPONSE).

    The card's last command before the last answer carries plaintext that the card encrypts: P1 says so.
    """
    to_card, from_card, command = b"", b"", b""
    for direction, octets in apdus():
        if direction == "Tx":
            command = octets
        is_plaintext = octets[HEADER_OF_APDU:].startswith(b"hello") or octets.startswith(b"hello")
        if is_plaintext:
            continue
        if direction == "Tx" and octets[1] == 0xD8:
            to_card += octets[HEADER_OF_APDU:]
        elif direction == "Rx" and command[1] == 0xC0:
            from_card += octets[:-2]
    return to_card, from_card


def apdus() -> list[tuple[str, bytes]]:
    """Direction and octets of each APDU; long ones go on in the next line."""
    text = (VECTORS / "tls-se-psk.txt").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith(("#", "//")))
    found = re.findall(r"^([TR]x):((?:.|\n(?![TR]x))*)", lines, re.MULTILINE)
    return [(direction, bytes.fromhex(re.sub(r"\s", "", octets))) for direction, octets in found]
