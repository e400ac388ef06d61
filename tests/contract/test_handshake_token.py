"""What every `HandshakeToken` must do, against OpenSSL in memory."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.memory import (
    PyOpenSslServer,
    PythonServer,
    pyopenssl_context,
    python_context,
    stranger_context,
)
from tests.support.pki import (
    DAY,
    NOW,
    SERVER_NAME,
    Authority,
    Identity,
    pki,
    server_identity,
)
from tests.support.token_sessions import SPEAKS, TLS_1_2, TLS_1_3, VERSIONS, connect, resumption, start, talk
from tests.support.tokens import TokenHolder, TokenKind
from vmtoken.errors import (
    ClientCertificateRefused,
    ClientCertificateUnusable,
    InvalidRequest,
    PolicyDenied,
    ServerCertificateInvalid,
    TlsHandshakeFailed,
    TlsVersionUnsupported,
    VmTokenError,
)
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import (
    CertificateMode,
    HandshakeFailed,
    HandshakeStart,
    HandshakeToken,
    ServerIdentity,
    Traffic,
)


@pytest.fixture
def token(token_holder: TokenHolder) -> Iterator[HandshakeToken]:
    token = token_holder.token()
    yield token
    token.close()


def one_record_each(octets: bytes) -> list[bytes]:
    records = []
    while octets:
        length = 5 + int.from_bytes(octets[3:5], "big")
        records.append(octets[:length])
        octets = octets[length:]
    return records


@pytest.mark.parametrize("version", VERSIONS)
def test_full_handshake_gives_the_keys_of_the_session(
    token: HandshakeToken, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    session = connect(token, python_context(tmp_path, version=version))
    result = session.result
    assert result.key_block.version is SPEAKS[version]
    assert result.client_certificate_sent
    assert not result.resumed
    assert result.group == "X25519"
    peer = session.server.tls.getpeercert(binary_form=True)
    assert peer == token.describe().certificate_chain[0]
    talk(session)


@pytest.mark.parametrize("version", VERSIONS)
def test_records_may_come_one_by_one(token: HandshakeToken, tmp_path: Path, version: ssl.TLSVersion) -> None:
    session = connect(token, python_context(tmp_path, version=version), feed=one_record_each)
    assert len(session.judged) == 1
    talk(session)


def test_no_records_are_no_step(token: HandshakeToken) -> None:
    token.start(start(), lambda server: None)
    assert token.process(b"").client_flight == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_server_is_judged_once_by_its_verified_path(
    token: HandshakeToken, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    (judged,) = connect(token, python_context(tmp_path, version=version)).judged
    identity = server_identity()
    assert judged.server_name == SERVER_NAME
    assert judged.leaf == identity.chain_der[0]
    assert len(judged.spki_sha256) == 3


@pytest.mark.parametrize("version", VERSIONS)
def test_refused_server_gets_an_alert_and_nothing_else(
    token: HandshakeToken, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    denied = PolicyDenied("not this one")

    def refuse(server: ServerIdentity) -> None:
        raise denied

    server = PythonServer(python_context(tmp_path, version=version))
    records = server.receive(token.start(start(), refuse).client_flight)
    with pytest.raises(HandshakeFailed) as caught:
        token.process(records)
    assert caught.value.error is denied
    server.receive(caught.value.alert_flight)
    assert "ALERT_ACCESS_DENIED" in str(server.failure)
    connect(token, python_context(tmp_path, version=version))


@pytest.mark.parametrize("version", VERSIONS)
def test_session_is_resumed(token: HandshakeToken, tmp_path: Path, version: ssl.TLSVersion) -> None:
    context = python_context(tmp_path, version=version)
    first = connect(token, context)
    ticket = resumption(token, first)
    assert ticket.server == first.result.server
    assert ticket.version is SPEAKS[version]
    assert ticket.single_use == (version is TLS_1_3)
    assert 0 < ticket.lifetime <= 7 * 24 * 3600
    second = connect(token, context, start(ticket.handle))
    assert second.result.resumed
    assert second.judged == [first.result.server]
    talk(second)


def test_tls13_ticket_is_used_once(token: HandshakeToken, tmp_path: Path) -> None:
    context = python_context(tmp_path, version=TLS_1_3)
    ticket = resumption(token, connect(token, context))
    assert connect(token, context, start(ticket.handle)).result.resumed
    assert not connect(token, context, start(ticket.handle)).result.resumed


def test_denial_holds_for_resumed_sessions(token: HandshakeToken, tmp_path: Path) -> None:
    context = python_context(tmp_path, version=TLS_1_3)
    ticket = resumption(token, connect(token, context))

    def refuse(server: ServerIdentity) -> None:
        raise PolicyDenied("not any more")

    server = PythonServer(context)
    records = server.receive(token.start(start(ticket.handle), refuse).client_flight)
    with pytest.raises(HandshakeFailed):
        token.process(records)


def test_unknown_handle_leads_to_a_full_handshake(token: HandshakeToken, tmp_path: Path) -> None:
    session = connect(token, python_context(tmp_path), start(b"no such handle"))
    assert not session.result.resumed


def test_session_is_not_resumed_with_another_server_name(token: HandshakeToken, tmp_path: Path) -> None:
    context = python_context(tmp_path, version=TLS_1_3)
    ticket = resumption(token, connect(token, context))
    session = connect(token, context, start(ticket.handle, server_name="localhost"))
    assert not session.result.resumed


def test_ticket_of_an_unknown_session_is_dropped(token: HandshakeToken) -> None:
    assert token.accept_ticket(b"nobody", b"") is None


def test_ticket_that_does_not_parse_is_an_error(token: HandshakeToken, tmp_path: Path) -> None:
    session = connect(token, python_context(tmp_path, version=TLS_1_3))
    with pytest.raises(HandshakeFailed, match="NewSessionTicket"):
        token.accept_ticket(session.result.session, b"\x04\x00\x00\x01\x00")


def wrong_name() -> Identity:
    return pki().intermediate.issue("other.example")


def expired() -> Identity:
    return pki().intermediate.issue(not_after=NOW - DAY)


def unknown_ca() -> Identity:
    return Authority.self_signed("somebody else").issue()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("identity", [wrong_name, expired, unknown_ca])
def test_wrong_server_certificate_is_refused_with_an_alert(
    token: HandshakeToken, tmp_path: Path, identity: Callable[[], Identity], version: ssl.TLSVersion
) -> None:
    server = PythonServer(python_context(tmp_path, identity(), version=version))
    judged: list[ServerIdentity] = []
    records = server.receive(token.start(start(), judged.append).client_flight)
    with pytest.raises(HandshakeFailed) as caught:
        token.process(records)
    assert isinstance(caught.value.error, ServerCertificateInvalid)
    assert not judged
    server.receive(caught.value.alert_flight)
    assert "ALERT" in str(server.failure)


def test_time_of_the_start_decides_about_dates(token: HandshakeToken, tmp_path: Path) -> None:
    server = PythonServer(python_context(tmp_path))
    far_away = start(time=int((NOW + 400 * DAY).timestamp()))
    records = server.receive(token.start(far_away, lambda server: None).client_flight)
    with pytest.raises(HandshakeFailed) as caught:
        token.process(records)
    assert isinstance(caught.value.error, ServerCertificateInvalid)


@pytest.mark.parametrize(
    ("records", "error"),
    [
        ("15 03 03 00 02 02 46", TlsVersionUnsupported),
        ("15 03 03 00 02 02 28", TlsHandshakeFailed),
        ("16 03 03 00 04 0E 00 00 00", TlsHandshakeFailed),
        ("48 54 54 50 2F 31 2E 31 20 34 30 30", TlsHandshakeFailed),
    ],
    ids=["protocol_version", "handshake_failure", "ServerHelloDone first", "HTTP"],
)
def test_what_is_no_handshake_is_an_error_of_its_kind(
    token: HandshakeToken, records: str, error: type[VmTokenError]
) -> None:
    token.start(start(), lambda server: None)
    with pytest.raises(HandshakeFailed) as caught:
        token.process(bytes.fromhex(records))
    assert type(caught.value.error) is error


def test_nothing_goes_on_after_a_failure(token: HandshakeToken, tmp_path: Path) -> None:
    token.start(start(), lambda server: None)
    for _ in range(2):
        with pytest.raises(HandshakeFailed):
            token.process(bytes.fromhex("15 03 03 00 02 02 28"))
    connect(token, python_context(tmp_path))


def test_hello_retry_request_is_answered_before_anybody_is_judged(
    token: HandshakeToken, tmp_path: Path
) -> None:
    context = python_context(tmp_path, version=TLS_1_3)
    context.set_ecdh_curve("secp384r1")
    session = connect(token, context)
    assert session.result.group == "SECP384R1"
    assert len(session.judged) == 1
    talk(session)


def test_alpn_and_versions_are_asked_for(token: HandshakeToken, tmp_path: Path) -> None:
    context = python_context(tmp_path)
    context.set_alpn_protocols(["h2"])
    session = connect(token, context, start(alpn=("http/1.1", "h2"), max_version=ProtocolVersion.TLS_1_2))
    assert session.result.alpn == "h2"
    assert session.result.key_block.version is ProtocolVersion.TLS_1_2


def test_no_hello_repeats_a_share(token: HandshakeToken, tmp_path: Path) -> None:
    """The next ones may be made when a handshake is forgotten, and a ticket may be taken after that."""
    context = python_context(tmp_path)
    shares = set()
    for _ in range(4):
        server = PythonServer(context)
        hello = token.start(start(), lambda _: None).client_flight
        _, found, share = hello.rpartition(bytes.fromhex("00 1D 00 20"))  # X25519, 32 octets
        assert found
        shares.add(share[:32])
        step = token.process(server.receive(hello))
        assert step.result is not None
        token.abort()
        token.accept_ticket(step.result.session, b"")
    assert len(shares) == 4


def test_aborted_handshake_leaves_room_for_the_next(token: HandshakeToken, tmp_path: Path) -> None:
    server = PythonServer(python_context(tmp_path))
    records = server.receive(token.start(start(), lambda server: None).client_flight)
    token.abort()
    with pytest.raises(HandshakeFailed, match="no handshake"):
        token.process(records)
    connect(token, python_context(tmp_path))


def test_token_describes_itself(token: HandshakeToken, token_holder: TokenHolder) -> None:
    description = token.describe()
    assert description.certificate_chain == token_holder.identity.chain_der
    assert description.assurance is token.assurance
    assert ProtocolVersion.TLS_1_3 in description.versions


def test_traffic_is_counted_from_the_start(
    token: HandshakeToken, token_kind: TokenKind, tmp_path: Path
) -> None:
    connect(token, python_context(tmp_path))
    first = token.traffic
    connect(token, python_context(tmp_path))
    if token_kind.counts_traffic:
        assert 0 < token.traffic.octets < 2 * first.octets
    else:
        assert token.traffic == Traffic()


def test_token_may_be_closed_twice(token_holder: TokenHolder) -> None:
    token = token_holder.token()
    token.close()
    token.close()


def test_server_that_cannot_use_our_certificate_is_told_so(token: HandshakeToken, tmp_path: Path) -> None:
    """It names a CA that did not issue it."""
    stranger = Authority.self_signed("somebody else").issue().write(tmp_path, "stranger")
    context = pyopenssl_context(tmp_path)
    context.load_client_ca(str(stranger.anchors).encode())
    server = PyOpenSslServer(context)
    records = server.receive(token.start(start(), lambda _: None).client_flight)
    with pytest.raises(HandshakeFailed) as caught:
        token.process(records)
    assert isinstance(caught.value.error, ClientCertificateUnusable)


@pytest.mark.parametrize("version", VERSIONS)
def test_optional_certificate_is_left_out_where_the_server_cannot_use_it(
    token: HandshakeToken, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    server = PyOpenSslServer(stranger_context(tmp_path, version))
    session = connect(token, server, start(certificate=CertificateMode.OPTIONAL))
    assert not session.result.client_certificate_sent
    assert server.tls.get_peer_certificate() is None
    talk(session)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", [CertificateMode.IF_ASKED, CertificateMode.ALWAYS])
def test_certificate_that_is_not_optional_must_be_of_use(
    token: HandshakeToken, tmp_path: Path, version: ssl.TLSVersion, mode: CertificateMode
) -> None:
    server = PyOpenSslServer(stranger_context(tmp_path, version))
    assert_unusable(token, server, start(certificate=mode), "wrong certificate authorities")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", CertificateMode)
def test_server_that_does_not_ask_is_refused_only_if_it_always_must(
    token: HandshakeToken, tmp_path: Path, version: ssl.TLSVersion, mode: CertificateMode
) -> None:
    context = python_context(tmp_path, version=version, verify=ssl.CERT_NONE)
    if mode is CertificateMode.ALWAYS:
        server = PythonServer(context)
        assert_unusable(token, server, start(certificate=mode), "does not ask for a client certificate")
    else:
        assert not connect(token, context, start(certificate=mode)).result.client_certificate_sent


@pytest.mark.parametrize("mode", CertificateMode)
def test_usable_certificate_is_sent_whenever_asked_for(
    token: HandshakeToken, tmp_path: Path, mode: CertificateMode
) -> None:
    session = connect(token, python_context(tmp_path), start(certificate=mode))
    assert session.result.client_certificate_sent


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("verify", [ssl.CERT_NONE, ssl.CERT_REQUIRED])
def test_session_without_our_certificate_is_not_resumed_where_it_always_must_be_sent(
    token: HandshakeToken, tmp_path: Path, version: ssl.TLSVersion, verify: ssl.VerifyMode
) -> None:
    context = python_context(tmp_path, version=version, verify=verify)
    found = resumption(token, connect(token, context))
    again = start(found.handle, certificate=CertificateMode.ALWAYS)
    if verify is ssl.CERT_NONE:
        assert_unusable(token, PythonServer(context), again, "does not ask for a client certificate")
    else:
        second = connect(token, context, again).result
        assert (second.resumed, second.client_certificate_sent) == (True, True)


def assert_unusable(
    token: HandshakeToken, server: PythonServer | PyOpenSslServer, begin: HandshakeStart, why: str
) -> None:
    """The handshake fails before anything but an alert answers the server."""
    records = server.receive(token.start(begin, lambda _: None).client_flight)
    with pytest.raises(HandshakeFailed, match=why) as caught:
        token.process(records)
    assert isinstance(caught.value.error, ClientCertificateUnusable)
    server.receive(caught.value.alert_flight)
    assert "alert handshake failure" in str(server.failure)
    assert not server.is_ready


def test_server_that_refuses_our_certificate_in_the_handshake(token: HandshakeToken, tmp_path: Path) -> None:
    """TLS 1.2: its alert is the answer to our flight."""
    context = python_context(tmp_path, version=TLS_1_2)
    server = PythonServer(context)
    step = token.process(server.receive(token.start(start(), lambda _: None).client_flight))
    assert step.client_flight
    with pytest.raises(HandshakeFailed) as caught:
        token.process(bytes.fromhex("15 03 03 00 02 02 2D"))
    assert isinstance(caught.value.error, ClientCertificateRefused)
    assert caught.value.error.metadata == {"alert_received": "CERTIFICATE_EXPIRED"}


@pytest.mark.parametrize(
    "changes",
    [
        {"server_name": "no..name"},
        {"server_name": "sü.example"},
        {"server_name": "x" * 300},
        {"server_name": ""},
        {"alpn": ("x" * 256,)},
        {"alpn": ("",)},
        {"alpn": ("hé",)},
        {"min_version": ProtocolVersion.TLS_1_3, "max_version": ProtocolVersion.TLS_1_2},
    ],
    ids=str,
)
def test_senseless_start_is_the_mistake_of_who_asked(
    token: HandshakeToken, tmp_path: Path, changes: dict[str, object]
) -> None:
    with pytest.raises(HandshakeFailed) as caught:
        token.start(start(**changes), lambda _: None)
    assert isinstance(caught.value.error, InvalidRequest)
    connect(token, python_context(tmp_path))
