"""Errors that cross a package or process boundary, each with the reason it has on the wire.

`docs/errors.md` lists what an application gets and what a person reads for each of them;
`vmtoken.rpc.status` maps them to gRPC status codes and back.
"""

from __future__ import annotations

import enum
from typing import ClassVar


class Reason(enum.StrEnum):
    """`google.rpc.ErrorInfo.reason` of a failed call; the domain is `ERROR_DOMAIN`."""

    INTERNAL = "INTERNAL"
    INVALID_REQUEST = "INVALID_REQUEST"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    CONFLICT = "CONFLICT"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    NO_TOKEN_BOUND = "NO_TOKEN_BOUND"
    TOKEN_NOT_FOUND = "TOKEN_NOT_FOUND"
    TOKEN_BUSY = "TOKEN_BUSY"
    TOKEN_UNAVAILABLE = "TOKEN_UNAVAILABLE"
    TOKEN_NOT_READY = "TOKEN_NOT_READY"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    PIN_REJECTED = "PIN_REJECTED"
    PIN_BLOCKED = "PIN_BLOCKED"
    PIN_MISSING = "PIN_MISSING"
    POLICY_DENIED = "POLICY_DENIED"
    SERVER_CERTIFICATE_INVALID = "SERVER_CERTIFICATE_INVALID"
    CLIENT_CERTIFICATE_UNUSABLE = "CLIENT_CERTIFICATE_UNUSABLE"
    CLIENT_CERTIFICATE_REFUSED = "CLIENT_CERTIFICATE_REFUSED"
    TLS_VERSION_UNSUPPORTED = "TLS_VERSION_UNSUPPORTED"
    HANDSHAKE_FAILED = "HANDSHAKE_FAILED"
    SERVER_UNREACHABLE = "SERVER_UNREACHABLE"
    BROKER_UNAVAILABLE = "BROKER_UNAVAILABLE"
    SESSION_NOT_FOUND = "SESSION_NOT_FOUND"
    SESSION_TRUNCATED = "SESSION_TRUNCATED"
    SESSION_BROKEN = "SESSION_BROKEN"


ERROR_DOMAIN = "vmtoken"


