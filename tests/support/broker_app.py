"""A broker in this process, with fake cards, real links and a real store."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NoReturn

import grpc.aio
from msgspec.structs import replace

from dom0_broker.app import App
from dom0_broker.backends.base import NOTHING_KEPT, FoundToken, Kept, PinState
from dom0_broker.backends.registry import BackendSettings
from dom0_broker.config import BrokerConfig, Limits
from dom0_broker.domains import DomainIdentity
from dom0_broker.store import BindingRecord, Store, TokenRecord
from tests.fakes.token import FakeToken, Script
from tests.support.directories import short_directory
from tests.support.pki import client_identity
from vmtoken.errors import Conflict
from vmtoken.rpc.channel import unix_channel
from vmtoken.rpc.convert import seconds_to_pb
from vmtoken.secret import SecretBytes
from vmtoken.v1 import token_service_pb2 as pb
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

WEB01 = DomainIdentity(uuid.UUID(int=1), "web01")
WEB02 = DomainIdentity(uuid.UUID(int=2), "web02")


class Cards:
    """The backend of fake cards: scripts by locator."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}

    def script(self, locator: str) -> Script:
        if locator not in self.scripts:
            self.scripts[locator] = Script(certificate_chain=client_identity().chain_der)
        return self.scripts[locator]

    def backend_for(self, scheme: str, _: BackendSettings) -> Cards:
        assert scheme == "fake"
        return self

    def open(self, locator: str, user_pin: SecretBytes | None, kept: Kept = NOTHING_KEPT) -> FakeToken:
        return FakeToken(self.script(locator))

    def open_issuer(self, locator: str, operator_pin: object, user_pin: object = None) -> NoReturn:
        raise Conflict("A fake card cannot be personalised.")

    def create(self, locator: str, pins: object) -> NoReturn:
        raise Conflict("A fake card cannot be made.")

    def delete(self, locator: str) -> None:
        del self.scripts[locator]

    def pin_holder(self, locator: str) -> str:
        return f"fake:{locator}"

    def pin_state(self, locator: str) -> PinState:
        return PinState(None)

    def change_user_pin(self, locator: str, old_pin: SecretBytes, new_pin: SecretBytes) -> NoReturn:
        raise Conflict("A fake card has no PIN.")

    def unblock_user_pin(self, locator: str, code: SecretBytes, new_pin: SecretBytes) -> NoReturn:
        raise Conflict("A fake card has no PIN.")

    def discover(self) -> list[FoundToken]:
        return [FoundToken(f"fake:{locator}", "memory") for locator in sorted(self.scripts)]

    def present(self, locator: str) -> bool:
        return True

    def reset(self, locator: str) -> None:
        pass

    def watch(self, changed: Callable[[], None]) -> None:
        pass

    def close(self) -> None:
        pass


def broker_config(home: Path, *, policy: str = "allow vm=* server=*", **limits: float) -> BrokerConfig:
    """A configuration whose directories are all under `home`."""
    policy_dir = home / "policy.d"
    policy_dir.mkdir(exist_ok=True)
    (policy_dir / "10-test.policy").write_text(policy + "\n")
    runtime_dir = short_directory()
    config = BrokerConfig(state_dir=home / "state", runtime_dir=runtime_dir, policy_dir=policy_dir)
    return replace(config, limits=Limits(**limits))  # type: ignore[arg-type]


def populate(config: BrokerConfig, *vms: DomainIdentity, tokens: dict[str, list[DomainIdentity]]) -> None:
    """Put VMs, fake tokens and their bindings into the store of a broker that does not run."""
    config.state_dir.mkdir(mode=0o700, exist_ok=True)
    with contextlib.closing(Store(config.database)) as store:
        for vm in vms:
            store.add_vm(vm)
        for name, users in tokens.items():
            store.add_token(TokenRecord(name, f"fake:{name}"))
            for vm in users:
                store.bind(BindingRecord(vm.uuid, name, name))


@contextlib.asynccontextmanager
async def running(config: BrokerConfig, cards: Cards) -> AsyncIterator[App]:
    """The broker, until the block ends."""
    app = App(config, backends=cards.backend_for)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()
        shutil.rmtree(config.runtime_dir, ignore_errors=True)


@contextlib.asynccontextmanager
async def agent_of(app: App, vm: DomainIdentity) -> AsyncIterator[TokenServiceStub]:
    """What the VM's agent has: a stub over the VM's own socket."""
    path = app.links.socket(vm)
    assert path is not None
    async with unix_channel(path) as channel:
        yield TokenServiceStub(channel)


class Stream:
    """A Handshake stream, step by step."""

    def __init__(self, stub: TokenServiceStub) -> None:
        self.call: grpc.aio.StreamStreamCall[pb.HandshakeRequest, pb.HandshakeResponse] = stub.Handshake()

    async def step(self, request: pb.HandshakeRequest) -> pb.HandshakeResponse:
        await self.call.write(request)
        response = await self.call.read()
        assert isinstance(response, pb.HandshakeResponse), "the stream has ended"
        return response

    async def start(
        self, server_name: str = "server.example", *, timeout: float = 5.0, **fields: object
    ) -> pb.HandshakeResponse:
        start = pb.HandshakeStart(server_name=server_name, port=443, timeout=seconds_to_pb(timeout), **fields)  # type: ignore[arg-type]
        return await self.step(pb.HandshakeRequest(start=start))

    async def records(self, records: bytes) -> pb.HandshakeResponse:
        return await self.step(pb.HandshakeRequest(server_records=records))

    async def handshake(self, server_name: str = "server.example", **fields: object) -> pb.HandshakeResponse:
        """A whole handshake with the fake server, or its failure."""
        response = await self.start(server_name, **fields)  # type: ignore[arg-type]
        for records in (b"server flight", b"server finished"):
            if response.WhichOneof("step") != "flight":
                break
            response = await self.records(records)
        return response
