from __future__ import annotations

import asyncio
import os
import socket

import pytest

from guest_agent import dial as module
from guest_agent.dial import dial
from vmtoken.errors import ServerUnreachable

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning")


async def test_first_address_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first refuses, the second answers."""
    with _listener() as listener:
        port = listener.getsockname()[1]
        _resolving(
            monkeypatch, [(socket.AF_INET, ("127.0.0.2", port)), (socket.AF_INET, ("127.0.0.1", port))]
        )
        with await dial("server.example", port) as connection:
            assert connection.getpeername() == ("127.0.0.1", port)
            assert not connection.getblocking()
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_address_that_is_silent_does_not_hold_the_next_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with _listener() as listener:
        port = listener.getsockname()[1]
        _resolving(
            monkeypatch, [(socket.AF_INET, ("192.0.2.1", port)), (socket.AF_INET, ("127.0.0.1", port))]
        )
        monkeypatch.setattr(module, "ATTEMPT_DELAY", 0.01)
        _silent(monkeypatch, "192.0.2.1")
        async with asyncio.timeout(5):
            with await dial("server.example", port) as connection:
                assert connection.getpeername()[0] == "127.0.0.1"


async def test_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    v6 = [(socket.AF_INET6, (f"::{number}", 1, 0, 0)) for number in (1, 2)]
    v4 = [(socket.AF_INET, (f"127.0.0.{number}", 1)) for number in (1, 2)]
    _resolving(monkeypatch, [*v6, *v4])
    assert await module._addresses("server.example", 1) == [v6[0], v4[0], v6[1], v4[1]]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_refusal_is_told_with_host_and_port(host: str) -> None:
    with _listener() as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServerUnreachable, match=f"TCP to {host} port {port} failed: Connection refused"):
        await dial(host, port)


@pytest.mark.parametrize("name", ["nowhere.invalid", "x" * 64 + ".example", "a..b"])
async def test_name_that_does_not_resolve_is_told(name: str) -> None:
    with pytest.raises(ServerUnreachable, match=f"The name '{name}' does not resolve: "):
        await dial(name, 443)


@pytest.mark.parametrize("turns", range(6))
async def test_cancelled_at_any_time_it_leaves_no_socket(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with _listener() as listener:
        port = listener.getsockname()[1]
        _resolving(monkeypatch, [(socket.AF_INET, ("127.0.0.1", port))] * 2)
        before = os.listdir("/proc/self/fd")
        dialling = asyncio.create_task(dial("server.example", port))
        for _ in range(turns):
            await asyncio.sleep(0)
        dialling.cancel()
        results = await asyncio.gather(dialling, return_exceptions=True)
        for result in results:
            if isinstance(result, socket.socket):
                result.close()  # it was faster
        for _ in range(3):
            await asyncio.sleep(0)
        assert os.listdir("/proc/self/fd") == before


def _listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def _resolving(monkeypatch: pytest.MonkeyPatch, addresses: list[tuple[int, tuple[object, ...]]]) -> None:
    async def resolve(host: str, port: int) -> list[tuple[object, ...]]:
        return [(family, socket.SOCK_STREAM, 6, "", where) for family, where in addresses]

    monkeypatch.setattr(module, "_resolve", resolve)


def _silent(monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def sock_connect(connection: socket.socket, where: tuple[str, int]) -> None:
        if where[0] == silent:
            await asyncio.Event().wait()
        await connect(connection, where)

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
