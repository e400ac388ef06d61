"""The door knows the caller from the channel and leads to that caller's server and no other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from vmtoken.errors import PolicyDenied, VmTokenError
from vmtoken.rpc.channel import private_server, unix_channel
from vmtoken.rpc.front_door import FrontDoor, Unwelcome
from vmtoken.rpc.status import from_rpc_error
from vmtoken.transport import unix
from vmtoken.v1 import token_service_pb2 as pb
from vmtoken.v1 import token_service_pb2_grpc as pb_grpc


class Named(pb_grpc.TokenServiceServicer):
    """Answers with its own name, refuses chains, and echoes handshake steps."""

    def __init__(self, name: str) -> None:
        self._name = name

    async def ListTokens(self, request, context):
        return pb.ListTokensResponse(tokens=[{"name": self._name}])

    async def GetCertificateChain(self, request, context):
        if request.token == "crash":
            raise RuntimeError("a secret detail")
        raise PolicyDenied("not you.", rule="10-x:3")

    async def Handshake(self, request_iterator, context):
        async for request in request_iterator:
            yield pb.HandshakeResponse(flight=pb.ClientFlight(records=request.server_records))


@pytest.fixture
async def socket(tmp_path: Path) -> AsyncIterator[Path]:
    servers: dict[int, grpc.aio.Server] = {}

    async def server_of(uid: int) -> Path:
        path = tmp_path / f"{uid}.sock"
        if uid not in servers:
            servers[uid] = private_server(path, str(uid), max_streams=100)
            pb_grpc.add_TokenServiceServicer_to_server(Named(f"uid {uid}"), servers[uid])
            await servers[uid].start()
        return path

    door = FrontDoor(lambda transport: unix.peer_credentials(transport).uid, server_of)
    listener = await unix.listen(tmp_path / "door.sock", 0o600, door.protocol)
    yield tmp_path / "door.sock"
    listener.close()
    await door.close()
    for server in servers.values():
        await server.stop(None)


async def test_the_caller_reaches_the_server_of_its_own_user(socket: Path) -> None:
    async with unix_channel(socket) as channel:
        response = await pb_grpc.TokenServiceStub(channel).ListTokens(pb.ListTokensRequest())
    assert response.tokens[0].name == f"uid {os.getuid()}"


async def test_an_error_arrives_as_the_class_it_was_raised_as(socket: Path) -> None:
    async with unix_channel(socket) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.TokenServiceStub(channel).GetCertificateChain(pb.GetCertificateChainRequest())
    error = from_rpc_error(caught.value)
    assert isinstance(error, PolicyDenied)
    assert error.metadata == {"rule": "10-x:3"}
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_an_unexpected_error_tells_the_caller_no_detail(socket: Path) -> None:
    async with unix_channel(socket) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await pb_grpc.TokenServiceStub(channel).GetCertificateChain(
                pb.GetCertificateChainRequest(token="crash")
            )
    error = from_rpc_error(caught.value)
    assert type(error) is VmTokenError
    assert "secret" not in error.message
    assert "incident" in error.metadata


async def test_large_messages_pass_both_ways_on_one_stream(socket: Path) -> None:
    async with unix_channel(socket) as channel:
        call = pb_grpc.TokenServiceStub(channel).Handshake()
        for size in (1, 65_536, 500_000):
            records = os.urandom(size)
            await call.write(pb.HandshakeRequest(server_records=records))
            assert (await call.read()).flight.records == records
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_an_unwelcome_caller_is_dropped(tmp_path: Path) -> None:
    def identify(transport: asyncio.BaseTransport) -> int:
        raise Unwelcome("nobody is welcome")

    async def server_of(uid: int) -> Path:
        raise AssertionError

    door = FrontDoor(identify, server_of)
    async with await unix.listen(tmp_path / "door.sock", 0o600, door.protocol):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "door.sock")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "door.sock"
    first = await unix.listen(path, 0o600, asyncio.Protocol)
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError, match="another process is serving"):
        await unix.listen(path, 0o600, asyncio.Protocol)
    first.close()
    await first.wait_closed()
    (await unix.listen(path, 0o660, asyncio.Protocol)).close()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        await unix.listen(path, 0o600, asyncio.Protocol)
