"""VMs whose cards are in readers: a broker on the real stack, pcscd with virtual readers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509

from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.config import PcscConfig
from dom0_broker.ctl.__main__ import main
from tests.support.cards import PINS, SEALING_KEY
from tests.support.memory import python_context
from tests.support.pcsc_broker import (
    ATR,
    OPTIONS,
    Rack,
    administration,
    broker,
    certificate_seen,
    config_of,
    is_ready,
    until_ready,
    vm_link,
)
from tests.support.pcscd import MAX_READERS, pcscd
from tests.support.stack import Stack, give_identity
from tests.support.waiting import wait_until
from vmtoken.errors import Reason
from vmtoken.v1 import admin_service_pb2 as pb
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

pytestmark = pytest.mark.pcsc

TIMEOUT = 2.0


@pytest.fixture
def context(tmp_path: Path) -> ssl.SSLContext:
    return python_context(tmp_path, version=ssl.TLSVersion.TLSv1_3)


async def test_token_follows_its_card_by_itself(tmp_path: Path, context: ssl.SSLContext) -> None:
    rack = Rack.of(tmp_path / "elements", ["web01", "web02"])
    with pcscd(tmp_path, readers=3) as daemon:
        first, second, third = daemon.readers
        config = config_of(tmp_path, PcscConfig(socket=str(daemon.socket_path)))
        async with broker(config) as app, vm_link(config, "web01") as stub:
            with second.holding(rack.card("web02"), ATR):
                with first.holding(rack.card("web01"), ATR):
                    await asyncio.to_thread(rack.enrol, config.admin_socket)
                    await until_ready(app, "web01", "web02")
                    assert await certificate_seen(stub, context) == rack.certificates["web01"]
                await until_ready(app, "web01", ready=False)
                assert await is_ready(app, "web02")
                assert await certificate_seen(stub, context) is Reason.TOKEN_UNAVAILABLE
                with third.holding(rack.card("web01"), ATR):
                    await until_ready(app, "web01")
                    assert await certificate_seen(stub, context) == rack.certificates["web01"]


async def test_hung_card_is_its_vms_trouble_alone(tmp_path: Path, context: ssl.SSLContext) -> None:
    rack = Rack.of(tmp_path / "elements", ["web01", "web02"])
    card = rack.slow_card("web01")
    with pcscd(tmp_path) as daemon:
        first, second = daemon.readers
        config = config_of(tmp_path, PcscConfig(socket=str(daemon.socket_path), timeout=TIMEOUT))
        async with (
            broker(config) as app,
            vm_link(config, "web01") as hung,
            vm_link(config, "web02") as well,
        ):
            with first.holding(card, ATR) as slot, second.holding(rack.card("web02"), ATR):
                await asyncio.to_thread(rack.enrol, config.admin_socket)
                await until_ready(app, "web01", "web02")
                card.hang(after=1)
                before = time.monotonic()
                waiting = asyncio.ensure_future(certificate_seen(hung, context))
                assert await certificate_seen(well, context) == rack.certificates["web02"]
                assert await waiting is Reason.TOKEN_UNAVAILABLE
                assert TIMEOUT <= time.monotonic() - before < 4 * TIMEOUT
                before = time.monotonic()
                assert await certificate_seen(hung, context) is Reason.TOKEN_UNAVAILABLE
                assert time.monotonic() - before < TIMEOUT
                slot.remove()
                card.go_on()
            with first.holding(card, ATR):
                await until_ready(app, "web01")
                assert await certificate_seen(hung, context) == rack.certificates["web01"]


async def test_operator_sees_cards_and_resets_one(
    tmp_path: Path, context: ssl.SSLContext, capsys: pytest.CaptureFixture[str]
) -> None:
    rack = Rack.of(tmp_path / "elements", ["web01", "spare"])
    card, wish = rack.slow_card("web01"), tmp_path / "reset"
    with pcscd(tmp_path) as daemon:
        first, second = daemon.readers
        pcsc = PcscConfig(socket=str(daemon.socket_path), timeout=TIMEOUT, reset_command=("touch", str(wish)))
        config = config_of(tmp_path, pcsc)
        del rack.certificates["spare"]  # nobody has it

        async def vmtokenctl(*words: str) -> str:
            capsys.readouterr()
            code = await asyncio.to_thread(main, ["--socket", str(config.admin_socket), *words])
            assert code == 0, capsys.readouterr().err
            return capsys.readouterr().out

        async with broker(config) as app, vm_link(config, "web01") as link:
            with first.holding(card, ATR) as slot, second.holding(rack.card("spare"), ATR):
                await asyncio.to_thread(rack.enrol, config.admin_socket)
                await until_ready(app, "web01")
                rows = {
                    row["place"]: row for row in json.loads(await vmtokenctl("token", "discover", "--json"))
                }
                used, free = rows[first.name], rows[second.name]
                assert (used["token"], free["token"]) == ("web01", "")
                assert used["uri"] == rack.uri("web01")
                assert used["subject"] == "CN=web01"
                assert used["not_after"]
                assert free["uri"] == rack.uri("spare")
                assert free["pin_tries"] == 3
                assert free["atr"] == ATR.hex(" ").upper()
                assert "TLS 1.3" in free["capabilities"]
                table = await vmtokenctl("token", "discover")
                assert rack.uri("spare") in table
                assert "PIN TRIES" in table.splitlines()[0]
                await vmtokenctl("token", "reset", "web01")
                assert await certificate_seen(link, context) == rack.certificates["web01"]
                card.hang()
                assert await certificate_seen(link, context) is Reason.TOKEN_UNAVAILABLE

                def reader_is_reset() -> None:
                    wait_until(wish.exists)
                    slot.remove()
                    card.go_on()

                reset = threading.Thread(target=reader_is_reset)
                reset.start()
                code = await asyncio.to_thread(
                    main, ["--socket", str(config.admin_socket), "token", "reset", "web01"]
                )
                reset.join()
                said = capsys.readouterr().err
                assert code == 1
                assert "It was reset, but:" in said, said
            with first.holding(card, ATR):
                await until_ready(app, "web01")
                assert await certificate_seen(link, context) == rack.certificates["web01"]


async def test_card_fresh_from_its_maker_gets_its_identity_in_the_reader(
    tmp_path: Path, context: ssl.SSLContext
) -> None:
    rack = Rack(SoftwareBackend(tmp_path / "elements", SEALING_KEY, options=OPTIONS), {})
    rack.elements.create("fresh", PINS)
    with pcscd(tmp_path) as daemon, daemon.readers[0].holding(rack.card("fresh"), ATR):
        config = config_of(tmp_path, PcscConfig(socket=str(daemon.socket_path)))
        async with broker(config), vm_link(config, "web01") as stub:
            await asyncio.to_thread(enrol_fresh, config.admin_socket, rack.uri("fresh"))
            seen = await certificate_seen(stub, context)
    assert isinstance(seen, bytes)
    assert x509.load_der_x509_certificate(seen).subject.rfc4514_string() == "CN=web01"


def enrol_fresh(admin_socket: Path, uri: str) -> None:
    user, operator = PINS.user.reveal(), PINS.operator.reveal()
    request = pb.CreateTokenRequest(
        name="card",
        uri=uri,
        algorithm=pb.KEY_ALGORITHM_P256,
        existing=True,
        user_pin=user,
        operator_pin=operator,
    )
    with administration(admin_socket) as admin:
        admin.AddVm(pb.AddVmRequest(name="web01"))
        give_identity(admin, request)
        admin.Bind(pb.BindRequest(vm="web01", token="card"))


@pytest.mark.slow
async def test_two_pcscd_with_32_readers_lose_and_cross_nothing(
    tmp_path: Path, context: ssl.SSLContext
) -> None:
    names = [f"vm{number:02}" for number in range(2 * MAX_READERS)]
    rack = Rack.of(tmp_path / "elements", names)
    homes = [tmp_path / "left", tmp_path / "right"]
    for home in homes:
        home.mkdir()
    with contextlib.ExitStack() as stack:
        daemons = [stack.enter_context(pcscd(home, readers=MAX_READERS)) for home in homes]
        readers = [reader for daemon in daemons for reader in daemon.readers]
        for name, reader in zip(names, readers, strict=True):
            stack.enter_context(reader.holding(rack.card(name), ATR))
        config = config_of(tmp_path, *(PcscConfig(socket=str(daemon.socket_path)) for daemon in daemons))
        async with broker(config) as app:
            await asyncio.to_thread(rack.enrol, config.admin_socket)
            await until_ready(app, *names)
            async with contextlib.AsyncExitStack() as links:
                stubs = {name: await links.enter_async_context(vm_link(config, name)) for name in names}
                seen = await asyncio.gather(*(sessions(stubs[name], context) for name in names))
    assert sum(len(certificates) for certificates in seen) == 1024
    for name, certificates in zip(names, seen, strict=True):
        assert set(certificates) == {rack.certificates[name]}


async def sessions(stub: TokenServiceStub, context: ssl.SSLContext) -> list[bytes | Reason]:
    """One VM's share of the thousand."""
    return [await certificate_seen(stub, context) for _ in range(1024 // (2 * MAX_READERS))]


def test_broker_that_is_killed_finds_its_card_again(tmp_path: Path) -> None:
    rack = Rack.of(tmp_path / "elements", ["web01"])
    with pcscd(tmp_path) as daemon, daemon.readers[0].holding(rack.card("web01"), ATR):
        settings = f'[[pcsc]]\nsocket = "{daemon.socket_path}"\n'
        with Stack.running((), without_agent=True, broker_settings=settings) as stack:
            assert stack.broker is not None
            with stack.administration() as admin:
                admin.RemoveVm(pb.RemoveVmRequest(vm="web01"))
            rack.enrol(stack.admin_socket)
            wait_until(lambda: token_is_ready(stack))
            stack.broker.kill()
            stack.start_broker()
            wait_until(lambda: token_is_ready(stack))


def token_is_ready(stack: Stack) -> bool:
    with stack.administration() as admin:
        (token,) = admin.ListAllTokens(pb.ListAllTokensRequest(name="web01")).tokens
    return token.ready
