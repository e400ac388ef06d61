"""`vmtoken-agent` as systemd runs it: ready, reloaded, stopped, and closed to others."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from guest_agent.client import AgentClient
from tests.fakes.broker import FakeBroker
from tests.support.agent import request
from tests.support.directories import short_directory
from tests.support.pki import client_identity
from tests.support.tls_peer import echo, tls_server
from vmtoken.rpc.channel import unix_channel

pytestmark = pytest.mark.timeout(60)

PATIENCE = 20.0


@dataclass
class Daemon:
    """A vmtoken-agent and the socket where it tells systemd how it is."""

    home: Path
    process: asyncio.subprocess.Process
    notifications: socket.socket

    @property
    def config(self) -> Path:
        return self.home / "agent.toml"

    async def said(self) -> str:
        loop = asyncio.get_running_loop()
        return (await asyncio.wait_for(loop.sock_recv(self.notifications, 100), PATIENCE)).decode()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int | None, list[dict[str, str]]]:
        """Its exit code and its log."""
        self.process.send_signal(number)
        _, log = await asyncio.wait_for(self.process.communicate(), PATIENCE)
        return self.process.returncode, [json.loads(line) for line in log.decode().splitlines()]


@pytest.fixture
def home() -> Iterator[Path]:
    path = short_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def broker(home: Path) -> AsyncIterator[FakeBroker]:
    fake = FakeBroker(client_identity())
    await fake.serve(home / "broker.sock")
    yield fake
    await fake.stop()


def configure(home: Path, more: str = "") -> Path:
    path = home / "agent.toml"
    path.write_text(
        f'[broker]\nlink = "unix:{home}/broker.sock"\n[applications]\nsocket = "{home}/agent.sock"\n'
        f'[log]\nformat = "json"\n{more}'
    )
    return path


@asynccontextmanager
async def running(home: Path, more: str = "") -> AsyncIterator[Daemon]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications:
        notifications.setblocking(False)
        notifications.bind(str(home / "notify"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "guest_agent", "--config", str(configure(home, more))),
            env={**os.environ, "NOTIFY_SOCKET": str(home / "notify")},
            stderr=subprocess.PIPE,
        )
        daemon = Daemon(home, process, notifications)
        try:
            assert await daemon.said() == "READY=1"
            yield daemon
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()


async def test_it_is_ready_serves_and_stops(home: Path, broker: FakeBroker) -> None:
    async with running(home) as daemon:
        async with AgentClient(home / "agent.sock") as client:
            assert await client.is_serving()
        code, log = await daemon.end()
        assert await daemon.said() == "STOPPING=1"
        assert code == 0
        assert [line["message"] for line in log] == ["agent started", "drained"]
        assert not (home / "agent.sock").exists()


async def test_stop_lets_a_session_end_under_the_limit(home: Path, broker: FakeBroker) -> None:
    async with running(home, "[sessions]\ndrain_timeout = 0.5\n") as daemon:
        with tls_server(echo) as port:
            async with AgentClient(home / "agent.sock") as client:
                await client.connect(request(port))
                code, log = await daemon.end()
        assert code == 0
        assert log[-1]["message"] == "sessions were cut off"


async def test_reload_takes_a_good_file_and_leaves_a_bad_one(home: Path, broker: FakeBroker) -> None:
    async with running(home) as daemon:
        for more in ("[sessions]\nidle_timeout = 5\n", "[sessions]\nidle_timeot = 5\n"):
            configure(home, more)
            daemon.process.send_signal(signal.SIGHUP)
            assert [await daemon.said(), await daemon.said()] == ["RELOADING=1", "READY=1"]
        async with AgentClient(home / "agent.sock") as client:
            assert await client.tokens(PATIENCE)
        code, log = await daemon.end(signal.SIGINT)
        assert code == 0
        assert [line["message"] for line in log[1:3]] == [
            "configuration reloaded",
            "configuration not reloaded",
        ]
        assert "unknown key 'sessions.idle_timeot'; did you mean 'idle_timeout'?" in log[2]["because"]


async def test_reload_to_another_link_goes_on_with_open_sessions(home: Path, broker: FakeBroker) -> None:
    other = FakeBroker(client_identity(), token="elsewhere")
    await other.serve(home / "other.sock")
    async with running(home) as daemon:
        with tls_server(echo) as port:
            async with AgentClient(home / "agent.sock") as client:
                session = await client.connect(request(port))
                configure(home)
                daemon.config.write_text(daemon.config.read_text().replace("broker.sock", "other.sock"))
                daemon.process.send_signal(signal.SIGHUP)
                assert [await daemon.said(), await daemon.said()] == ["RELOADING=1", "READY=1"]
                assert [token.name for token in await client.tokens(PATIENCE)] == ["elsewhere"]
                await session.write(b"still here")
                assert await session.read() == b"still here"
                await session.close()
    await other.stop()


async def test_nothing_of_it_is_open_to_others(home: Path, broker: FakeBroker) -> None:
    async with running(home, "") as daemon:
        async with AgentClient(home / "agent.sock") as client:
            await client.is_serving()
            private = home / "agent.d"
            assert stat.S_IMODE((home / "agent.sock").stat().st_mode) == 0o666
            assert stat.S_IMODE(private.stat().st_mode) == 0o700
            assert [path.name for path in private.iterdir()] == [f"{os.getuid()}.sock"]
        assert resource.prlimit(daemon.process.pid, resource.RLIMIT_CORE) == (0, 0)


async def test_second_agent_on_the_same_socket_is_refused(home: Path, broker: FakeBroker) -> None:
    async with running(home):
        second = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "guest_agent", "--config", str(home / "agent.toml")),
            stderr=subprocess.PIPE,
        )
        _, errors = await asyncio.wait_for(second.communicate(), PATIENCE)
        assert second.returncode == 1
        assert b"another process is serving there" in errors
        async with AgentClient(home / "agent.sock") as client:
            assert await client.is_serving()


async def test_reflection_names_the_services(home: Path, broker: FakeBroker) -> None:
    async with running(home):
        channel = unix_channel(home / "agent.sock")
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        assert {service.name for service in answer.list_services_response.service} == {
            "vmtoken.v1.TlsService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        call.cancel()
        await channel.close()
