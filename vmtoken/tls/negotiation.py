"""Choices of the server that both versions make in the same extensions, checked against the offer."""

from __future__ import annotations

from dataclasses import dataclass

from vmtoken.tls.codes import ProtocolVersion, SignatureScheme
from vmtoken.tls.config import ClientConfig, Credential
from vmtoken.tls.errors import CredentialUnusable, IllegalParameter, NoApplicationProtocol
from vmtoken.tls.extensions import AlpnSelection, Extensions, RecordSizeLimit
from vmtoken.tls.key_block import MAX_PLAINTEXT, MIN_RECORD_SIZE_LIMIT
from vmtoken.tls.signatures import first_common


def chosen_alpn(config: ClientConfig, extensions: Extensions) -> str | None:
    """The protocol that the server chose, None if it does not care (RFC 7301 section 3.2)."""
    selection = extensions.find(AlpnSelection)
    if selection is None:
        return None
    for protocol in config.alpn:
        if selection.protocol == protocol.encode("ascii"):
            return protocol
    raise NoApplicationProtocol("the server chose an application protocol that was not offered")


@dataclass(frozen=True, slots=True)
class RecordLimits:
    """The longest plaintext of a record in each direction, in octets, content type left out."""

    send: int = MAX_PLAINTEXT
    receive: int = MAX_PLAINTEXT


def agreed_limits(config: ClientConfig, extensions: Extensions, version: ProtocolVersion) -> RecordLimits:
    """RFC 8449 section 4: limits hold, both ways, if the server sends one too."""
    extension = extensions.find(RecordSizeLimit)
    if extension is None:
        return RecordLimits()
    if extension.limit < MIN_RECORD_SIZE_LIMIT:
        raise IllegalParameter(f"the server's record size limit is {extension.limit}")
    content_type = 1 if version is ProtocolVersion.TLS_1_3 else 0
    return RecordLimits(
        min(extension.limit - content_type, MAX_PLAINTEXT),
        min(config.announced_limit - content_type, MAX_PLAINTEXT),
    )


def usable_credential(
    config: ClientConfig,
    version: ProtocolVersion,
    schemes: tuple[int, ...],
    authorities: tuple[bytes, ...],
    certificate_types: tuple[int, ...] | None = None,
) -> tuple[Credential, SignatureScheme] | None:
    """Our answer to a CertificateRequest; None means an empty Certificate.

    Raises `CredentialUnusable` when the server cannot use what we have and the config does not
    allow to go on without.
    """
    credential = config.credential
    if credential is None:
        return None
    scheme = first_common(credential.schemes, schemes, credential.public_key, version)
    if certificate_types is not None and credential.public_key.certificate_type not in certificate_types:
        scheme = None
    if scheme is not None and credential.is_issued_by_one_of(authorities):
        return credential, scheme
    if config.allow_empty_certificate:
        return None
    why = "signature schemes" if scheme is None else "certificate authorities"
    raise CredentialUnusable(
        f"the server does not accept the client certificate (wrong {why}); connect with another token"
    )


def check_certificate_may_be_left_out(config: ClientConfig) -> None:
    """Called when the server did not ask for a certificate; raises `CredentialUnusable` if it had to."""
    if config.require_client_certificate:
        raise CredentialUnusable(
            "the server does not ask for a client certificate, and it has to here; let its operator "
            "turn that on"
        )
