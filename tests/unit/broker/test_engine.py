"""What the engine adds to a key that can only sign; what every token does is in `tests/contract`."""

from __future__ import annotations

import dataclasses
import functools
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from dom0_broker.engine import EngineToken
from dom0_broker.tls_client import handshake
from dom0_broker.tls_client.sessions import MAX_SESSIONS, MAX_TICKETS
from tests.fakes.signing_key import SoftwareKey
from tests.support.memory import PyOpenSslServer, PythonServer, pyopenssl_context, python_context
from tests.support.pki import KeyKind, client_identity, server_identity
from tests.support.sentences import is_sentence
from tests.support.signing_keys import PKCS1
from tests.support.token_sessions import SPEAKS, TLS_1_2, TLS_1_3, VERSIONS, connect, resumption, start, talk
from tests.support.tokens import engine_token
from vmtoken.errors import (
    PinBlocked,
    PinMissing,
    PinRejected,
    PolicyDenied,
    TlsHandshakeFailed,
    TlsVersionUnsupported,
    TokenNotReady,
    TokenUnavailable,
    VmTokenError,
)
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import ProtocolVersion, SignatureScheme
from vmtoken.token import Assurance, HandshakeFailed, HandshakeStart, ServerIdentity, Traffic

RSA = client_identity(KeyKind.RSA_2048)


def raising(error: BaseException) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def nobody_objects(_: ServerIdentity) -> None: ...


# Policy comes before the key.


@pytest.mark.parametrize("version", VERSIONS)
def test_key_has_signed_nothing_when_policy_is_asked(tmp_path: Path, version: ssl.TLSVersion) -> None:
    key = SoftwareKey(client_identity())
    token = engine_token(key)
    signatures: list[int] = []
    server = PythonServer(python_context(tmp_path, version=version))
    hello = token.start(start(), lambda _: signatures.append(key.signatures)).client_flight
    token.process(server.receive(hello))
    assert signatures == [0]
    assert key.signatures == 1


@pytest.mark.parametrize("error", [PolicyDenied("Not this server."), ZeroDivisionError()], ids=repr)
@pytest.mark.parametrize("version", VERSIONS)
def test_denial_means_that_the_key_is_never_asked(
    tmp_path: Path, version: ssl.TLSVersion, error: Exception
) -> None:
    key = SoftwareKey(client_identity())
    token = engine_token(key)
    server = PythonServer(python_context(tmp_path, version=version))

    def refuse(_: ServerIdentity) -> None:
        raise error

    records = server.receive(token.start(start(), refuse).client_flight)
    with pytest.raises((HandshakeFailed, ZeroDivisionError)):
        token.process(records)
    with pytest.raises(HandshakeFailed, match="no handshake"):
        token.process(records)
    assert key.signatures == 0
    assert not server.is_ready


def test_server_that_is_not_verified_brings_the_key_nothing_to_sign(tmp_path: Path) -> None:
    key = SoftwareKey(client_identity())
    token = engine_token(key)
    server = PythonServer(python_context(tmp_path))
    records = server.receive(token.start(start(server_name="other.example"), nobody_objects).client_flight)
    with pytest.raises(HandshakeFailed):
        token.process(records)
    assert key.signatures == 0


