"""Sessions through the agent: opened, read, written, closed, resumed, owned, counted."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
import struct
import threading

import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from guest_agent.client import Session
from guest_agent.peers import LocalUser
from tests.support.agent import quick, request, running_agent
from tests.support.pki import Authority
from tests.support.tls_peer import (
    echo,
    raw_server,
    say_and_close,
    say_and_cut,
    server_context,
    tls_server,
)
from vmtoken.errors import (
    ClientCertificateRefused,
    InvalidRequest,
    QuotaExceeded,
    SessionBroken,
    SessionNotFound,
    SessionTruncated,
    ShuttingDown,
    TlsHandshakeFailed,
)
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2

MEBIBYTE = 1 << 20
SPARE = 9
"""Descriptors or tasks: three streams to the broker, kept when as many more were under way at once."""

VERSIONS = {"1.2": token_pb2.TLS_VERSION_1_2, "1.3": token_pb2.TLS_VERSION_1_3}
each_version = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


def only(version: token_pb2.TlsVersion.ValueType) -> dict[str, object]:
    return {"min_version": version, "max_version": version}


@each_version
async def test_session_carries_data_both_ways(version: token_pb2.TlsVersion.ValueType) -> None:
    async with running_agent() as agent:
        with tls_server(echo) as port:
            session = await agent.client.connect(request(port, **only(version)))
            await session.write(b"hello")
            assert await session.read() == b"hello"
            await session.close()
        assert session.info.version == version
        assert session.info.client_certificate_sent
        assert session.info.token == "web01"
        assert session.info.peer == f"127.0.0.1:{port}"


@each_version
async def test_half_close_lets_the_server_finish(version: token_pb2.TlsVersion.ValueType) -> None:
    def answer_at_the_end(tls: ssl.SSLSocket) -> None:
        received = b"".join(iter(lambda: tls.recv(65_536), b""))
        tls.sendall(received[::-1])
        tls.unwrap()

    async with running_agent() as agent:
        with tls_server(answer_at_the_end) as port:
            session = await agent.client.connect(request(port, **only(version)))
            await session.write(b"abc")
            await session.end_write()
            assert await session.read() == b"cba"
            assert await session.read() == b""
            with pytest.raises(SessionBroken, match="closed already"):
                await session.write(b"more")
            await session.close()


async def test_close_notify_and_truncation_are_told_apart() -> None:
    async with running_agent() as agent:
        with tls_server(say_and_close(b"all of it")) as port:
            whole = await agent.client.connect(request(port))
            assert await whole.read() == b"all of it"
            assert await whole.read() == b""
            await whole.close()
        with tls_server(say_and_cut(b"a part")) as port:
            cut = await agent.client.connect(request(port))
            await cut.write(b"go")
            assert await cut.read() == b"a part"
            with pytest.raises(SessionTruncated):
                await cut.read()
            with pytest.raises(SessionTruncated):
                await cut.write(b"more")
            await cut.close()


async def test_reset_is_a_truncation() -> None:
    def reset(tls: ssl.SSLSocket) -> None:
        tls.recv(100)
        tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.socket.close(tls)

    async with running_agent() as agent:
        with tls_server(reset) as port:
            session = await agent.client.connect(request(port))
            await session.write(b"go")
            with pytest.raises(SessionTruncated, match="reset"):
                await session.read()


async def test_read_gives_no_more_than_was_asked_for() -> None:
    async with running_agent() as agent:
        with tls_server(say_and_close(bytes(range(100)))) as port:
            session = await agent.client.connect(request(port))
            pieces = [await session.read(33) for _ in range(5)]
            assert [len(piece) for piece in pieces] == [33, 33, 33, 1, 0]
            assert b"".join(pieces) == bytes(range(100))


async def test_tls13_session_is_resumed_once_its_ticket_was_given_back() -> None:
    async with running_agent() as agent:
        with tls_server(echo) as port:
            first = await agent.client.connect(request(port))
            await first.close(await_ticket=True)
            second = await agent.client.connect(request(port))
            await second.write(b"again")
            assert await second.read() == b"again"
            third = await agent.client.connect(request(port, no_resumption=True))
        assert [session.info.resumed for session in (first, second, third)] == [False, True, False]
        assert agent.broker.tickets[0].session_id == first.info.broker_session_id


async def test_ticket_of_a_session_that_is_closed_at_once_is_given_back_too() -> None:
    async with running_agent() as agent:
        with tls_server(echo) as port:
            session = await agent.client.connect(request(port))
            await session.close()
            await asyncio.wait_for(agent.broker.ticket_came.wait(), 5)


@pytest.mark.parametrize("size", [1, 16_384, 16_385, MEBIBYTE], ids=str)
@each_version
async def test_tunnel_carries_data_both_ways(version: token_pb2.TlsVersion.ValueType, size: int) -> None:
    data = os.urandom(size)
    async with running_agent() as agent:
        with tls_server(echo) as port:
            tunnel = await agent.client.tunnel(request(port, **only(version)))
            sending = asyncio.create_task(tunnel.write(data))
            received = b""
            while len(received) < size:
                received += await tunnel.read()
            await sending
            await tunnel.end_write()
            assert await tunnel.read() == b""
        assert received == data
        assert len(agent.app.sessions) == 0


async def test_tunnel_takes_over_a_session() -> None:
    async with running_agent() as agent:
        with tls_server(echo) as port:
            session = await agent.client.connect(request(port))
            call = agent.client.stub.Tunnel()
            await call.write(pb.TunnelRequest(session_id=session.info.session_id))
            await call.write(pb.TunnelRequest(data=b"on"))
            await call.done_writing()
            answers = [answer async for answer in call]
        assert [answer.WhichOneof("step") for answer in answers] == ["session", "data", "end"]
        assert answers[1].data == b"on"
        with pytest.raises(SessionNotFound):
            await session.read()


async def test_slow_application_stops_the_server_and_not_the_agent() -> None:
    """A server that sends 64 MiB is stopped by TCP while nobody reads; the agent holds its limit."""
    sent = 0

    def flood(tls: ssl.SSLSocket) -> None:
        nonlocal sent
        for _ in range(64):
            tls.sendall(bytes(MEBIBYTE))
            sent += MEBIBYTE
        tls.unwrap()

    async with running_agent(quick(receive_buffer=65_536)) as agent:
        with tls_server(flood) as port:
            session = await agent.client.connect(request(port))
            await asyncio.sleep(0.5)
            stopped_at = sent
            assert stopped_at < 32 * MEBIBYTE
            received = 0
            while data := await session.read(262_144):
                received += len(data)
            assert received == 64 * MEBIBYTE


async def test_slow_server_stops_the_application() -> None:
    """A server that does not read fills TCP's buffers; then writes of the application wait."""
    async with running_agent() as agent:
        release = threading.Event()

        def do_not_read(tls: ssl.SSLSocket) -> None:
            release.wait(20)

        with tls_server(do_not_read) as port:
            tunnel = await agent.client.tunnel(request(port))
            written = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    while written < 64 * MEBIBYTE:
                        await tunnel.write(bytes(262_144))
                        written += 262_144
            assert 0 < written < 64 * MEBIBYTE
            tunnel.cancel()
            release.set()


