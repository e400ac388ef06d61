"""An agent in the test's own event loop, with a `FakeBroker` behind it and a client in front."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from guest_agent.app import App
from guest_agent.client import AgentClient
from guest_agent.config import AgentConfig, ApplicationSettings, BrokerSettings, SessionSettings
from tests.fakes.broker import FakeBroker
from tests.support.directories import short_directory
from tests.support.pki import SERVER_NAME, client_identity
from vmtoken.v1 import tls_service_pb2 as pb

QUICK = SessionSettings(handshake_timeout=10.0, linger=0.5, drain_timeout=0.2)


@dataclass
class AgentUnderTest:
    """All that a test takes hold of."""

    home: Path
    broker: FakeBroker
    app: App
    client: AgentClient

    @property
    def broker_socket(self) -> Path:
        return self.home / "broker.sock"

    @property
    def socket(self) -> Path:
        return self.home / "agent.sock"


@asynccontextmanager
async def running_agent(
    sessions: SessionSettings = QUICK,
    *,
    with_broker: bool = True,
    sessions_per_user: int = 256,
    handshakes: int = 64,
    connect_timeout: float = 1.0,
) -> AsyncIterator[AgentUnderTest]:
    """Broker, agent and client, as long as the block lasts."""
    home = short_directory()
    broker = FakeBroker(client_identity())
    config = AgentConfig(
        broker=BrokerSettings(
            link=f"unix:{home}/broker.sock", connect_timeout=connect_timeout, handshakes=handshakes
        ),
        applications=ApplicationSettings(socket=home / "agent.sock", sessions_per_user=sessions_per_user),
        sessions=sessions,
    )
    app = App(config)
    if with_broker:
        await broker.serve(home / "broker.sock")
    await app.start()
    client = AgentClient(home / "agent.sock")
    try:
        yield AgentUnderTest(home, broker, app, client)
    finally:
        await client.close()
        await app.stop()
        await broker.stop()
        shutil.rmtree(home)


def request(port: int, **options: object) -> pb.ConnectRequest:
    """A session with a server of this machine that calls itself `SERVER_NAME`."""
    fields = {"host": "127.0.0.1", "port": port, "server_name": SERVER_NAME, **options}
    return pb.ConnectRequest(**fields)  # type: ignore[arg-type]


def quick(**changes: float) -> SessionSettings:
    """The settings of a test with some changed."""
    return msgspec.structs.replace(QUICK, **changes)
