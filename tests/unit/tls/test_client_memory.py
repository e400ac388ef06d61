"""The engine against OpenSSL 3.0 and 4.0 in memory: every version, suite, group and kind of key."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.x509.ocsp import OCSPCertStatus as Status
from OpenSSL import SSL

from tests.support.memory import (
    Client,
    PyOpenSslServer,
    PythonServer,
    config,
    credential,
    exchange,
    handshake,
    pyopenssl_context,
    python_context,
)
from tests.support.pki import (
    CLASSIC_KINDS,
    DAY,
    NOW,
    SERVER_NAME,
    KeyKind,
    client_identity,
    pki,
    server_identity,
)
from vmtoken.tls.codes import CipherSuite, NamedGroup, ProtocolVersion
from vmtoken.tls.config import DEFAULT_CIPHER_SUITES
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.errors import BadCertificateStatusResponse, CertificateRevoked, CredentialUnusable
from vmtoken.tls.events import DataReceived, ServerAuthenticated, TicketReceived
from vmtoken.tls.suites import suite_of
from vmtoken.tls.tickets import ResumableSession

TLS12, TLS13 = ProtocolVersion.TLS_1_2, ProtocolVersion.TLS_1_3
PYTHON_VERSIONS = {TLS12: ssl.TLSVersion.TLSv1_2, TLS13: ssl.TLSVersion.TLSv1_3}
PYOPENSSL_VERSIONS = {TLS12: SSL.TLS1_2_VERSION, TLS13: SSL.TLS1_3_VERSION}
VERSIONS = pytest.mark.parametrize("version", [TLS12, TLS13], ids=lambda version: version.name)


@VERSIONS
@pytest.mark.parametrize("kind", CLASSIC_KINDS)
def test_every_kind_of_key_on_both_sides(tmp_path: Path, version: ProtocolVersion, kind: KeyKind) -> None:
    context = python_context(tmp_path, server_identity(kind), version=PYTHON_VERSIONS[version])
    client = Client(config(credential=credential(client_identity(kind))), client_identity(kind))
    server = PythonServer(context)
    complete = handshake(client, server)
    assert complete.version is version
    assert complete.client_certificate_sent
    assert complete.server.leaf == server_identity(kind).chain_der[0]
    assert server.tls.getpeercert(binary_form=True) == client_identity(kind).chain_der[0]
    exchange(client, server)


@pytest.mark.parametrize("kind", [KeyKind.ML_DSA_44, KeyKind.ML_DSA_65, KeyKind.ML_DSA_87])
def test_ml_dsa_on_both_sides(tmp_path: Path, kind: KeyKind) -> None:
    context = pyopenssl_context(tmp_path, server_identity(kind))
    client = Client(config(credential=credential(client_identity(kind))), client_identity(kind))
    server = PyOpenSslServer(context)
    complete = handshake(client, server)
    assert complete.version is TLS13
    assert complete.group is NamedGroup.X25519MLKEM768
    assert server.tls.get_group_name() == "X25519MLKEM768"
    exchange(client, server)


@pytest.mark.parametrize("suite", DEFAULT_CIPHER_SUITES, ids=lambda suite: suite.name)
def test_every_suite(tmp_path: Path, suite: CipherSuite) -> None:
    kind = KeyKind.RSA_2048 if "_RSA_" in suite.name else KeyKind.ECDSA_P256
    server = PythonServer(python_context(tmp_path, server_identity(kind)))
    client = Client(config(cipher_suites=(suite,)))
    complete = handshake(client, server)
    assert complete.cipher_suite is suite
    assert complete.version is suite_of(suite).version
    exchange(client, server)


@VERSIONS
@pytest.mark.parametrize("group", [NamedGroup.X25519, NamedGroup.SECP256R1, NamedGroup.SECP384R1])
def test_every_group(tmp_path: Path, version: ProtocolVersion, group: NamedGroup) -> None:
    """TLS 1.2 limits the curves of certificates by the same extension, hence RSA."""
    context = python_context(tmp_path, server_identity(KeyKind.RSA_2048), version=PYTHON_VERSIONS[version])
    identity = client_identity(KeyKind.RSA_2048)
    client = Client(config(groups=(group,), credential=credential(identity)), identity)
    assert handshake(client, PythonServer(context)).group is group


@pytest.mark.parametrize(
    ("curve", "group"), [("prime256v1", NamedGroup.SECP256R1), ("secp384r1", NamedGroup.SECP384R1)]
)
def test_hello_retry_request_changes_the_group(tmp_path: Path, curve: str, group: NamedGroup) -> None:
    context = python_context(tmp_path, version=ssl.TLSVersion.TLSv1_3)
    context.set_ecdh_curve(curve)
    client, server = Client(config()), PythonServer(context)
    assert handshake(client, server).group is group
    exchange(client, server)


def test_without_shares_the_server_asks_for_one(tmp_path: Path) -> None:
    client = Client(config(key_shares=()))
    server = PyOpenSslServer(pyopenssl_context(tmp_path))
    assert handshake(client, server).group is NamedGroup.X25519MLKEM768


@VERSIONS
def test_alpn(tmp_path: Path, version: ProtocolVersion) -> None:
    context = python_context(tmp_path, version=PYTHON_VERSIONS[version])
    context.set_alpn_protocols(["http/1.1"])
    client, server = Client(config(alpn=("h2", "http/1.1"))), PythonServer(context)
    assert handshake(client, server).alpn == server.tls.selected_alpn_protocol() == "http/1.1"


@VERSIONS
def test_sni_is_sent_for_names_and_not_for_addresses(tmp_path: Path, version: ProtocolVersion) -> None:
    seen: list[str | None] = []
    context = python_context(tmp_path, version=PYTHON_VERSIONS[version])
    context.sni_callback = lambda _connection, name, _context: seen.append(name)
    for name in (SERVER_NAME, "127.0.0.1", "::1"):
        assert handshake(Client(config(server_name=name)), PythonServer(context)).server.server_name == name
    assert seen == [SERVER_NAME, None, None]


@VERSIONS
def test_a_server_that_does_not_ask_gets_no_certificate(tmp_path: Path, version: ProtocolVersion) -> None:
    context = python_context(tmp_path, version=PYTHON_VERSIONS[version], verify=ssl.CERT_NONE)
    client, server = Client(config()), PythonServer(context)
    assert not handshake(client, server).client_certificate_sent
    with pytest.raises(CredentialUnusable, match="does not ask"):
        handshake(Client(config(require_client_certificate=True)), PythonServer(context))


@VERSIONS
def test_without_credential_an_optional_request_is_answered_empty(
    tmp_path: Path, version: ProtocolVersion
) -> None:
    context = python_context(tmp_path, version=PYTHON_VERSIONS[version], verify=ssl.CERT_OPTIONAL)
    client, server = Client(config(credential=None)), PythonServer(context)
    assert not handshake(client, server).client_certificate_sent
    assert server.tls.getpeercert() is None
    exchange(client, server)


@VERSIONS
def test_a_server_that_names_other_cas_is_told(tmp_path: Path, version: ProtocolVersion) -> None:
    identity = pki(KeyKind.ECDSA_P384).intermediate.issue("web02")
    context = pyopenssl_context(tmp_path, version=PYOPENSSL_VERSIONS[version])
    context.set_verify(SSL.VERIFY_PEER)
    context.load_client_ca(bytes(server_identity().write(tmp_path).anchors))
    with pytest.raises(CredentialUnusable, match="wrong certificate authorities"):
        handshake(Client(config(credential=credential(identity)), identity), PyOpenSslServer(context))
    lenient = config(credential=credential(identity), allow_empty_certificate=True)
    assert not handshake(Client(lenient, identity), PyOpenSslServer(context)).client_certificate_sent
    assert handshake(Client(config()), PyOpenSslServer(context)).client_certificate_sent


def test_ml_dsa_keys_are_of_no_use_in_tls_1_2(tmp_path: Path) -> None:
    identity = client_identity(KeyKind.ML_DSA_44)
    context = python_context(tmp_path, version=ssl.TLSVersion.TLSv1_2)
    with pytest.raises(CredentialUnusable, match="wrong signature schemes"):
        handshake(Client(config(credential=credential(identity)), identity), PythonServer(context))


# Resumption


def session_of(client: Client) -> ResumableSession:
    """What can be resumed after a handshake: the session of TLS 1.2, or one by a ticket of TLS 1.3."""
    complete = client.complete
    assert complete is not None
    if complete.version is TLS12:
        session = client.connection.session()
    else:
        resumption = client.connection.resumption()
        assert resumption is not None
        client.run()
        ticket = next(event for event in client.events if isinstance(event, TicketReceived))
        session = resumption.session(ticket.message, NOW)
    assert session is not None
    return session


def make_server(tmp_path: Path, kind: str, version: ProtocolVersion) -> type:
    if kind == "ssl":
        context = python_context(tmp_path, version=PYTHON_VERSIONS[version])
        return lambda: PythonServer(context)
    newer = pyopenssl_context(tmp_path, version=PYOPENSSL_VERSIONS[version])
    return lambda: PyOpenSslServer(newer)


@VERSIONS
@pytest.mark.parametrize("implementation", ["ssl", "pyopenssl"])
def test_a_session_is_resumed(tmp_path: Path, implementation: str, version: ProtocolVersion) -> None:
    make = make_server(tmp_path, implementation, version)
    first, server = Client(config()), make()
    full = handshake(first, server)
    if server.is_ready:
        exchange(first, server, sizes=(5,))
    session = session_of(first)
    second, server = Client(config(session=session)), make()
    resumed = handshake(second, server)
    assert resumed.resumed
    assert not full.resumed
    assert resumed.server is full.server
    assert resumed.client_certificate_sent
    assert resumed.version is version
    authenticated = [event for event in second.events if isinstance(event, ServerAuthenticated)]
    assert authenticated == [ServerAuthenticated(full.server, resumed=True)]
    exchange(second, server)


def test_a_tls_1_2_session_is_resumed_by_its_id(tmp_path: Path) -> None:
    context = python_context(tmp_path, version=ssl.TLSVersion.TLSv1_2)
    context.options |= ssl.OP_NO_TICKET
    first, server = Client(config()), PythonServer(context)
    handshake(first, server)
    session = session_of(first)
    assert session.session_id
    assert not session.ticket
    second, another = Client(config(session=session)), PythonServer(context)
    assert handshake(second, another).resumed
    exchange(second, another)
    assert handshake(Client(config(session=session_of(second))), PythonServer(context)).resumed


@VERSIONS
def test_a_session_that_the_server_forgot_leads_to_a_full_handshake(
    tmp_path: Path, version: ProtocolVersion
) -> None:
    first, server = Client(config()), make_server(tmp_path, "ssl", version)()
    handshake(first, server)
    exchange(first, server, sizes=(5,))
    again, other = Client(config(session=session_of(first))), make_server(tmp_path, "ssl", version)()
    assert not handshake(again, other).resumed
    exchange(again, other)


def test_hello_retry_request_and_resumption_go_together(tmp_path: Path) -> None:
    context = python_context(tmp_path, version=ssl.TLSVersion.TLSv1_3)
    first, server = Client(config()), PythonServer(context)
    handshake(first, server)
    exchange(first, server, sizes=(5,))
    context.set_ecdh_curve("secp384r1")
    second = Client(config(session=session_of(first)))
    resumed = handshake(second, PythonServer(context))
    assert resumed.resumed
    assert resumed.group is NamedGroup.SECP384R1


# OCSP


@VERSIONS
def test_a_good_staple_passes_and_a_bad_one_does_not(tmp_path: Path, version: ProtocolVersion) -> None:
    certificate, issuer = server_identity().certificate, pki().intermediate
    context = pyopenssl_context(tmp_path, version=PYOPENSSL_VERSIONS[version])
    staples = [
        issuer.ocsp_response(certificate),
        b"",
        issuer.ocsp_response(certificate, Status.REVOKED),
        issuer.ocsp_response(certificate, next_update=NOW - DAY, this_update=NOW - 2 * DAY),
    ]
    context.set_ocsp_server_callback(lambda _connection, _data: staples.pop(0))
    handshake(Client(config()), PyOpenSslServer(context))
    handshake(Client(config()), PyOpenSslServer(context))
    with pytest.raises(CertificateRevoked):
        handshake(Client(config()), PyOpenSslServer(context))
    with pytest.raises(BadCertificateStatusResponse):
        handshake(Client(config()), PyOpenSslServer(context))


# What comes out


@VERSIONS
def test_the_key_block_carries_the_session_on(tmp_path: Path, version: ProtocolVersion) -> None:
    client, server = (
        Client(config()),
        PythonServer(python_context(tmp_path, version=PYTHON_VERSIONS[version])),
    )
    handshake(client, server)
    unread, records = client.connection.unread, DelegatedConnection(client.connection.key_block())
    records.receive_data(unread)
    records.send_data(b"ping")
    server.receive(bytes(records.data_to_send()))
    assert server.received == b"ping"
    records.receive_data(server.send(b"pong"))
    events = [records.next_event() for _ in range(4)]
    assert DataReceived(b"pong") in events


@VERSIONS
def test_both_sides_export_the_same_keying_material(tmp_path: Path, version: ProtocolVersion) -> None:
    context = pyopenssl_context(tmp_path, version=PYOPENSSL_VERSIONS[version])
    client, server = Client(config()), PyOpenSslServer(context)
    handshake(client, server)
    for context_value in (None, b"", b"\x0d"):
        ours = client.connection.export_keying_material("EXPORTER_test", context_value, 128)
        assert ours == server.tls.export_keying_material(b"EXPORTER_test", 128, context_value)


def test_the_key_log_has_what_the_other_side_logs(tmp_path: Path) -> None:
    for version in (TLS12, TLS13):
        log, lines = tmp_path / f"{version.name}.log", []
        context = python_context(tmp_path, version=PYTHON_VERSIONS[version])
        context.keylog_filename = str(log)
        handshake(Client(config(key_log=lines.append)), PythonServer(context))
        theirs = {line.lower() for line in log.read_text().splitlines() if not line.startswith("#")}
        assert {line.lower() for line in lines} == theirs
