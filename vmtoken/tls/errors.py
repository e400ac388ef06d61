"""What can go wrong in TLS, by who is at fault.

`LocalError`: this engine was misused or a limit of ours was reached; `PeerError`: the peer broke
the protocol, and the class names the alert that it is owed; `AlertReceived`: the peer says that
something is wrong; `TruncatedStream`: TCP ended before the peer said so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from vmtoken.tls.codes import AlertDescription, AlertLevel, ExtensionType, HandshakeType, name_of


class TlsError(Exception):
    """Any failure of a TLS connection.

    The text holds no secret. It is a clause, to follow "the handshake failed:": it says what is wrong, and
    what to do where something can be done.
    """


class LocalError(TlsError):
    """This side was misused or cannot go on; the peer did nothing wrong.

    `alert` is what the peer is told when the error ends a connection.
    """

    alert: ClassVar[AlertDescription] = AlertDescription.INTERNAL_ERROR


class ConnectionClosed(LocalError):
    """Data was given to a connection whose sending half has ended."""


class CredentialUnusable(LocalError):
    """The server asks for what our credential cannot do, or not for it at all where it must."""

    alert = AlertDescription.HANDSHAKE_FAILURE


class SequenceExhausted(LocalError):
    """The key of one direction has protected as many records as its suite allows (RFC 8446 section 5.5)."""


class AlertReceived(TlsError):
    """The peer ended the connection with an alert (RFC 8446 section 6)."""

    def __init__(self, level: int, description: int) -> None:
        super().__init__(
            f"the server ended the connection with the alert {name_of(AlertDescription, description)}"
        )
        self.level = level
        self.description = description

    @property
    def is_fatal(self) -> bool:
        """True unless the level says warning; RFC 8446 section 6 ignores the level of an error alert."""
        return self.level != AlertLevel.WARNING


class TruncatedStream(TlsError):
    """TCP ended without close_notify: data may be missing (RFC 8446 section 6.1)."""


class PeerError(TlsError):
    """The peer broke the protocol. `alert` is what it must be sent, at level fatal."""

    alert: ClassVar[AlertDescription]


class MalformedMessage(PeerError):
    """Octets from the peer do not parse: the home of every `vmtoken.codec.DecodeError`."""

    alert = AlertDescription.DECODE_ERROR


class IllegalParameter(PeerError):
    """A field parses, but its value is forbidden or contradicts another."""

    alert = AlertDescription.ILLEGAL_PARAMETER


class UnexpectedMessage(PeerError):
    """A message or record came that does not belong here."""

    alert = AlertDescription.UNEXPECTED_MESSAGE

    def __init__(self, got: str | int, expected: Iterable[int] = ()) -> None:
        """`got` and `expected` are handshake types, or `got` says in words what came."""
        self.got = got
        self.expected = tuple(expected)
        text = f"{got if isinstance(got, str) else name_of(HandshakeType, got)} came"
        if self.expected:
            text += ", expected " + " or ".join(name_of(HandshakeType, kind) for kind in self.expected)
        super().__init__(text)


class TooManyRecords(PeerError):
    """The peer sends empty records, warnings or key updates without end."""

    alert = AlertDescription.UNEXPECTED_MESSAGE


class RecordOverflow(PeerError):
    """A record is longer than the protocol, or the limit that we announced, allows."""

    alert = AlertDescription.RECORD_OVERFLOW


class BadRecordMac(PeerError):
    """A record does not verify under the key of its direction."""

    alert = AlertDescription.BAD_RECORD_MAC


class DecryptError(PeerError):
    """A signature, a Finished message or a binder does not verify."""

    alert = AlertDescription.DECRYPT_ERROR


class SignatureInvalid(DecryptError):
    """The server's signature does not verify: it does not hold the key of its certificate."""


class HandshakeFailure(PeerError):
    """There is nothing that both sides could agree on."""

    alert = AlertDescription.HANDSHAKE_FAILURE


class InsufficientSecurity(PeerError):
    """The peer's choice is weaker than we accept."""

    alert = AlertDescription.INSUFFICIENT_SECURITY


class UnsupportedVersion(PeerError):
    """The peer speaks no version that we may speak."""

    alert = AlertDescription.PROTOCOL_VERSION


class UnsupportedExtension(PeerError):
    """The peer answers an extension that we did not send."""

    alert = AlertDescription.UNSUPPORTED_EXTENSION

    def __init__(self, extension_type: int) -> None:
        super().__init__(
            f"the server answers {name_of(ExtensionType, extension_type)}, which was not offered"
        )
        self.extension_type = extension_type


class MissingExtension(PeerError):
    """An extension that the version demands is not there."""

    alert = AlertDescription.MISSING_EXTENSION

    def __init__(self, extension_type: int) -> None:
        super().__init__(f"the extension {name_of(ExtensionType, extension_type)} is missing")
        self.extension_type = extension_type


class NoRenegotiation(PeerError):
    """The peer insists on renegotiation, which we never do (RFC 5246 section 7.2.2)."""

    alert = AlertDescription.NO_RENEGOTIATION


class NoApplicationProtocol(PeerError):
    """The peer chose no ALPN protocol, or one that was not offered."""

    alert = AlertDescription.NO_APPLICATION_PROTOCOL


class BadCertificate(PeerError):
    """The peer's certificate cannot be used."""

    alert = AlertDescription.BAD_CERTIFICATE


class UnsupportedCertificate(PeerError):
    """The peer's certificate is of a kind that we do not take."""

    alert = AlertDescription.UNSUPPORTED_CERTIFICATE


class CertificateRevoked(PeerError):
    """The stapled OCSP response says that the certificate is revoked."""

    alert = AlertDescription.CERTIFICATE_REVOKED


class CertificateExpired(PeerError):
    """The certificate is not valid now."""

    alert = AlertDescription.CERTIFICATE_EXPIRED


class CertificateUnknown(PeerError):
    """The certificate was refused for another reason: name, usage, constraints."""

    alert = AlertDescription.CERTIFICATE_UNKNOWN


class UnknownCa(PeerError):
    """No path leads from the certificate to a trust anchor."""

    alert = AlertDescription.UNKNOWN_CA


class BadCertificateStatusResponse(PeerError):
    """The stapled OCSP response is not valid."""

    alert = AlertDescription.BAD_CERTIFICATE_STATUS_RESPONSE


class AccessDenied(PeerError):
    """The peer is who it says, but may not be talked to."""

    alert = AlertDescription.ACCESS_DENIED