async def test_server_that_refuses_the_certificate_is_heard_after_the_handshake() -> None:
    """In TLS 1.3 the client is done before the server has looked at its certificate."""
    stranger = Authority.self_signed("a stranger").certificate.public_bytes(Encoding.DER)
    async with running_agent() as agent:
        with tls_server(echo, server_context(trusted=stranger)) as port:
            for use in (_read, _write_until_it_fails):
                session = await agent.client.connect(request(port))
                with pytest.raises(ClientCertificateRefused, match="refused the client certificate"):
                    await use(session)
                await session.close()


async def test_sessions_belong_to_the_user_who_opened_them() -> None:
    async with running_agent() as agent:
        with tls_server(echo) as port:
            session = await agent.client.connect(request(port))
            session_id = session.info.session_id
            stranger = LocalUser(os.getuid() + 1)
            with pytest.raises(SessionNotFound):
                agent.app.sessions.find(stranger, session_id)
            with pytest.raises(SessionNotFound):
                await agent.app.sessions.close(stranger, session_id)
            assert agent.app.sessions.find(LocalUser(os.getuid()), session_id)


async def test_closed_session_is_not_found() -> None:
    async with running_agent() as agent:
        with tls_server(echo) as port:
            session = await agent.client.connect(request(port))
            await session.close()
            for use in (session.read(), session.write(b"x"), session.end_write(), session.close()):
                with pytest.raises(SessionNotFound):
                    await use


async def test_user_has_no_more_sessions_than_its_quota() -> None:
    async with running_agent(sessions_per_user=2) as agent:
        with tls_server(echo) as port:
            first = await agent.client.connect(request(port))
            await agent.client.connect(request(port))
            with pytest.raises(QuotaExceeded):
                await agent.client.connect(request(port))
            await first.close()
            await agent.client.connect(request(port))


async def test_idle_session_is_closed() -> None:
    async with running_agent(quick(idle_timeout=0.001)) as agent:
        with tls_server(echo) as port:
            session = await agent.client.connect(request(port))
            await asyncio.sleep(0.01)
            assert agent.app.sessions.close_idle() == 1
            with pytest.raises(SessionNotFound):
                await session.read()


async def test_sessions_live_on_when_the_broker_restarts() -> None:
    async with running_agent() as agent:
        with tls_server(echo) as port:
            session = await agent.client.connect(request(port))
            tunnel = await agent.client.tunnel(request(port))
            await agent.broker.stop()
            await session.write(b"one")
            assert await session.read() == b"one"
            await tunnel.write(b"two")
            assert await tunnel.read() == b"two"
            await agent.broker.serve(agent.broker_socket)
            another = await agent.client.connect(request(port))
            await another.write(b"three")
            assert await another.read() == b"three"
            tunnel.cancel()


