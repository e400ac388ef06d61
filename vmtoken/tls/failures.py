"""What a failed handshake is for an application and for a person."""

from __future__ import annotations

from vmtoken.errors import (
    ClientCertificateRefused,
    ClientCertificateUnusable,
    ServerCertificateInvalid,
    TlsHandshakeFailed,
    TlsVersionUnsupported,
    VmTokenError,
)
from vmtoken.tls.codes import AlertDescription, name_of
from vmtoken.tls.errors import (
    AlertReceived,
    BadCertificate,
    BadCertificateStatusResponse,
    CertificateExpired,
    CertificateRevoked,
    CertificateUnknown,
    CredentialUnusable,
    LocalError,
    PeerError,
    SignatureInvalid,
    TlsError,
    UnknownCa,
    UnsupportedCertificate,
    UnsupportedVersion,
)


def failure_of(error: TlsError, server_name: str, *, client_certificate_sent: bool = False) -> VmTokenError:
    """The error that crosses the boundary, with one sentence for a person.

    `client_certificate_sent` tells an alert about our certificate from one about something else.
    The alert that was sent or received, if any, is in the metadata.
    """
    match error:
        case AlertReceived():
            return _alert_received(error, server_name, client_certificate_sent)
        case _ if isinstance(error, _SERVER_CERTIFICATE):
            return ServerCertificateInvalid(_sentence(error, server_name), alert_sent=error.alert.name)
        case UnsupportedVersion():
            return TlsVersionUnsupported(_sentence(error, server_name), alert_sent=error.alert.name)
        case CredentialUnusable():
            return ClientCertificateUnusable(_sentence(error, server_name), alert_sent=error.alert.name)
        case PeerError() | LocalError():
            return TlsHandshakeFailed(_sentence(error, server_name), alert_sent=error.alert.name)
        case _:
            return TlsHandshakeFailed(_sentence(error, server_name))


_SERVER_CERTIFICATE = (
    BadCertificate,
    BadCertificateStatusResponse,
    CertificateExpired,
    CertificateRevoked,
    CertificateUnknown,
    SignatureInvalid,
    UnknownCa,
    UnsupportedCertificate,
)

_ABOUT_CLIENT_CERTIFICATE = frozenset(
    {
        AlertDescription.BAD_CERTIFICATE,
        AlertDescription.UNSUPPORTED_CERTIFICATE,
        AlertDescription.CERTIFICATE_REVOKED,
        AlertDescription.CERTIFICATE_EXPIRED,
        AlertDescription.CERTIFICATE_UNKNOWN,
        AlertDescription.UNKNOWN_CA,
        AlertDescription.ACCESS_DENIED,
        AlertDescription.CERTIFICATE_REQUIRED,
    }
)


def _alert_received(error: AlertReceived, server_name: str, client_certificate_sent: bool) -> VmTokenError:
    alert = name_of(AlertDescription, error.description)
    if error.description == AlertDescription.PROTOCOL_VERSION:
        return TlsVersionUnsupported(
            f"The server {server_name} speaks none of the TLS versions allowed here; ask for one that it "
            "speaks, or let its operator enable TLS 1.2 or 1.3.",
            alert_received=alert,
        )
    if error.description == AlertDescription.CERTIFICATE_REQUIRED and not client_certificate_sent:
        return ClientCertificateUnusable(
            f"The server {server_name} demands a client certificate and got none; connect with a token whose "
            "certificate it accepts.",
            alert_received=alert,
        )
    if client_certificate_sent and error.description in _ABOUT_CLIENT_CERTIFICATE:
        return ClientCertificateRefused(
            f"The server {server_name} refuses the client certificate with the alert {alert}; let its "
            "operator accept it, or connect with another token.",
            alert_received=alert,
        )
    return TlsHandshakeFailed(
        f"The server {server_name} ended the handshake with the alert {alert}; its log may say why.",
        alert_received=alert,
    )


def _sentence(error: TlsError, server_name: str) -> str:
    return f"The handshake with {server_name} failed: {error}."