class VmTokenError(Exception):
    """What went wrong, in one sentence for a person, with facts for a program.

    `metadata` becomes `ErrorInfo.metadata`; it never holds secrets. `retry_after` is in
    seconds, None when trying again without a change is pointless.
    """

    reason: ClassVar[Reason] = Reason.INTERNAL
    _by_reason: ClassVar[dict[Reason, type[VmTokenError]]] = {}

    def __init__(self, message: str, *, retry_after: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        self.metadata = metadata

    def __init_subclass__(cls) -> None:
        VmTokenError._by_reason.setdefault(cls.reason, cls)

    @staticmethod
    def for_reason(reason: Reason) -> type[VmTokenError]:
        """The class that stands for a reason received from the other side."""
        return VmTokenError._by_reason.get(reason, VmTokenError)


class InvalidRequest(VmTokenError):
    """A field of the request is missing, malformed or out of range."""

    reason = Reason.INVALID_REQUEST


class NotFound(VmTokenError):
    """The VM, binding or other thing that the operator named does not exist."""

    reason = Reason.NOT_FOUND


class AlreadyExists(VmTokenError):
    """The name or UUID is taken."""

    reason = Reason.ALREADY_EXISTS


class Conflict(VmTokenError):
    """The thing exists, but its present state does not allow the operation."""

    reason = Reason.CONFLICT


class DeadlineExceeded(VmTokenError):
    """The caller's deadline passed before the operation was complete."""

    reason = Reason.DEADLINE_EXCEEDED


class ShuttingDown(VmTokenError):
    """The broker or the agent drains and takes no new work."""

    reason = Reason.SHUTTING_DOWN


class NoTokenBound(VmTokenError):
    """The operator has bound no token to this VM."""

    reason = Reason.NO_TOKEN_BOUND


class TokenNotFound(VmTokenError):
    """No token of that name is bound to this VM."""

    reason = Reason.TOKEN_NOT_FOUND


class TokenBusy(VmTokenError):
    """The token's queue did not reach this request before its deadline."""

    reason = Reason.TOKEN_BUSY


class TokenUnavailable(VmTokenError):
    """The card or reader behind the token does not answer."""

    reason = Reason.TOKEN_UNAVAILABLE


class TokenNotReady(VmTokenError):
    """The token answers, but has no identity, certificate or trust anchors yet."""

    reason = Reason.TOKEN_NOT_READY


class QuotaExceeded(VmTokenError):
    """The VM has as many handshakes open or waiting as it may have."""

    reason = Reason.QUOTA_EXCEEDED


class PinRejected(VmTokenError):
    """The card refused a PIN; `retries_left` says how many tries are left, None for one without a counter."""

    reason = Reason.PIN_REJECTED

    def __init__(self, message: str, *, retries_left: int | None) -> None:
        super().__init__(message)
        if retries_left is not None:
            self.metadata["retries_left"] = str(retries_left)
        self.retries_left = retries_left


class PinBlocked(VmTokenError):
    """The PIN is blocked, or so few tries are left that the broker does not spend one."""

    reason = Reason.PIN_BLOCKED


class PinMissing(VmTokenError):
    """The token needs a PIN that the operator has not given."""

    reason = Reason.PIN_MISSING


class PolicyDenied(VmTokenError):
    """Policy does not let this VM talk to this authenticated server."""

    reason = Reason.POLICY_DENIED


class ServerCertificateInvalid(VmTokenError):
    """The server's chain, name, dates or proof of possession did not verify."""

    reason = Reason.SERVER_CERTIFICATE_INVALID


class ClientCertificateUnusable(VmTokenError):
    """The server does not accept what the token could present (schemes or CA names)."""

    reason = Reason.CLIENT_CERTIFICATE_UNUSABLE


class ClientCertificateRefused(VmTokenError):
    """The server saw our certificate and refused it with an alert."""

    reason = Reason.CLIENT_CERTIFICATE_REFUSED


class TlsVersionUnsupported(VmTokenError):
    """The server speaks neither TLS 1.3 nor TLS 1.2, or not the version asked for."""

    reason = Reason.TLS_VERSION_UNSUPPORTED


class TlsHandshakeFailed(VmTokenError):
    """The handshake failed for another reason; the alert, if any, is in the metadata."""

    reason = Reason.HANDSHAKE_FAILED


class ServerUnreachable(VmTokenError):
    """The server's name does not resolve, or TCP to it failed."""

    reason = Reason.SERVER_UNREACHABLE


class BrokerUnavailable(VmTokenError):
    """The agent has no link to the broker."""

    reason = Reason.BROKER_UNAVAILABLE


class SessionNotFound(VmTokenError):
    """There is no such session, or it belongs to another caller."""

    reason = Reason.SESSION_NOT_FOUND


class SessionTruncated(VmTokenError):
    """TCP ended without the server's close_notify: data may be missing."""

    reason = Reason.SESSION_TRUNCATED


class SessionBroken(VmTokenError):
    """The session ended by an alert or a record that does not verify."""

    reason = Reason.SESSION_BROKEN


def rebuilt(
    untrusted_reason: str, message: str, metadata: dict[str, str], retry_after: float | None
) -> VmTokenError:
    """An error of the other side as an exception of ours; a reason that we do not know becomes `INTERNAL`."""
    try:
        kind = VmTokenError.for_reason(Reason(untrusted_reason))
    except ValueError:
        kind = VmTokenError
    if kind is PinRejected:
        retries = metadata.get("retries_left", "")
        return PinRejected(message, retries_left=int(retries) if retries.isdecimal() else None)
    error = kind(message, retry_after=retry_after)
    error.metadata = metadata
    return error
