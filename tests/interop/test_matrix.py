"""Real servers against us: versions, identities, resumption, HelloRetryRequest, ALPN, bulk, KeyUpdate.

Each case of the table runs with the engine alone and with the whole stack: application, agent, broker, card.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.x509 import ocsp

from tests.support.clients import BULK, KNOWN_ALPN, Client, Session, check
from tests.support.conversations import GnutlsEcho
from tests.support.engine_client import EngineClient
from tests.support.pki import KeyKind, pki, server_identity
from tests.support.servers import (
    OPENSSL_AT_THE_KEYBOARD,
    PROGRAMS,
    TLS_1_2,
    TLS_1_3,
    Feature,
    Program,
    Server,
    ServerOptions,
)

pytestmark = pytest.mark.interop

LINE = b"0123456789abcdef"
OFFERED_ALPN = ("vmtoken-test", KNOWN_ALPN)
RESUMPTION_ATTEMPTS = 5
"""A ticket goes to the token while the application goes on: a connect right behind it may be too early."""


def programs(*needed: Feature) -> list[object]:
    """The servers that can do what is needed; `Program.lacks` says why the others cannot."""
    able = (program for program in PROGRAMS.values() if not program.lacks.keys() & set(needed))
    return [pytest.param(program, id=program.name) for program in able]


@pytest.mark.parametrize("program", programs())
@pytest.mark.parametrize("kind", [KeyKind.ECDSA_P256, KeyKind.RSA_2048])
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_full_and_resumed_session(
    program: Program, kind: KeyKind, version: str, client: Client, tmp_path: Path
) -> None:
    options = ServerOptions(kind=kind, minimum=version, maximum=version, alpn=(KNOWN_ALPN,))
    with program.serve(tmp_path, options) as server:
        first = client.connect(server, kind, alpn=OFFERED_ALPN)
        check(first, server, version=version, resumed=False)
        assert first.client_certificate_sent
        client.close(first, server, kind)
        second = resume(client, server, kind)
        check(second, server, version=version, resumed=True)
        client.close(second, server, kind)


@pytest.mark.parametrize("program", programs())
def test_server_that_wants_another_group_asks_again(program: Program, client: Client, tmp_path: Path) -> None:
    with program.serve(tmp_path, ServerOptions(groups=("secp384r1",), minimum=TLS_1_3)) as server:
        session = client.connect(server, KeyKind.ECDSA_P256)
        check(session, server, version=TLS_1_3, resumed=False, alpn=None)
        assert session.group == "SECP384R1"
        client.close(session, server, KeyKind.ECDSA_P256)


@pytest.mark.parametrize("program", programs())
def test_key_exchange_of_a_tls12_server_may_be_on_another_curve(
    program: Program, client: Client, tmp_path: Path
) -> None:
    with program.serve(tmp_path, ServerOptions(groups=("secp256r1",), maximum=TLS_1_2)) as server:
        session = client.connect(server, KeyKind.ECDSA_P256)
        check(session, server, version=TLS_1_2, resumed=False, alpn=None)
        assert session.group == "SECP256R1"
        client.close(session, server, KeyKind.ECDSA_P256)


@pytest.mark.parametrize("program", programs(Feature.X25519MLKEM768))
def test_hybrid_key_exchange(program: Program, client: Client, tmp_path: Path) -> None:
    with program.serve(tmp_path, ServerOptions(groups=("X25519MLKEM768",), minimum=TLS_1_3)) as server:
        session = client.connect(server, KeyKind.ECDSA_P256)
        check(session, server, version=TLS_1_3, resumed=False, alpn=None)
        assert session.group == "X25519MLKEM768"
        client.close(session, server, KeyKind.ECDSA_P256)


@pytest.mark.parametrize("program", programs())
def test_server_without_tickets_and_cache_gets_full_handshakes(
    program: Program, client: Client, tmp_path: Path
) -> None:
    with program.serve(tmp_path, ServerOptions(tickets=False)) as server:
        for _ in range(2):
            session = client.connect(server, KeyKind.ECDSA_P256)
            check(session, server, version=TLS_1_3, resumed=False, alpn=None)
            client.close(session, server, KeyKind.ECDSA_P256)


@pytest.mark.parametrize("program", programs(Feature.SMALL_RECORDS))
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_server_that_sends_small_records(
    program: Program, version: str, client: Client, tmp_path: Path
) -> None:
    options = ServerOptions(minimum=version, maximum=version, record_size=512)
    with program.serve(tmp_path, options) as server:
        session = client.connect(server, KeyKind.ECDSA_P256)
        check(session, server, version=version, resumed=False, alpn=None)
        client.close(session, server, KeyKind.ECDSA_P256)


@pytest.mark.parametrize("program", programs(Feature.STAPLES))
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_good_ocsp_staple_is_taken(program: Program, version: str, client: Client, tmp_path: Path) -> None:
    staple = pki().intermediate.ocsp_response(server_identity(KeyKind.ECDSA_P256).certificate)
    options = ServerOptions(minimum=version, maximum=version, ocsp_response=staple)
    with program.serve(tmp_path, options) as server:
        session = client.connect(server, KeyKind.ECDSA_P256)
        check(session, server, version=version, resumed=False, alpn=None)
        client.close(session, server, KeyKind.ECDSA_P256)


@pytest.mark.parametrize("program", programs(Feature.STAPLES_REVOCATION))
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_staple_that_says_revoked_ends_the_handshake(
    program: Program, version: str, client: Client, tmp_path: Path
) -> None:
    certificate = server_identity(KeyKind.ECDSA_P256).certificate
    staple = pki().intermediate.ocsp_response(certificate, ocsp.OCSPCertStatus.REVOKED)
    options = ServerOptions(minimum=version, maximum=version, ocsp_response=staple)
    with program.serve(tmp_path, options) as server, pytest.raises(client.failures, match="revoked"):
        client.connect(server, KeyKind.ECDSA_P256)


@pytest.mark.parametrize("kind", [KeyKind.ED25519, KeyKind.ECDSA_P384, KeyKind.RSA_PSS_2048])
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_other_keys(kind: KeyKind, version: str, client: Client, tmp_path: Path) -> None:
    if kind not in client.kinds:
        pytest.skip(f"no card makes keys of the kind {kind}")
    with PROGRAMS["openssl"].serve(
        tmp_path, ServerOptions(kind=kind, minimum=version, maximum=version)
    ) as server:
        session = client.connect(server, kind)
        check(session, server, version=version, resumed=False, alpn=None)
        client.close(session, server, kind)


@pytest.mark.parametrize("kind", [KeyKind.ML_DSA_44, KeyKind.ML_DSA_65, KeyKind.ML_DSA_87])
def test_post_quantum_keys(kind: KeyKind, client: Client, tmp_path: Path) -> None:
    with PROGRAMS["pyopenssl"].serve(tmp_path, ServerOptions(kind=kind)) as server:
        session = client.connect(server, kind)
        check(session, server, version=TLS_1_3, resumed=False, alpn=None)
        assert session.group == "X25519MLKEM768"
        client.close(session, server, kind)


def test_server_that_keeps_no_state_before_the_second_client_hello(client: Client, tmp_path: Path) -> None:
    with PROGRAMS["openssl"].serve(
        tmp_path, ServerOptions(arguments=("-stateless",), minimum=TLS_1_3)
    ) as server:
        session = client.connect(server, KeyKind.ECDSA_P256)
        check(session, server, version=TLS_1_3, resumed=False, alpn=None)
        client.close(session, server, KeyKind.ECDSA_P256)


def test_server_that_wants_a_signature_our_key_cannot_make(client: Client, tmp_path: Path) -> None:
    options = ServerOptions(arguments=("-client_sigalgs", "RSA-PSS+SHA256"))
    with PROGRAMS["openssl"].serve(tmp_path, options) as server, pytest.raises(client.failures):
        client.connect(server, KeyKind.ECDSA_P256)


class TestKeyUpdate:
    """RFC 8446 section 4.6.3. From our side with the engine: only wear makes an agent update its keys."""

    @pytest.mark.parametrize("program", programs())
    def test_from_our_side_with_an_answer(self, program: Program, tmp_path: Path) -> None:
        with program.serve(tmp_path, ServerOptions(minimum=TLS_1_3)) as server:
            session = EngineClient().connect(server, KeyKind.ECDSA_P256)
            talk = server.talk(session)
            talk.seen()
            for _ in range(3):
                session.update_keys()
                talk.echo(LINE)
            session.close()

    def test_from_gnutls(self, client: Client, tmp_path: Path) -> None:
        with PROGRAMS["gnutls"].serve(tmp_path, ServerOptions(minimum=TLS_1_3)) as server:
            session = client.connect(server, KeyKind.ECDSA_P256)
            talk = server.talk(session)
            assert isinstance(talk, GnutlsEcho)
            talk.seen()
            talk.rehandshake()
            talk.echo(BULK)
            client.close(session, server, KeyKind.ECDSA_P256)

    @pytest.mark.parametrize("command", ["k", "K"], ids=["without an answer", "with an answer"])
    def test_from_openssl(self, command: str, tmp_path: Path) -> None:
        with OPENSSL_AT_THE_KEYBOARD.serve(tmp_path, ServerOptions(minimum=TLS_1_3)) as server:
            session = EngineClient().connect(server, KeyKind.ECDSA_P256)
            server.child.type("tickets are through\n")
            assert session.receive() == b"tickets are through\n"
            for number in range(3):
                server.child.type(f"{command}\n")
                session.wait_for_records()  # or it would take both lines for one command
                server.child.type(f"line {number}\n")
                assert session.receive() == f"line {number}\n".encode()
                session.send(f"answer {number}\n".encode())
                server.child.wait_for(f"answer {number}")
            session.close()


def test_renegotiation_of_tls12_is_refused(tmp_path: Path) -> None:
    """The session goes on until the server ends it, as OpenSSL does when it is told no."""
    with OPENSSL_AT_THE_KEYBOARD.serve(tmp_path, ServerOptions(maximum=TLS_1_2)) as server:
        session = EngineClient().connect(server, KeyKind.ECDSA_P256)
        server.child.type("r\n")
        session.wait_for_records()
        server.child.type("after the question\n")
        assert session.receive() == b"after the question\n"
        session.flush()
        server.child.wait_for("no renegotiation")
        session.close()


def resume(client: Client, server: Server, kind: KeyKind) -> Session:
    for _ in range(RESUMPTION_ATTEMPTS):
        session = client.connect(server, kind, alpn=OFFERED_ALPN)
        if session.resumed:
            break
        server.talk(session).seen()
        client.close(session, server, kind)
    return session
