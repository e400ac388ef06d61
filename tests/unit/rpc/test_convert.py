"""What crosses the wire comes back as the same value."""

from __future__ import annotations

import pytest

from vmtoken.errors import InvalidRequest
from vmtoken.rpc import convert
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, ProtocolVersion
from vmtoken.tls.key_block import KeyBlock
from vmtoken.token import Assurance


@pytest.mark.parametrize(
    ("version", "suite", "size"),
    [
        (ProtocolVersion.TLS_1_3, CipherSuite.TLS_AES_128_GCM_SHA256, 32),
        (ProtocolVersion.TLS_1_2, CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, 20),
    ],
)
def test_a_key_block_comes_back_as_it_was(version: ProtocolVersion, suite: CipherSuite, size: int) -> None:
    sent = KeyBlock(
        version=version,
        cipher_suite=suite,
        client_secret=SecretBytes(b"c" * size),
        server_secret=SecretBytes(b"s" * size),
        client_sequence=1,
        server_sequence=2,
        send_limit=512,
        receive_limit=1024,
    )
    assert convert.key_block_from_pb(convert.key_block_to_pb(sent)) == sent


@pytest.mark.parametrize("assurance", Assurance)
def test_an_assurance_comes_back_as_it_was(assurance: Assurance) -> None:
    assert convert.assurance_from_pb(convert.assurance_to_pb(assurance)) is assurance


def test_a_version_that_is_not_ours_is_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest, match="0x0302"):
        convert.version_from_pb(0x0302, ProtocolVersion.TLS_1_2)
    assert convert.version_from_pb(0, ProtocolVersion.TLS_1_2) is ProtocolVersion.TLS_1_2


@pytest.mark.parametrize("seconds", [0.0, 0.000001, 1.5, 30.0])
def test_a_duration_comes_back_as_it_was(seconds: float) -> None:
    assert convert.seconds_from_pb(convert.seconds_to_pb(seconds)) == pytest.approx(seconds)
