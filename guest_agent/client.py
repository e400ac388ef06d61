"""The agent for applications in Python: sessions and tunnels with asyncio.

async with AgentClient() as agent:
    session = await agent.connect(ConnectRequest(host="server.example", port=443))
    await session.write(b"hello")
    print(await session.read())
    await session.close()

Everything here raises the errors of `vmtoken.errors`, with the reasons of docs/errors.md.
"""

from __future__ import annotations

from collections.abc import Awaitable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from vmtoken.errors import BrokerUnavailable, SessionBroken, VmTokenError
from vmtoken.rpc.channel import unix_channel
from vmtoken.rpc.status import from_rpc_error
from vmtoken.rpc.stream import Stream
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1.tls_service_pb2_grpc import TlsServiceStub
from vmtoken.v1.token_pb2 import TokenDescriptor

DEFAULT_SOCKET: Final = Path("/run/vmtoken-agent/agent.sock")

MAX_DATA: Final = 262_144
"""Octets of data in one message (tls_service.proto)."""

if TYPE_CHECKING:
    from vmtoken.v1.tls_service_pb2_grpc import TlsServiceAsyncStub

Result = TypeVar("Result")
_Stream = Stream[pb.TunnelRequest, pb.TunnelResponse]


class AgentClient:
    """A connection to the agent of this machine; made inside a running event loop."""

    def __init__(self, socket: Path = DEFAULT_SOCKET) -> None:
        self._socket = socket
        self._channel = unix_channel(socket)
        self._stub = TlsServiceStub(self._channel)

    async def tokens(self, timeout: float | None = None) -> list[TokenDescriptor]:
        """The tokens that this machine may use, by name."""
        return list((await self.listing(timeout)).tokens)

    async def listing(self, timeout: float | None = None) -> pb.ListAgentTokensResponse:
        """The tokens, and the versions of agent and broker."""
        return await self._answer(self._stub.ListTokens(pb.ListAgentTokensRequest(), timeout=timeout))

    async def is_serving(self, timeout: float | None = None) -> bool:
        """Whether the agent takes new sessions."""
        health: Any = health_pb2_grpc.HealthStub(self._channel)  # its type stub is empty
        call: Awaitable[health_pb2.HealthCheckResponse] = health.Check(
            health_pb2.HealthCheckRequest(), timeout=timeout
        )
        response = await self._answer(call)
        return response.status == health_pb2.HealthCheckResponse.SERVING

    async def connect(self, request: pb.ConnectRequest, timeout: float | None = None) -> Session:
        """Open a session; `timeout` is for the whole handshake, in seconds."""
        response = await self._answer(self._stub.Connect(request, timeout=timeout))
        return Session(self, response.session)

    async def tunnel(self, request: pb.ConnectRequest, timeout: float | None = None) -> Tunnel:
        """Open a session as a stream of data: for anything that moves more than a few messages.

        `timeout` is for the handshake, in seconds; without one it is the agent's own.
        """
        if timeout is None:
            return await self._tunnel(pb.TunnelRequest(connect=request))
        session = await self.connect(request, timeout)
        try:
            return await self._tunnel(pb.TunnelRequest(session_id=session.info.session_id))
        except BaseException:
            await session.close()
            raise

    async def _tunnel(self, first: pb.TunnelRequest) -> Tunnel:
        stream = Stream(self._stub.Tunnel())
        try:
            await stream.write(first)
            answer = await self._answer(stream.read())
        except BaseException:
            stream.cancel()
            raise
        assert answer is not None, "the agent answers before it ends the call"
        return Tunnel(self, stream, answer.session)

    async def close(self) -> None:
        """Close the connection; sessions of `connect` go on until they are closed or idle."""
        await self._channel.close()

    async def __aenter__(self) -> AgentClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def stub(self) -> TlsServiceAsyncStub:
        """The service itself."""
        return self._stub

    async def _answer(self, call: Awaitable[Result]) -> Result:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self.meaning(error) from error

    def meaning(self, error: grpc.aio.AioRpcError) -> VmTokenError:
        """Our error for a failed call."""
        details = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError is a call too
        if error.code() is grpc.StatusCode.UNAVAILABLE and details is None:
            return BrokerUnavailable(
                f"The agent does not answer at {self._socket}; check that vmtoken-agent runs "
                "and that this user may open its socket."
            )
        return from_rpc_error(error)


class Session:
    """An open session, a call for each operation."""

    def __init__(self, client: AgentClient, info: pb.SessionInfo) -> None:
        self._client = client
        self.info = info

    async def read(self, max_octets: int = 65_536, timeout: float | None = None) -> bytes:
        """Wait for data; none when the server said close_notify."""
        request = pb.ReadRequest(session_id=self.info.session_id, max_octets=max_octets)
        return (await self._client._answer(self._client.stub.Read(request, timeout=timeout))).data

    async def write(self, data: bytes, timeout: float | None = None) -> None:
        """Send data; returns when it is in the hands of TCP."""
        for start in range(0, len(data), MAX_DATA):
            request = pb.WriteRequest(session_id=self.info.session_id, data=data[start : start + MAX_DATA])
            await self._client._answer(self._client.stub.Write(request, timeout=timeout))

    async def end_write(self) -> None:
        """Send close_notify and go on reading."""
        request = pb.CloseRequest(session_id=self.info.session_id, half=True)
        await self._client._answer(self._client.stub.Close(request))

    async def close(self, *, await_ticket: bool = False) -> None:
        """End the session; with `await_ticket` not before the next one can resume it."""
        request = pb.CloseRequest(session_id=self.info.session_id, await_ticket=await_ticket)
        await self._client._answer(self._client.stub.Close(request))


class Tunnel:
    """An open session as a stream; it ends with the call."""

    def __init__(self, client: AgentClient, stream: _Stream, info: pb.SessionInfo) -> None:
        self._client = client
        self._stream = stream
        self._ended = False
        self.info = info

    async def read(self) -> bytes:
        """The next data from the server; none when it said close_notify."""
        while not self._ended:
            response = await self._client._answer(self._stream.read())
            if response is None or response.WhichOneof("step") == "end":
                self._ended = True
            elif response.data:
                return response.data
        return b""

    async def write(self, data: bytes) -> None:
        """Send data; waits while the server takes none.

        Raises `SessionBroken` when the call is over; `read` says why.
        """
        for start in range(0, len(data), MAX_DATA):
            if not await self._stream.write(pb.TunnelRequest(data=data[start : start + MAX_DATA])):
                raise SessionBroken("The session is over.")

    async def end_write(self) -> None:
        """Half-close: send close_notify and go on reading."""
        await self._stream.done_writing()

    def cancel(self) -> None:
        """End the session now."""
        self._stream.cancel()