async def test_agent_that_drains_opens_no_sessions_and_lets_the_others_end() -> None:
    async with running_agent(quick(drain_timeout=5)) as agent:
        with tls_server(echo) as port:
            session = await agent.client.connect(request(port))
            draining = asyncio.create_task(agent.app.sessions.drain())
            await asyncio.sleep(0)
            with pytest.raises(ShuttingDown):
                await agent.client.connect(request(port))
            await session.write(b"last words")
            assert await session.read() == b"last words"
            await session.close()
            assert await draining


@pytest.mark.parametrize(
    "bad",
    [
        pb.ConnectRequest(host="", port=443),
        pb.ConnectRequest(host="server.example", port=0),
        pb.ConnectRequest(host="server.example", port=65_536),
        pb.ConnectRequest(host="bücher.example", port=443),
        pb.ConnectRequest(host="a b", port=443),
        pb.ConnectRequest(host="[::1]", port=443),
        pb.ConnectRequest(host="x" * 254, port=443),
        pb.ConnectRequest(host="server.example", port=443, server_name="a/b"),
        pb.ConnectRequest(host="server.example", port=443, alpn=[""]),
        pb.ConnectRequest(host="server.example", port=443, alpn=["x"] * 33),
        pb.ConnectRequest(
            host="server.example",
            port=443,
            min_version=token_pb2.TLS_VERSION_1_3,
            max_version=token_pb2.TLS_VERSION_1_2,
        ),
    ],
    ids=str,
)
async def test_malformed_request_is_refused(bad: pb.ConnectRequest) -> None:
    async with running_agent() as agent:
        with pytest.raises(InvalidRequest):
            await agent.client.connect(bad)
        assert agent.broker.starts == []


async def test_tunnel_that_begins_with_data_is_refused() -> None:
    async with running_agent() as agent:
        call = agent.client.stub.Tunnel()
        await call.write(pb.TunnelRequest(data=b"x"))
        with pytest.raises(InvalidRequest, match="first message"):
            await agent.client._answer(call.read())


async def test_tunnel_with_a_second_connect_is_ended() -> None:
    async with running_agent() as agent:
        with tls_server(echo) as port:
            call = agent.client.stub.Tunnel()
            for _ in range(2):
                await call.write(pb.TunnelRequest(connect=request(port)))
            assert await call.read() != grpc.aio.EOF
            with pytest.raises(InvalidRequest, match="data only"):
                await agent.client._answer(call.read())
        assert len(agent.app.sessions) == 0


async def test_cancelled_calls_leave_nothing_behind() -> None:
    async with running_agent() as agent:
        with tls_server(echo) as port:
            before: tuple[int, int] | None = None
            for _ in range(2):
                for _ in range(20):
                    tunnel = await agent.client.tunnel(request(port))
                    await tunnel.write(b"x")
                    tunnel.cancel()
                before = before or await _settled()
            await _back_to(before)
        assert len(agent.app.sessions) == 0
        assert agent.broker.under_way == 0


async def test_handshakes_that_fail_leave_nothing_behind() -> None:
    def hang_up(connection: socket.socket) -> None:
        connection.recv(100)

    async with running_agent() as agent:
        with raw_server(hang_up) as port:
            before: tuple[int, int] | None = None
            for _ in range(2):
                for _ in range(20):
                    with pytest.raises(TlsHandshakeFailed, match=r"(closed|reset) the connection"):
                        await agent.client.connect(request(port))
                before = before or await _settled()
            await _back_to(before)
        assert len(agent.app.sessions) == 0
        assert agent.broker.under_way == 0


async def test_many_connects_at_once_all_end() -> None:
    async with running_agent(handshakes=8) as agent:
        with tls_server(echo) as port:
            sessions = await asyncio.gather(*(agent.client.connect(request(port)) for _ in range(100)))
            assert len({session.info.session_id for session in sessions}) == 100
            assert agent.broker.streams <= 8 + 3
            await asyncio.gather(*(session.close() for session in sessions))
        assert len(agent.app.sessions) == 0


async def test_health_and_tokens() -> None:
    async with running_agent() as agent:
        assert await agent.client.is_serving()
        assert [token.name for token in await agent.client.tokens()] == ["web01"]


async def _read(session: Session) -> None:
    await session.read()


async def _write_until_it_fails(session: Session) -> None:
    while True:
        await session.write(bytes(1000))


def _resources() -> tuple[int, int]:
    """File descriptors and tasks."""
    return len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks())


async def _settled() -> tuple[int, int]:
    """What there is once lingering sockets, streams and handlers have had time to end; warm streams stay."""
    for _ in range(8):
        await asyncio.sleep(0.1)
        gc.collect()
    return _resources()


async def _back_to(before: tuple[int, int]) -> None:
    """Wait until there is as much as before, but for `SPARE`; what each of 20 calls leaves is more."""
    async with asyncio.timeout(30):
        while any(now > then + SPARE for now, then in zip(await _settled(), before, strict=True)):
            pass
