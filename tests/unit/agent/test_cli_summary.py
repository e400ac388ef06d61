from __future__ import annotations

import json

import pytest

from guest_agent.cli.summary import as_json, as_text
from tests.support.pki import KeyKind, server_identity
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2

PLACES = {
    token_pb2.ASSURANCE_SOFTWARE: (
        "stayed in the software element of the broker (no hardware",
        "software element",
    ),
    token_pb2.ASSURANCE_CARD_SIGNATURE: ("stayed in the card", "stayed in the broker"),
    token_pb2.ASSURANCE_CARD_HANDSHAKE: ("stayed in the card", "stayed in the card"),
}


def info(**fields: object) -> pb.SessionInfo:
    facts = {
        "version": token_pb2.TLS_VERSION_1_3,
        "assurance": token_pb2.ASSURANCE_SOFTWARE,
        "cipher_suite": "TLS_AES_128_GCM_SHA256",
        "server_certificate": server_identity().chain_der[0],
        "timeline": [pb.TimelineStep(name="key block", at_microseconds=1500, sent=7, received=11)],
        **fields,
    }
    return pb.SessionInfo(**facts)  # type: ignore[arg-type]


@pytest.mark.parametrize("assurance", PLACES, ids=token_pb2.Assurance.Name)
def test_secrets_are_where_the_assurance_says(assurance: token_pb2.Assurance.ValueType) -> None:
    key, master = PLACES[assurance]
    lines = {line.split(":")[0].strip(): line for line in as_text(info(assurance=assurance)).splitlines()}
    assert key in lines["Private-Key"]
    assert master in lines["Master-Key"]
    assert master in lines["Resumption"]


def test_text_tells_new_from_resumed_and_sums_the_octets() -> None:
    assert "New, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256" in as_text(info())
    assert "Reused, TLSv1.2" in as_text(info(resumed=True, version=token_pb2.TLS_VERSION_1_2))
    assert "SSL handshake has read 11 bytes and written 7 bytes" in as_text(info())


@pytest.mark.parametrize(
    ("kind", "size"),
    [(KeyKind.ECDSA_P384, "384 bit"), (KeyKind.ED25519, "Ed25519"), (KeyKind.RSA_2048, "2048 bit")],
)
def test_server_key_is_named_by_size_or_algorithm(kind: KeyKind, size: str) -> None:
    certificate = server_identity(kind).chain_der[0]
    assert f"Server public key is {size}" in as_text(info(server_certificate=certificate))


def test_json_is_one_line() -> None:
    text = as_json(info(alpn="h2"))
    assert "\n" not in text
    assert json.loads(text)["alpn"] == "h2"
    assert json.loads(text)["timeline"][0]["at_microseconds"] == 1500