def test_resumed_session_needs_no_signature(tmp_path: Path) -> None:
    key = SoftwareKey(client_identity())
    token = engine_token(key)
    context = python_context(tmp_path)
    ticket = resumption(token, connect(token, context))
    assert connect(token, context, start(ticket.handle)).result.resumed
    assert key.signatures == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_only_the_key_block_leaves(
    tmp_path: Path, version: ssl.TLSVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full and resumed; the key log has every secret of both, the key block those that may leave."""
    lines: list[str] = []
    logging_config = functools.partial(handshake.ClientConfig, key_log=lines.append)
    monkeypatch.setattr(handshake, "ClientConfig", logging_config)
    token = engine_token(SoftwareKey(client_identity()))
    context = python_context(tmp_path, version=version)
    first = connect(token, context)
    ticket = resumption(token, first)
    second = connect(token, context, start(ticket.handle))
    left = octets_in(first.result, ticket, second.result, token.describe())
    secrets = [(label, bytes.fromhex(secret)) for label, _, secret in (line.split() for line in lines)]
    assert len(secrets) >= (10 if version is TLS_1_3 else 2)
    found = {label for label, secret in secrets if secret in left}
    assert found == ({"CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"} if version is TLS_1_3 else set())
    for session in token._sessions._resumable.values():
        assert session.secret.reveal() not in left


def octets_in(*values: object) -> bytes:
    """All octets that are in the values, and in the values in these."""
    octets = b""
    for value in values:
        match value:
            case bytes():
                octets += value
            case SecretBytes():
                octets += value.reveal()
            case tuple():
                octets += octets_in(*value)
            case _ if dataclasses.is_dataclass(value):
                octets += octets_in(*(getattr(value, field.name) for field in dataclasses.fields(value)))
    return octets


# What is offered follows what the key can do.


@pytest.mark.parametrize("kind", KeyKind)
def test_every_key_that_does_not_ask_too_much_signs_for_openssl_4(tmp_path: Path, kind: KeyKind) -> None:
    token = engine_token(SoftwareKey(client_identity(kind)))
    session = connect(token, PyOpenSslServer(pyopenssl_context(tmp_path)))
    assert session.result.client_certificate_sent
    assert session.result.group == "X25519MLKEM768"


@pytest.mark.parametrize(
    ("kind", "schemes", "versions"),
    [
        (KeyKind.RSA_2048, None, (ProtocolVersion.TLS_1_3, ProtocolVersion.TLS_1_2)),
        (KeyKind.RSA_2048, PKCS1, (ProtocolVersion.TLS_1_2,)),
        (KeyKind.ECDSA_P256, None, (ProtocolVersion.TLS_1_3, ProtocolVersion.TLS_1_2)),
        (KeyKind.ML_DSA_65, None, (ProtocolVersion.TLS_1_3,)),
    ],
)
def test_description_says_the_versions_in_which_the_key_can_sign(
    kind: KeyKind, schemes: tuple[SignatureScheme, ...] | None, versions: tuple[ProtocolVersion, ...]
) -> None:
    key = SoftwareKey(client_identity(kind), schemes)
    assert engine_token(key).describe().versions == versions


@pytest.mark.parametrize("scheme", PKCS1)
def test_key_that_can_only_pkcs1_speaks_tls12_with_just_that(tmp_path: Path, scheme: SignatureScheme) -> None:
    """The server would take TLS 1.3, PSS and every hash."""
    key = SoftwareKey(RSA, [scheme])
    session = connect(engine_token(key), python_context(tmp_path))
    assert session.result.key_block.version is ProtocolVersion.TLS_1_2
    assert session.result.client_certificate_sent
    assert key.used == [scheme]
    talk(session)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "scheme", [scheme for scheme in SignatureScheme if scheme.name.startswith("RSA_PSS_RSAE")]
)
def test_key_that_can_only_pss_signs_with_just_that(
    tmp_path: Path, version: ssl.TLSVersion, scheme: SignatureScheme
) -> None:
    key = SoftwareKey(RSA, [scheme])
    session = connect(engine_token(key), python_context(tmp_path, version=version))
    assert session.result.key_block.version is SPEAKS[version]
    assert key.used == [scheme]


def test_what_the_certificate_does_not_allow_is_left_alone(tmp_path: Path) -> None:
    """An RSA key in hardware can PSS, whatever its certificate is for."""
    key = SoftwareKey(RSA, [SignatureScheme.RSA_PSS_PSS_SHA256, SignatureScheme.RSA_PSS_RSAE_SHA256])
    connect(engine_token(key), python_context(tmp_path))
    assert key.used == [SignatureScheme.RSA_PSS_RSAE_SHA256]


def test_demand_for_tls13_names_the_key_that_cannot(tmp_path: Path) -> None:
    token = engine_token(SoftwareKey(RSA, PKCS1))
    with pytest.raises(HandshakeFailed) as caught:
        token.start(start(min_version=ProtocolVersion.TLS_1_3), nobody_objects)
    assert_blames_pkcs1(caught.value, "which TLS 1.3 does not take, and the request allows nothing else")
    connect(token, python_context(tmp_path))


@pytest.mark.parametrize("openssl", [3, 4])
def test_server_that_demands_tls13_is_told_from_one_that_is_out_of_date(tmp_path: Path, openssl: int) -> None:
    token = engine_token(SoftwareKey(RSA, PKCS1))
    server: PythonServer | PyOpenSslServer = PythonServer(python_context(tmp_path, version=TLS_1_3))
    if openssl == 4:
        server = PyOpenSslServer(pyopenssl_context(tmp_path, version=TLS_1_3))
    alert = server.receive(token.start(start(), nobody_objects).client_flight)
    with pytest.raises(HandshakeFailed) as caught:
        token.process(alert)
    assert_blames_pkcs1(caught.value, "the server server.example agrees to nothing else")
    assert caught.value.error.metadata == {"alert_received": "PROTOCOL_VERSION"}


def assert_blames_pkcs1(failure: HandshakeFailed, who: str) -> None:
    assert isinstance(failure.error, TlsVersionUnsupported)
    assert "can only sign PKCS#1 v1.5" in failure.error.message
    assert who in failure.error.message
    assert is_sentence(failure.error.message)


PROTOCOL_VERSION = bytes.fromhex("15 03 03 00 02 02 46")
HANDSHAKE_FAILURE = bytes.fromhex("15 03 03 00 02 02 28")


@pytest.mark.parametrize(
    ("key", "begin"),
    [
        (SoftwareKey(RSA, PKCS1), start(max_version=ProtocolVersion.TLS_1_2)),
        (SoftwareKey(RSA), start()),
    ],
    ids=["TLS 1.3 not wanted anyway", "key that can PSS"],
)
def test_version_alert_is_not_blamed_on_a_key_that_has_no_part_in_it(
    key: SoftwareKey, begin: HandshakeStart
) -> None:
    token = engine_token(key)
    token.start(begin, nobody_objects)
    with pytest.raises(HandshakeFailed) as caught:
        token.process(PROTOCOL_VERSION)
    assert isinstance(caught.value.error, TlsVersionUnsupported)
    assert "key" not in caught.value.error.message


@pytest.mark.parametrize("alert", [PROTOCOL_VERSION, HANDSHAKE_FAILURE], ids=["version", "handshake_failure"])
def test_every_refusal_of_the_hello_names_the_key_that_cannot(alert: bytes) -> None:
    """A server that looks for a cipher suite first sends handshake_failure, as OpenSSL and GnuTLS may."""
    token = engine_token(SoftwareKey(RSA, PKCS1))
    token.start(start(), nobody_objects)
    with pytest.raises(HandshakeFailed) as caught:
        token.process(alert)
    assert_blames_pkcs1(caught.value, "the server server.example agrees to nothing else")


def test_refusal_of_the_last_flight_is_not_about_versions(tmp_path: Path) -> None:
    token = engine_token(SoftwareKey(RSA, PKCS1))
    server = PythonServer(python_context(tmp_path))
    token.process(server.receive(token.start(start(), nobody_objects).client_flight))
    with pytest.raises(HandshakeFailed) as caught:
        token.process(HANDSHAKE_FAILURE)
    assert isinstance(caught.value.error, TlsHandshakeFailed)


def test_demand_for_tls12_names_the_key_that_cannot() -> None:
    token = engine_token(SoftwareKey(client_identity(KeyKind.ML_DSA_65)))
    with pytest.raises(HandshakeFailed, match=r"can only sign MLDSA65, which TLS 1\.2 does not take"):
        token.start(start(max_version=ProtocolVersion.TLS_1_2), nobody_objects)


# Keys that are lost, lie or are not ready.


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "error",
    [
        TokenUnavailable("The card was removed."),
        PinRejected("The card refused the PIN.", retries_left=2),
        PinBlocked("The PIN is blocked."),
        PinMissing("The card needs its PIN again."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_becomes_of_the_key_in_the_middle_passes_through_and_closes_it(
    tmp_path: Path, version: ssl.TLSVersion, error: VmTokenError
) -> None:
    key = SoftwareKey(client_identity(), before_signing=raising(error))
    token = engine_token(key)
    server = PythonServer(python_context(tmp_path, version=version))
    records = server.receive(token.start(start(), nobody_objects).client_flight)
    with pytest.raises(type(error)) as caught:
        token.process(records)
    assert caught.value is error
    assert key.closed == 1
    assert_closed(token)


def assert_closed(token: EngineToken) -> None:
    for call in (
        lambda: token.start(start(), nobody_objects),
        lambda: token.process(b""),
        lambda: token.accept_ticket(b"session", b""),
        token.describe,
    ):
        with pytest.raises(TokenUnavailable, match="closed"):
            call()
    token.abort()
    token.close()


SPOILT: dict[str, Callable[[bytes], bytes]] = {
    "a bit flipped at the end": lambda signature: signature[:-1] + bytes([signature[-1] ^ 1]),
    "a bit flipped in the middle": lambda signature: (
        signature[:40] + bytes([signature[40] ^ 1]) + signature[41:]
    ),
    "cut off": lambda signature: signature[:-1],
    "nothing": lambda signature: b"",
    "no DER": lambda signature: b"\xff" * len(signature),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT.keys())
@pytest.mark.parametrize("kind", [KeyKind.ECDSA_P256, KeyKind.RSA_2048, KeyKind.ED25519])
def test_signature_that_a_fault_spoilt_does_not_leave(
    tmp_path: Path, kind: KeyKind, spoil: Callable[[bytes], bytes], version: ssl.TLSVersion
) -> None:
    token = engine_token(SoftwareKey(client_identity(kind), spoil=spoil))
    server = PythonServer(python_context(tmp_path, version=version))
    records = server.receive(token.start(start(), nobody_objects).client_flight)
    with pytest.raises(TokenUnavailable, match="does not verify under its certificate") as caught:
        token.process(records)
    assert is_sentence(caught.value.message)
    assert_closed(token)


def test_certificate_of_another_key_does_not_leave(tmp_path: Path) -> None:
    other = client_identity(name="another")
    token = engine_token(SoftwareKey(client_identity(), chain=other.chain_der))
    server = PythonServer(python_context(tmp_path))
    records = server.receive(token.start(start(), nobody_objects).client_flight)
    with pytest.raises(TokenUnavailable, match="belongs to the key"):
        token.process(records)


ANCHORS = (server_identity().root_der,)


@pytest.mark.parametrize(
    ("chain", "anchors", "why"),
    [
        ((), ANCHORS, "no certificate"),
        ((b"no certificate",), ANCHORS, "does not parse"),
        (RSA.chain_der, ANCHORS, "another kind of key"),
        (client_identity().chain_der, (), "no trust anchors"),
        (client_identity().chain_der, (b"no certificate",), "anchors .* do not parse"),
    ],
)
def test_key_that_is_not_ready_can_be_described(
    chain: tuple[bytes, ...], anchors: tuple[bytes, ...], why: str
) -> None:
    key = SoftwareKey(client_identity(), chain=chain)
    token = EngineToken(key, anchors=anchors, serial="01 23", application="PIV")
    description = token.describe()
    assert description.certificate_chain == chain
    assert (description.serial, description.application) == ("01 23", "PIV")
    assert description.assurance is Assurance.CARD_SIGNATURE
    for _ in range(2):
        with pytest.raises(HandshakeFailed, match=why) as caught:
            token.start(start(), nobody_objects)
        assert isinstance(caught.value.error, TokenNotReady)
        assert is_sentence(caught.value.error.message)
    assert key.closed == 0


def test_key_that_is_gone_before_anything_was_asked_is_unavailable() -> None:
    class Gone(SoftwareKey):
        @property
        def certificate_chain(self) -> tuple[bytes, ...]:
            raise TokenUnavailable("The card was removed.")

        @certificate_chain.setter
        def certificate_chain(self, _: tuple[bytes, ...]) -> None: ...

    for call in (EngineToken.describe, lambda token: token.start(start(), nobody_objects)):
        key = Gone(client_identity())
        with pytest.raises(TokenUnavailable, match="removed"):
            call(engine_token(key))
        assert key.closed == 1


# Bounds.


def test_traffic_of_the_card_is_counted_from_the_start(tmp_path: Path) -> None:
    key = SoftwareKey(client_identity())
    token = engine_token(key, lambda: Traffic(key.signatures, 100 * key.signatures))
    for _ in range(2):
        connect(token, python_context(tmp_path))
        assert token.traffic == Traffic(1, 100)
    token.start(start(), nobody_objects)
    assert token.traffic == Traffic()


def test_sessions_that_are_remembered_are_bounded(tmp_path: Path) -> None:
    """The oldest go first."""
    token = engine_token(SoftwareKey(client_identity()))
    context = python_context(tmp_path, version=TLS_1_2)
    first = connect(token, context).result.session
    handles = []
    for _ in range(MAX_TICKETS + 1):
        found = token.accept_ticket(first, b"")
        assert found is not None
        handles.append(found.handle)
    assert not connect(token, context, start(handles[0])).result.resumed
    assert connect(token, context, start(handles[1])).result.resumed
    for _ in range(MAX_SESSIONS):
        connect(token, context, start(handles[-1]))
    assert token.accept_ticket(first, b"") is None
    assert len(token._sessions._ended) == MAX_SESSIONS
    assert len(token._sessions._resumable) == MAX_TICKETS


def test_closed_token_has_wiped_what_it_remembered(tmp_path: Path) -> None:
    token = engine_token(SoftwareKey(client_identity()))
    resumption(token, connect(token, python_context(tmp_path)))
    ended = list(token._sessions._ended.values())
    resumable = list(token._sessions._resumable.values())
    token.close()
    assert all(item.secret is not None and len(item.secret.secret) == 0 for item in ended)
    assert all(len(session.secret) == 0 for session in resumable)


def test_token_that_has_had_time_has_the_next_keys_ready(tmp_path: Path) -> None:
    token, made = engine_token(SoftwareKey(client_identity())), []
    connect(token, python_context(tmp_path))
    token.abort()
    made.append(token._shares._ready)
    connect(token, python_context(tmp_path))
    assert made[0] is not None
    assert token._shares._ready is None


def test_key_that_never_speaks_tls13_makes_no_shares_ahead(tmp_path: Path) -> None:
    token = engine_token(SoftwareKey(RSA, PKCS1))
    connect(token, python_context(tmp_path))
    token.abort()
    assert token._shares._ready is None
