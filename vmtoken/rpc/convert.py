"""Protobuf messages to our types and back."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from vmtoken.errors import InvalidRequest, VmTokenError, rebuilt
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import CipherSuite, ProtocolVersion
from vmtoken.tls.key_block import KeyBlock
from vmtoken.token import Assurance
from vmtoken.v1 import error_pb2, token_pb2

_ASSURANCE_TO_PB = {
    Assurance.SOFTWARE: token_pb2.ASSURANCE_SOFTWARE,
    Assurance.CARD_SIGNATURE: token_pb2.ASSURANCE_CARD_SIGNATURE,
    Assurance.CARD_HANDSHAKE: token_pb2.ASSURANCE_CARD_HANDSHAKE,
}
_ASSURANCE_FROM_PB = {there: here for here, there in _ASSURANCE_TO_PB.items()}


def assurance_to_pb(assurance: Assurance) -> token_pb2.Assurance.ValueType:
    """An assurance label for the wire."""
    return _ASSURANCE_TO_PB[assurance]


def assurance_from_pb(assurance: token_pb2.Assurance.ValueType) -> Assurance:
    """An assurance label from the wire; one that we do not know is the lowest."""
    return _ASSURANCE_FROM_PB.get(assurance, Assurance.SOFTWARE)


def version_from_pb(version: token_pb2.TlsVersion.ValueType, default: ProtocolVersion) -> ProtocolVersion:
    """A version of a request. Raises `InvalidRequest` for a value that is none of ours."""
    if version == token_pb2.TLS_VERSION_UNSPECIFIED:
        return default
    if version == token_pb2.TLS_VERSION_1_2:
        return ProtocolVersion.TLS_1_2
    if version == token_pb2.TLS_VERSION_1_3:
        return ProtocolVersion.TLS_1_3
    raise InvalidRequest(f"TLS version {int(version):#06x} is not known here; use TLS 1.2 or TLS 1.3.")


def version_to_pb(version: ProtocolVersion) -> token_pb2.TlsVersion.ValueType:
    """A version for the wire."""
    return token_pb2.TLS_VERSION_1_3 if version is ProtocolVersion.TLS_1_3 else token_pb2.TLS_VERSION_1_2


def key_block_to_pb(key_block: KeyBlock) -> token_pb2.KeyBlock:
    """A key block for the stream that made it."""
    return token_pb2.KeyBlock(
        version=version_to_pb(key_block.version),
        cipher_suite=key_block.cipher_suite,
        client_secret=key_block.client_secret.reveal(),
        server_secret=key_block.server_secret.reveal(),
        client_sequence=key_block.client_sequence,
        server_sequence=key_block.server_sequence,
        send_limit=key_block.send_limit,
        receive_limit=key_block.receive_limit,
    )


def key_block_from_pb(message: token_pb2.KeyBlock) -> KeyBlock:
    """A key block that the broker gave. Raises `ValueError` when it is of a suite that we do not know."""
    return KeyBlock(
        version=ProtocolVersion(message.version),
        cipher_suite=CipherSuite(message.cipher_suite),
        client_secret=SecretBytes(message.client_secret),
        server_secret=SecretBytes(message.server_secret),
        client_sequence=message.client_sequence,
        server_sequence=message.server_sequence,
        send_limit=message.send_limit,
        receive_limit=message.receive_limit,
    )


def error_to_pb(error: VmTokenError) -> error_pb2.ErrorDetail:
    """An error that travels inside a stream."""
    detail = error_pb2.ErrorDetail(reason=error.reason, message=error.message, metadata=error.metadata)
    if error.retry_after is not None:
        detail.retry_after.FromMicroseconds(round(error.retry_after * 1e6))
    return detail


def error_from_pb(detail: error_pb2.ErrorDetail) -> VmTokenError:
    """The error that the other side put into the stream."""
    retry_after = detail.retry_after.ToTimedelta().total_seconds() if detail.HasField("retry_after") else None
    return rebuilt(detail.reason, detail.message, dict(detail.metadata), retry_after)


def seconds_from_pb(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def seconds_to_pb(seconds: float) -> Duration:
    """A duration for the wire, rounded to microseconds."""
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration
