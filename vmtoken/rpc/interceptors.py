"""What every call goes through on the server: errors become status, and one line in the access log."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NoReturn

import grpc
import grpc.aio

from vmtoken.errors import VmTokenError
from vmtoken.rpc.status import to_status

log = logging.getLogger(__name__)

Handler = Any  # grpc.RpcMethodHandler, generic over messages that an interceptor does not know

_KINDS: Final[dict[str, Callable[..., Handler]]] = {
    "unary_unary": grpc.unary_unary_rpc_method_handler,
    "unary_stream": grpc.unary_stream_rpc_method_handler,
    "stream_unary": grpc.stream_unary_rpc_method_handler,
    "stream_stream": grpc.stream_stream_rpc_method_handler,
}


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Maps `VmTokenError` to `google.rpc.Status`, hides the unexpected behind an incident number, logs."""

    def __init__(self, caller: str) -> None:
        self._caller = caller

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Wrap the handler of one method."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        for kind, make in _KINDS.items():
            behaviour: Any = getattr(handler, kind)
            if behaviour is not None:
                wrap = self._streaming if handler.response_streaming else self._unary
                return make(
                    wrap(behaviour, method), handler.request_deserializer, handler.response_serializer
                )
        raise AssertionError(f"{method}: a handler of no known kind")

    def _unary(self, behaviour: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            started = time.monotonic()
            try:
                response = await behaviour(request, context)
            except BaseException as error:
                await self._end(error, context, method, started)
            self._log(method, "OK", started)
            return response

        return call

    def _streaming(
        self, behaviour: Callable[..., AsyncIterator[Any]], method: str
    ) -> Callable[..., AsyncIterator[Any]]:
        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            started = time.monotonic()
            try:
                async for response in behaviour(request, context):
                    yield response
            except BaseException as error:
                await self._end(error, context, method, started)
            self._log(method, "OK", started)

        return call

    async def _end(
        self, error: BaseException, context: grpc.aio.ServicerContext[Any, Any], method: str, started: float
    ) -> NoReturn:
        """The call failed: say so to the caller, in our terms."""
        if isinstance(error, VmTokenError):
            self._log(method, error.reason, started)
            await context.abort_with_status(to_status(error))
        if isinstance(error, (asyncio.CancelledError, GeneratorExit, grpc.aio.AbortError)) or not isinstance(
            error, Exception
        ):
            self._log(method, "CANCELLED", started)
            raise error
        incident = secrets.token_hex(4)
        log.error("unexpected error", exc_info=error, extra={"method": method, "incident": incident})
        message = (
            f"Something failed that must not (incident {incident}); the log of vmtoken-agent or "
            "vmtoken-broker has the details."
        )
        await context.abort_with_status(to_status(VmTokenError(message, incident=incident)))
        raise AssertionError("abort_with_status returned")

    def _log(self, method: str, outcome: str, started: float) -> None:
        if log.isEnabledFor(logging.DEBUG):
            took = round((time.monotonic() - started) * 1000, 3)
            extra = {"caller": self._caller, "method": method, "outcome": outcome, "milliseconds": took}
            log.debug("call", extra=extra)
