"""A card that is reset, or goes away, at any APDU of a handshake: a refusal, no PIN lost, all is well."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dom0_broker.app import App
from dom0_broker.backends.registry import BackendSettings, TokenBackend
from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.keystore import Keystore
from dom0_broker.backends.software.sealing import load_sealing_key
from dom0_broker.config import BrokerConfig
from tests.support.broker_app import Stream, broker_config
from tests.support.pki import KeyKind, server_identity
from tests.support.stack import VM, personalise
from vmtoken.errors import Reason, TokenUnavailable
from vmtoken.iso7816.connection import CardConnection
from vmtoken.rpc.channel import unix_channel
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

KIND = KeyKind.ECDSA_P256
CLEAR = {Reason.TOKEN_UNAVAILABLE, Reason.TOKEN_NOT_READY, Reason.HANDSHAKE_FAILED}
LONGEST = 200
"""APDUs of a handshake, in any case."""


@dataclass
class Fault:
    """What befalls the card, and how many APDUs are still to come before."""

    kind: str = "none"
    countdown: int = -1

    def strikes(self) -> bool:
        self.countdown -= 1
        return self.countdown == -1


class UnluckyCard:
    """A card to which a fault happens."""

    def __init__(self, card: CardConnection, fault: Fault) -> None:
        self._card = card
        self._fault = fault
        self._gone = False

    def transmit(self, command: bytes) -> bytes:
        if self._fault.strikes():
            self._gone = self._fault.kind == "unplugged"
            self._card.reset()
        if self._gone:
            raise TokenUnavailable("the card does not answer")
        return self._card.transmit(command)

    def reset(self) -> None:
        self._card.reset()

    def close(self) -> None:
        self._card.close()


class UnluckyBackend(SoftwareBackend):
    """Software elements to which faults happen."""

    fault: Fault

    def connect(self, locator: str) -> CardConnection:  # type: ignore[override]
        return UnluckyCard(super().connect(locator), self.fault)


@dataclass
class Setting:
    """A broker in this process, with one card that is personalised."""

    config: BrokerConfig
    fault: Fault
    stub: TokenServiceStub
    server: ssl.SSLContext

    @property
    def pin_tries_left(self) -> int:
        (path,) = (self.config.state_dir / "elements").glob(f"{KIND.value}*")
        return Keystore.load(path, load_sealing_key(self.config.state_dir)).contents.user_pin.tries_left


@pytest.fixture
async def setting(tmp_path: Path) -> AsyncIterator[Setting]:
    fault = Fault()

    def backend_for(_scheme: str, settings: BackendSettings) -> TokenBackend:
        backend = UnluckyBackend(settings.elements_directory, settings.sealing_key)
        backend.fault = fault
        return backend

    config = broker_config(tmp_path)
    app = App(config, backends=backend_for)
    await app.start()
    try:
        await asyncio.to_thread(personalise, config.admin_socket, (KIND,))
        async with unix_channel(config.link_socket(VM)) as channel:
            yield Setting(config, fault, TokenServiceStub(channel), server_context(tmp_path))
    finally:
        await app.stop()


def server_context(directory: Path) -> ssl.SSLContext:
    files = server_identity().write(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    context.load_verify_locations(files.anchors)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("kind", ["reset", "unplugged"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_fault_at_every_apdu(setting: Setting, kind: str, version: ssl.TLSVersion) -> None:
    setting.server.minimum_version = setting.server.maximum_version = version
    tries = setting.pin_tries_left
    assert await handshake(setting) is None
    struck = 0
    for apdu in range(LONGEST):
        setting.fault.kind, setting.fault.countdown = kind, apdu
        reason = await handshake(setting)
        if setting.fault.countdown >= 0:  # the handshake was over before
            break
        struck += 1
        assert reason in CLEAR | {None}, f"{kind} at APDU {apdu}"
        setting.fault.countdown = -1
        assert await eventually(setting) is None, f"after {kind} at APDU {apdu}"
        assert setting.pin_tries_left == tries
    assert struck > 5


async def eventually(setting: Setting) -> Reason | None:
    """The broker may need a moment to find the card again."""
    for _ in range(20):
        reason = await handshake(setting)
        if reason is None:
            return None
        await asyncio.sleep(0.1)
    return reason


async def handshake(setting: Setting) -> Reason | None:
    """Why there is no session; None if there is one."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = setting.server.wrap_bio(incoming, outgoing, server_side=True)
    stream = Stream(setting.stub)
    answer = await stream.start(timeout=5, no_resumption=True)
    while answer.WhichOneof("step") == "flight":
        incoming.write(answer.flight.records)
        with contextlib.suppress(ssl.SSLWantReadError):
            server.do_handshake()
        answer = await stream.records(outgoing.read())
    stream.call.cancel()
    return Reason(answer.failure.error.reason) if answer.HasField("failure") else None
