"""Every kind of token against OpenSSL and nginx, without agent and link: the cases of `test_matrix`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.x509 import ocsp

from tests.fakes.signing_key import SoftwareKey
from tests.support.clients import KNOWN_ALPN, check
from tests.support.pki import KeyKind, client_identity, pki, server_identity
from tests.support.servers import PROGRAMS, TLS_1_2, TLS_1_3, Program, ServerOptions
from tests.support.signing_keys import PKCS1
from tests.support.token_client import connect
from tests.support.tokens import TOKENS, TokenKind, engine_token
from vmtoken.errors import PolicyDenied, TlsVersionUnsupported
from vmtoken.token import HandshakeFailed, HandshakeToken

pytestmark = pytest.mark.interop

SERVERS = [pytest.param(PROGRAMS[name], id=name) for name in ("openssl", "nginx")]
EVERY_SERVER = [pytest.param(program, id=name) for name, program in PROGRAMS.items()]
OFFERED_ALPN = ("vmtoken-test", KNOWN_ALPN)


@pytest.fixture(scope="module", params=TOKENS, ids=lambda kind: kind.name)
def token(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[HandshakeToken]:
    kind: TokenKind = request.param
    with kind.holder(tmp_path_factory.mktemp("tokens")) as holder:
        token = holder.token()
        yield token
        token.close()


@pytest.mark.parametrize("program", SERVERS)
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_full_and_resumed_session(
    token: HandshakeToken, program: Program, version: str, tmp_path: Path
) -> None:
    options = ServerOptions(minimum=version, maximum=version, alpn=(KNOWN_ALPN,))
    with program.serve(tmp_path, options) as server:
        first = connect(token, server, alpn=OFFERED_ALPN)
        check(first, server, version=version, resumed=False)
        assert first.client_certificate_sent
        first.close()
        second = connect(token, server, first.ticket, alpn=OFFERED_ALPN)
        check(second, server, version=version, resumed=True)
        second.close()


@pytest.mark.parametrize("program", SERVERS)
def test_server_that_wants_another_group_asks_again(
    token: HandshakeToken, program: Program, tmp_path: Path
) -> None:
    with program.serve(tmp_path, ServerOptions(groups=("secp384r1",), minimum=TLS_1_3)) as server:
        session = connect(token, server)
        check(session, server, version=TLS_1_3, resumed=False, alpn=None)
        session.close()


@pytest.mark.parametrize("program", SERVERS)
def test_key_exchange_of_a_tls12_server_may_be_on_another_curve(
    token: HandshakeToken, program: Program, tmp_path: Path
) -> None:
    """P-384 is there for tokens with such a key: in TLS 1.2 the list is about certificates too."""
    groups = ("secp256r1", "secp384r1")
    with program.serve(tmp_path, ServerOptions(groups=groups, maximum=TLS_1_2)) as server:
        session = connect(token, server)
        check(session, server, version=TLS_1_2, resumed=False, alpn=None)
        session.close()


@pytest.mark.parametrize("program", SERVERS)
def test_server_without_tickets_and_cache_gets_full_handshakes(
    token: HandshakeToken, program: Program, tmp_path: Path
) -> None:
    with program.serve(tmp_path, ServerOptions(tickets=False)) as server:
        ticket = None
        for _ in range(2):
            session = connect(token, server, ticket)
            check(session, server, version=TLS_1_3, resumed=False, alpn=None)
            session.close()
            ticket = session.ticket


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_server_that_sends_small_records(token: HandshakeToken, version: str, tmp_path: Path) -> None:
    options = ServerOptions(minimum=version, maximum=version, record_size=512)
    with PROGRAMS["openssl"].serve(tmp_path, options) as server:
        session = connect(token, server)
        check(session, server, version=version, resumed=False, alpn=None)
        session.close()


@pytest.mark.parametrize("program", SERVERS)
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_good_ocsp_staple_is_taken(
    token: HandshakeToken, program: Program, version: str, tmp_path: Path
) -> None:
    staple = pki().intermediate.ocsp_response(server_identity(KeyKind.ECDSA_P256).certificate)
    options = ServerOptions(minimum=version, maximum=version, ocsp_response=staple)
    with program.serve(tmp_path, options) as server:
        session = connect(token, server)
        check(session, server, version=version, resumed=False, alpn=None)
        session.close()


@pytest.mark.parametrize("program", SERVERS)
def test_staple_that_says_revoked_ends_the_handshake(
    token: HandshakeToken, program: Program, tmp_path: Path
) -> None:
    certificate = server_identity(KeyKind.ECDSA_P256).certificate
    staple = pki().intermediate.ocsp_response(certificate, ocsp.OCSPCertStatus.REVOKED)
    options = ServerOptions(ocsp_response=staple)
    with program.serve(tmp_path, options) as server, pytest.raises(HandshakeFailed, match="revoked"):
        connect(token, server)


@pytest.mark.parametrize("kind", [KeyKind.RSA_2048, KeyKind.ED25519, KeyKind.ECDSA_P384])
def test_server_with_another_kind_of_key(token: HandshakeToken, kind: KeyKind, tmp_path: Path) -> None:
    with PROGRAMS["openssl"].serve(tmp_path, ServerOptions(kind=kind)) as server:
        session = connect(token, server)
        check(session, server, version=TLS_1_3, resumed=False, alpn=None)
        session.close()


def test_server_that_keeps_no_state_before_the_second_client_hello(
    token: HandshakeToken, tmp_path: Path
) -> None:
    options = ServerOptions(arguments=("-stateless",), minimum=TLS_1_3)
    with PROGRAMS["openssl"].serve(tmp_path, options) as server:
        session = connect(token, server)
        check(session, server, version=TLS_1_3, resumed=False, alpn=None)
        session.close()


@pytest.mark.parametrize("program", EVERY_SERVER)
def test_key_that_can_only_pkcs1_is_taken_in_tls12(program: Program, tmp_path: Path) -> None:
    """The servers would take TLS 1.3 too."""
    token = engine_token(SoftwareKey(client_identity(KeyKind.RSA_2048), PKCS1))
    with program.serve(tmp_path) as server:
        session = connect(token, server)
        check(session, server, version=TLS_1_2, resumed=False, alpn=None)
        assert session.client_certificate_sent
        session.close()


@pytest.mark.parametrize("program", EVERY_SERVER)
def test_server_that_demands_tls13_is_told_apart(program: Program, tmp_path: Path) -> None:
    token = engine_token(SoftwareKey(client_identity(KeyKind.RSA_2048), PKCS1))
    with program.serve(tmp_path, ServerOptions(minimum=TLS_1_3)) as server:
        with pytest.raises(HandshakeFailed, match=r"can only sign PKCS#1 v1\.5") as caught:
            connect(token, server)
        assert isinstance(caught.value.error, TlsVersionUnsupported)


def test_denial_leaves_the_server_without_a_session(tmp_path: Path) -> None:
    key = SoftwareKey(client_identity())
    token = engine_token(key)

    def refuse(_: object) -> None:
        raise PolicyDenied("Not this server.")

    with PROGRAMS["openssl"].serve(tmp_path, ServerOptions(minimum=TLS_1_3)) as server:
        with pytest.raises(HandshakeFailed, match="Not this server"):
            connect(token, server, authorize=refuse)
        server.child.wait_for("alert access denied")
    assert key.signatures == 0
