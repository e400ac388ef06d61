"""What people and programs learn of a failed handshake."""

from __future__ import annotations

import pytest

from tests.fakes.tls_server import FakeServer12, FakeServer13
from tests.support.memory import Client, config
from tests.support.pki import DAY, NOW, Authority, Usage, pki
from tests.support.sentences import is_sentence
from vmtoken.errors import (
    ClientCertificateRefused,
    ClientCertificateUnusable,
    ServerCertificateInvalid,
    TlsHandshakeFailed,
    TlsVersionUnsupported,
    VmTokenError,
)
from vmtoken.tls.codes import AlertDescription, HandshakeType, ProtocolVersion
from vmtoken.tls.errors import AlertReceived, CredentialUnusable, TlsError, TruncatedStream
from vmtoken.tls.failures import failure_of
from vmtoken.tls.messages import Finished

A, H = AlertDescription, HandshakeType


def failure(server: FakeServer13 | FakeServer12, **changes: object) -> VmTokenError:
    client = Client(config(**changes))
    server.receive_hello(client.connection.data_to_send())
    with pytest.raises(TlsError) as caught:
        client.receive(server.whole_flight())
    return failure_of(caught.value, "server.example")


SERVERS = {
    "expired": (
        lambda: FakeServer13(pki().intermediate.issue(not_after=NOW - DAY)),
        "the server's certificate expired on",
        "CERTIFICATE_EXPIRED",
    ),
    "other name": (
        lambda: FakeServer13(pki().intermediate.issue("other.example")),
        "the server's certificate is for other.example",
        "CERTIFICATE_UNKNOWN",
    ),
    "unknown CA": (
        lambda: FakeServer13(Authority.self_signed("stranger").issue()),
        "no path leads from the server's certificate to a trust anchor",
        "UNKNOWN_CA",
    ),
    "for clients": (
        lambda: FakeServer12(pki().intermediate.issue(usage=Usage.CLIENT)),
        "the server's certificate is not for TLS servers",
        "UNSUPPORTED_CERTIFICATE",
    ),
    "stolen certificate": (
        lambda: FakeServer13(
            changes={H.CERTIFICATE_VERIFY: lambda m: type(m)(m.algorithm, m.signature[:-1] + b"x")}
        ),
        "signature does not verify under its certificate",
        "DECRYPT_ERROR",
    ),
}


@pytest.mark.parametrize("case", SERVERS, ids=str)
def test_a_bad_server_certificate(case: str) -> None:
    make, text, alert = SERVERS[case]
    error = failure(make())
    assert isinstance(error, ServerCertificateInvalid)
    assert text in error.message
    assert is_sentence(error.message)
    assert error.metadata == {"alert_sent": alert}


def test_a_bad_finished_is_not_about_the_certificate() -> None:
    error = failure(FakeServer13(changes={H.FINISHED: lambda _m: Finished(bytes(32))}))
    assert type(error) is TlsHandshakeFailed
    assert "server.example" in error.message


def test_an_old_server() -> None:
    error = failure(FakeServer12(), min_version=ProtocolVersion.TLS_1_3)
    assert isinstance(error, TlsVersionUnsupported)


ALERTS = [
    (A.PROTOCOL_VERSION, False, TlsVersionUnsupported),
    (A.PROTOCOL_VERSION, True, TlsVersionUnsupported),
    (A.CERTIFICATE_REQUIRED, False, ClientCertificateUnusable),
    (A.CERTIFICATE_REQUIRED, True, ClientCertificateRefused),
    (A.UNKNOWN_CA, True, ClientCertificateRefused),
    (A.CERTIFICATE_REVOKED, True, ClientCertificateRefused),
    (A.UNKNOWN_CA, False, TlsHandshakeFailed),
    (A.HANDSHAKE_FAILURE, True, TlsHandshakeFailed),
    (200, True, TlsHandshakeFailed),
]


@pytest.mark.parametrize(("alert", "sent", "kind"), ALERTS)
def test_an_alert_of_the_server(alert: int, sent: bool, kind: type[VmTokenError]) -> None:
    error = failure_of(AlertReceived(2, alert), "server.example", client_certificate_sent=sent)
    assert type(error) is kind
    assert "server.example" in error.message
    assert is_sentence(error.message)
    assert error.metadata["alert_received"] == getattr(alert, "name", "0x00c8")


def test_a_certificate_that_the_server_cannot_use() -> None:
    error = failure_of(CredentialUnusable("the server does not accept it"), "server.example")
    assert isinstance(error, ClientCertificateUnusable)


def test_the_end_of_tcp() -> None:
    error = failure_of(TruncatedStream("TCP ended"), "server.example")
    assert type(error) is TlsHandshakeFailed
    assert error.message == "The handshake with server.example failed: TCP ended."
    assert error.metadata == {}
