"""The client's end of a call with a stream in both directions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Final, Generic, TypeVar

import grpc
import grpc.aio

Request = TypeVar("Request")
Response = TypeVar("Response")
Result = TypeVar("Result")

_WRITE_FAILED: Final = "Internal error from Core"
"""What `grpc.aio` writes over the status of a call when a write fails because the call is over."""

_LOOKS: Final = 100
"""How often, 10 ms apart, to look for the status that follows a write that failed before it came."""


class Stream(Generic[Request, Response]):
    """Gives all that was received, then the status that the peer gave, also when a write failed.

    `StreamStreamCall` loses both when a write meets the end of the call (grpc/grpc#36066): it
    puts INTERNAL in the place of the status, and reads nothing more.
    """

    def __init__(self, call: grpc.aio.StreamStreamCall[Request, Response]) -> None:
        self._call = call
        self._responses = aiter(call)
        self._status: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._keep_status)

    async def write(self, request: Request) -> bool:
        """Send a message; false when the call is over, and `read` says why."""
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return False
        return True

    async def done_writing(self) -> None:
        """Half-close; nothing when the call is over."""
        with contextlib.suppress(grpc.aio.InternalError):  # of Core, which has closed the stream
            await self._call.done_writing()

    async def read(self) -> Response | None:
        """The next message; none at the end of the call. Raises `AioRpcError` with the peer's status."""
        try:
            return await anext(self._responses)
        except StopAsyncIteration:
            status = await self._last_status()
        except grpc.aio.AioRpcError as error:
            status = await self._last_status() or error
        if status is not None and status.code() is not grpc.StatusCode.OK:
            raise status
        return None

    def cancel(self) -> None:
        """End the call now."""
        self._call.cancel()

    async def _last_status(self) -> grpc.aio.AioRpcError | None:
        for _ in range(_LOOKS):
            self._keep_status(self._call)
            if self._status is not None:
                break
            await asyncio.sleep(0.01)
        return self._status

    def _keep_status(self, call: grpc.aio.StreamStreamCall[Request, Response]) -> None:
        """Keep the status that the call has now, if it came from the peer."""
        details = _at_once(call.details())
        if self._status is None and details != _WRITE_FAILED:
            code, metadata = _at_once(call.code()), _at_once(call.trailing_metadata())
            self._status = grpc.aio.AioRpcError(code, None, metadata, details)


def _at_once(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """What a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: Result = stop.value
        return result
    raise AssertionError("a call that is over knows its status")
