"""A pool of software elements with keys of two kinds, under load, while one is pulled and put back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dom0_broker.app import App
from dom0_broker.backends.registry import BackendSettings, TokenBackend
from dom0_broker.backends.software.backend import SoftwareBackend
from tests.support.broker_app import broker_config
from tests.support.load import Load, server_context
from tests.support.pki import KeyKind
from tests.support.stack import VM, personalise, sync_channel
from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.connection import CardConnection
from vmtoken.rpc.channel import unix_channel
from vmtoken.v1 import admin_service_pb2 as admin
from vmtoken.v1.admin_service_pb2_grpc import AdminServiceStub
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

FIRST, SECOND = KINDS = (KeyKind.ECDSA_P256, KeyKind.ED25519)
CLIENTS = 12


class LooseCard:
    """A card that can be pulled out of its reader."""

    def __init__(self, card: CardConnection, locator: str, pulled: set[str]) -> None:
        self._card = card
        self._locator = locator
        self._pulled = pulled

    def transmit(self, command: bytes) -> bytes:
        self._check()
        return self._card.transmit(command)

    def reset(self) -> None:
        self._check()
        self._card.reset()

    def close(self) -> None:
        self._card.close()

    def _check(self) -> None:
        if self._locator in self._pulled:
            raise TokenUnavailable("The card is not in its reader.")


class LooseBackend(SoftwareBackend):
    """Software elements that can be pulled."""

    pulled: set[str]

    def connect(self, locator: str) -> CardConnection:  # type: ignore[override]
        return LooseCard(super().connect(locator), locator, self.pulled)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[tuple[Load, set[str]]]:
    """Load on a pool of two elements, and the set of those that are pulled."""
    pulled: set[str] = set()

    def backend_for(_scheme: str, settings: BackendSettings) -> TokenBackend:
        backend = LooseBackend(settings.elements_directory, settings.sealing_key)
        backend.pulled = pulled
        return backend

    config = broker_config(tmp_path)
    app = App(config, backends=backend_for)
    await app.start()
    try:
        await asyncio.to_thread(make_pool, config.admin_socket)
        async with unix_channel(config.link_socket(VM)) as channel:
            yield Load(TokenServiceStub(channel), server_context(tmp_path), "web"), pulled
    finally:
        await app.stop()


def make_pool(admin_socket: Path) -> None:
    personalise(admin_socket, KINDS)
    with sync_channel(admin_socket) as channel:
        operator = AdminServiceStub(channel)
        for kind in KINDS:
            operator.Bind(admin.BindRequest(vm=VM, token=kind.value, name="web"))


async def test_element_pulled_under_load_costs_one_handshake_and_comes_back(
    pool: tuple[Load, set[str]],
) -> None:
    load, pulled = pool
    async with load.of(CLIENTS):
        both = await load.more(60)
        pulled.add(FIRST.value)
        await load.more(20)
        without = await load.more(60)
        pulled.clear()
        again = await load.more(20, FIRST.value)
    assert both.count(FIRST.value) > 10
    assert both.count(SECOND.value) > 10
    assert FIRST.value not in without
    assert SECOND.value in again
    assert load.failed in ([], ["The card is not in its reader."])
