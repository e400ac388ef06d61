"""Settings are checked when they are made, and shape the ClientHello."""

from __future__ import annotations

import pytest

from tests.support.memory import Client, config, credential
from tests.support.pki import NOW, SERVER_NAME, KeyKind, client_identity
from vmtoken.tls.codes import CipherSuite, ExtensionType, NamedGroup, ProtocolVersion, SignatureScheme
from vmtoken.tls.config import Credential
from vmtoken.tls.extensions import (
    Alpn,
    KeyShareClientHello,
    RecordSizeLimit,
    ServerName,
    SupportedGroups,
    SupportedVersions,
)
from vmtoken.tls.messages import ClientHello, decode_message

TLS12, TLS13 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3


def hello(**changes: object) -> ClientHello:
    records = Client(config(**changes)).connection.data_to_send()
    message = decode_message(bytes(records)[5:])
    assert isinstance(message, ClientHello)
    return message


BAD = {
    "empty name": {"server_name": ""},
    "name that is not ASCII": {"server_name": "bücher.example"},
    "name with a port": {"server_name": "server.example:443"},
    "name with a final dot": {"server_name": "server.example."},
    "name too long": {"server_name": "a.b" * 100},
    "label too long": {"server_name": "a" * 64},
    "name with a slash": {"server_name": "server.example/"},
    "time without zone": {"time": NOW.replace(tzinfo=None)},
    "versions the wrong way": {"min_version": TLS13, "max_version": TLS12},
    "no suite": {"cipher_suites": ()},
    "suites of another version": {
        "cipher_suites": (CipherSuite.TLS_AES_128_GCM_SHA256,),
        "max_version": TLS12,
    },
    "signalling suite": {"cipher_suites": (CipherSuite.TLS_EMPTY_RENEGOTIATION_INFO_SCSV,)},
    "no group": {"groups": ()},
    "share of a group that is not offered": {
        "groups": (NamedGroup.X25519,),
        "key_shares": (NamedGroup.SECP256R1,),
    },
    "hybrid group without TLS 1.3": {"groups": (NamedGroup.X25519MLKEM768,), "max_version": TLS12},
    "empty ALPN protocol": {"alpn": ("",)},
    "long ALPN protocol": {"alpn": ("x" * 256,)},
    "ALPN protocol that is not ASCII": {"alpn": ("ü",)},
    "tiny records": {"record_size_limit": 63},
    "required without credential": {"credential": None, "require_client_certificate": True},
}


@pytest.mark.parametrize("case", BAD, ids=str)
def test_senseless_settings_are_refused(case: str) -> None:
    with pytest.raises(ValueError):
        config(**BAD[case])


def test_the_default_hello() -> None:
    """X25519MLKEM768 first, its X25519 half shared, TLS 1.3 before 1.2, and no early data."""
    message = hello(alpn=("h2", "http/1.1"))
    assert message.extensions.find(ServerName) == ServerName(SERVER_NAME)
    assert message.extensions.find(Alpn) == Alpn((b"h2", b"http/1.1"))
    assert message.extensions.find(SupportedVersions) == SupportedVersions((TLS13, TLS12))
    groups = message.extensions.find(SupportedGroups)
    assert groups is not None
    assert groups.groups[0] == NamedGroup.X25519MLKEM768
    shares = message.extensions.find(KeyShareClientHello)
    assert shares is not None
    hybrid, classic = shares.client_shares
    assert (hybrid.group, classic.group) == (NamedGroup.X25519MLKEM768, NamedGroup.X25519)
    assert hybrid.key_exchange[1184:] == classic.key_exchange
    assert len(message.legacy_session_id) == 32
    for absent in (ExtensionType.EARLY_DATA, ExtensionType.POST_HANDSHAKE_AUTH, ExtensionType.PRE_SHARED_KEY):
        assert absent not in message.extensions


def test_a_hello_for_tls_1_2_alone_has_nothing_of_tls_1_3() -> None:
    message = hello(max_version=TLS12)
    for absent in (ExtensionType.SUPPORTED_VERSIONS, ExtensionType.KEY_SHARE):
        assert absent not in message.extensions
    assert message.legacy_session_id == b""
    groups = message.extensions.find(SupportedGroups)
    assert groups is not None
    assert NamedGroup.X25519MLKEM768 not in groups.groups
    assert all(suite >> 8 != 0x13 for suite in message.cipher_suites)


def test_a_hello_for_tls_1_3_alone_has_nothing_of_tls_1_2() -> None:
    message = hello(min_version=TLS13)
    for absent in (
        ExtensionType.EXTENDED_MASTER_SECRET,
        ExtensionType.SESSION_TICKET,
        ExtensionType.RENEGOTIATION_INFO,
    ):
        assert absent not in message.extensions
    assert all(suite >> 8 == 0x13 for suite in message.cipher_suites)


def test_a_version_without_suites_is_not_offered() -> None:
    message = hello(cipher_suites=(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,))
    assert ExtensionType.SUPPORTED_VERSIONS not in message.extensions


@pytest.mark.parametrize(
    ("limit", "version", "announced"),
    [
        (None, TLS13, 16385),
        (None, TLS12, 16384),
        (1000, TLS13, 1001),
        (1000, TLS12, 1000),
        (99999, TLS13, 16385),
    ],
)
def test_the_record_size_limit_counts_the_content_type_in_tls_1_3(
    limit: int | None, version: ProtocolVersion, announced: int
) -> None:
    message = hello(record_size_limit=limit, max_version=version)
    assert message.extensions.find(RecordSizeLimit) == RecordSizeLimit(announced)


def test_two_hellos_have_nothing_random_in_common() -> None:
    first, second = hello(), hello()
    assert first.random != second.random
    assert first.legacy_session_id != second.legacy_session_id
    assert first.extensions.find(KeyShareClientHello) != second.extensions.find(KeyShareClientHello)


def test_a_credential_knows_its_cas() -> None:
    found = credential()
    issuer = client_identity().certificate.issuer.public_bytes()
    root = client_identity().root.subject.public_bytes()
    assert found.is_issued_by_one_of([])
    assert found.is_issued_by_one_of([b"\x30\0", issuer])
    assert found.is_issued_by_one_of([root])
    assert not found.is_issued_by_one_of([b"\x30\0"])


@pytest.mark.parametrize(
    ("chain", "schemes"),
    [
        ((), (SignatureScheme.ED25519,)),
        (client_identity().chain_der, ()),
        (client_identity().chain_der, (SignatureScheme.ED25519,)),
        ((b"no certificate",), (SignatureScheme.ED25519,)),
        ((client_identity().chain_der[0], b"no certificate"), (SignatureScheme.ECDSA_SECP256R1_SHA256,)),
    ],
)
def test_a_credential_must_fit_together(
    chain: tuple[bytes, ...], schemes: tuple[SignatureScheme, ...]
) -> None:
    with pytest.raises(ValueError):
        Credential(chain, schemes)


def test_the_session_resumption_secrets_stay_out_of_reprs() -> None:
    text = repr(config(credential=credential(client_identity(KeyKind.RSA_2048))))
    assert len(text) < 2000
    assert "BEGIN" not in text
