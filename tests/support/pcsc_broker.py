"""A broker in this process whose VMs have cards in readers, and handshakes with a server in memory."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from dom0_broker.app import App
from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import ElementOptions
from dom0_broker.config import BrokerConfig, PcscConfig
from tests.fakes.slow_card import SlowCard
from tests.support.broker_app import Stream, broker_config
from tests.support.cards import PINS, SEALING_KEY, personalise
from tests.support.memory import PythonServer
from tests.support.pcsc import atr_of
from tests.support.pki import Usage, pki
from tests.support.stack import sync_channel
from vmtoken.errors import Reason
from vmtoken.iso7816.connection import CardConnection
from vmtoken.rpc.channel import unix_channel
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

OPTIONS = ElementOptions(extended=True)
ATR = atr_of(OPTIONS)


@dataclass
class Rack:
    """Cards by the name of the VM that each is for, and in whose certificate the name is."""

    elements: SoftwareBackend
    certificates: dict[str, bytes]
    """DER."""

    @classmethod
    def of(cls, directory: Path, names: list[str]) -> Rack:
        elements = SoftwareBackend(directory, SEALING_KEY, options=OPTIONS)
        certificates = {}
        for name in names:
            identity = pki().intermediate.issue(name, usage=Usage.CLIENT)
            elements.create(name, PINS)
            with contextlib.closing(elements.open_issuer(name, PINS.operator)) as issuer:
                personalise(issuer, identity)
            certificates[name] = identity.chain_der[0]
        return cls(elements, certificates)

    def card(self, name: str) -> CardConnection:
        return self.elements.connect(name)

    def slow_card(self, name: str) -> SlowCard:
        return SlowCard(self.card(name))

    def uri(self, name: str) -> str:
        return f"pcsc:serial={self.elements.serial(name)}"

    def enrol(self, admin_socket: Path) -> None:
        """Make each VM and its card known to a broker."""
        with administration(admin_socket) as admin:
            for name in self.certificates:
                admin.AddVm(pb.AddVmRequest(name=name))
                request = pb.AddTokenRequest(name=name, uri=self.uri(name), user_pin=PINS.user.reveal())
                admin.AddToken(request)
                admin.Bind(pb.BindRequest(vm=name, token=name))


@contextlib.contextmanager
def administration(admin_socket: Path) -> Iterator[AdminServiceStub]:
    with sync_channel(admin_socket) as channel:
        yield AdminServiceStub(channel)


def config_of(home: Path, *pcscd: PcscConfig, **limits: float) -> BrokerConfig:
    return replace(broker_config(home, **limits), pcsc=pcscd)


@contextlib.asynccontextmanager
async def broker(config: BrokerConfig) -> AsyncIterator[App]:
    """A broker with real backends, until the block ends."""
    app = App(config)
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


@contextlib.asynccontextmanager
async def vm_link(config: BrokerConfig, vm: str) -> AsyncIterator[TokenServiceStub]:
    """What the agent of a VM has."""
    async with unix_channel(config.link_socket(vm)) as channel:
        yield TokenServiceStub(channel)


async def certificate_seen(stub: TokenServiceStub, context: ssl.SSLContext) -> bytes | Reason:
    """What a server sees of a VM that makes a full handshake with it; or why there was none."""
    server, stream = PythonServer(context), Stream(stub)
    answer = await stream.start(timeout=20, no_resumption=True)
    while (step := answer.WhichOneof("step")) == "flight":
        answer = await stream.records(server.receive(answer.flight.records))
    stream.call.cancel()
    if step == "failure":
        return Reason(answer.failure.error.reason)
    server.receive(answer.result.records)
    seen = server.tls.getpeercert(binary_form=True)
    assert seen is not None, "servers here demand a certificate"
    return seen


async def is_ready(app: App, token: str) -> bool:
    """As the operator sees it, without asking the card."""
    await asyncio.sleep(0.05)
    worker = app._desk.inventory.token(token).worker
    return worker.problem is None and worker.description is not None


async def until_ready(app: App, *tokens: str, ready: bool = True, seconds: float = 15.0) -> None:
    """Cards come and go without anybody asking for them."""
    async with asyncio.timeout(seconds):
        while not all([await is_ready(app, token) is ready for token in tokens]):
            pass
