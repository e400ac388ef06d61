"""One table: our errors and gRPC status, both directions.

A failed call carries `google.rpc.Status` with `ErrorInfo` (reason, domain, metadata) and, where
trying again helps, `RetryInfo`.
"""

from __future__ import annotations

from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from vmtoken.errors import ERROR_DOMAIN, BrokerUnavailable, PinRejected, Reason, VmTokenError, rebuilt

STATUS_CODES: Final = {
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.INVALID_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
    Reason.NO_TOKEN_BOUND: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TOKEN_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.TOKEN_BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.TOKEN_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.TOKEN_NOT_READY: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.QUOTA_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.PIN_REJECTED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PIN_BLOCKED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PIN_MISSING: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.POLICY_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.SERVER_CERTIFICATE_INVALID: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CLIENT_CERTIFICATE_UNUSABLE: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.CLIENT_CERTIFICATE_REFUSED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.TLS_VERSION_UNSUPPORTED: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.HANDSHAKE_FAILED: grpc.StatusCode.ABORTED,
    Reason.SERVER_UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.BROKER_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.SESSION_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.SESSION_TRUNCATED: grpc.StatusCode.DATA_LOSS,
    Reason.SESSION_BROKEN: grpc.StatusCode.ABORTED,
}


def to_status(error: VmTokenError) -> grpc.Status:
    """What a service aborts the call with."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    status = status_pb2.Status(code=STATUS_CODES[error.reason].value[0], message=error.message)
    status.details.add().Pack(info)
    if error.retry_after is not None:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=_duration(error.retry_after)))
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.RpcError) -> VmTokenError:
    """The error that the other side raised; without our details, what the bare status means."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError is a call too
    if status is None:
        return _bare(error.code(), error.details() or "")
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    retry_after = None
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(retry.DESCRIPTOR):
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    if info.domain != ERROR_DOMAIN:
        return _bare(error.code(), status.message)
    return rebuilt(info.reason, status.message, dict(info.metadata), retry_after)


def _bare(code: grpc.StatusCode, details: str) -> VmTokenError:
    if code is grpc.StatusCode.UNAVAILABLE:
        return BrokerUnavailable(
            details or "The other side does not answer; check that it runs.", retry_after=1.0
        )
    reason = next((reason for reason, known in STATUS_CODES.items() if known is code), Reason.INTERNAL)
    kind = VmTokenError.for_reason(reason)
    message = details or f"The call failed with the gRPC status {code.name}."
    return VmTokenError(message) if kind is PinRejected else kind(message)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(seconds * 1e6))
    return duration
