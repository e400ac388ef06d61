"""The agent's end of the link to the broker, and the fake that stands for the other end."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from guest_agent.broker_client import (
    BrokerClient,
    Flight,
    HandshakeRefused,
    HandshakeResult,
    HandshakeWish,
)
from guest_agent.config import BrokerSettings, Enrolment
from tests.fakes.broker import FakeBroker
from tests.support.directories import short_directory
from tests.support.pki import KeyKind, Usage, client_identity, pki, server_identity
from tests.support.tls_peer import echo, tls_server
from vmtoken.errors import (
    BrokerUnavailable,
    DeadlineExceeded,
    InvalidRequest,
    PinBlocked,
    TokenBusy,
    TokenNotFound,
)
from vmtoken.rpc.channel import unix_channel
from vmtoken.rpc.front_door import FrontDoor
from vmtoken.rpc.status import from_rpc_error
from vmtoken.token import Assurance
from vmtoken.transport import tcp
from vmtoken.v1 import token_service_pb2 as pb
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

WISH = HandshakeWish(server_name="server.example", port=443)
PATIENCE = 5.0


@pytest.fixture
async def home() -> AsyncIterator[Path]:
    path = short_directory()
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def broker(home: Path) -> AsyncIterator[FakeBroker]:
    fake = FakeBroker(client_identity())
    await fake.serve(home / "broker.sock")
    yield fake
    await fake.stop()


@pytest.fixture
async def client(home: Path) -> AsyncIterator[BrokerClient]:
    made = BrokerClient(BrokerSettings(link=f"unix:{home}/broker.sock", connect_timeout=1.0, handshakes=4))
    yield made
    await made.close()


async def test_tokens_are_listed(broker: FakeBroker, client: BrokerClient) -> None:
    (token,) = await client.tokens(PATIENCE)
    assert (token.name, token.assurance, token.ready) == ("web01", Assurance.SOFTWARE, True)
    assert token.certificate_subject == "CN=web01"


async def test_streams_are_used_again(broker: FakeBroker, client: BrokerClient) -> None:
    client.warm_up()
    for _ in range(10):
        async with client.handshake() as handshake:
            broker.refusal = PinBlocked("the PIN is blocked")
            with pytest.raises(HandshakeRefused):
                await handshake.start(WISH, PATIENCE)
    assert len(broker.starts) == 10
    assert broker.streams_opened <= 3


async def test_handshake_that_is_left_is_aborted_at_the_broker(
    broker: FakeBroker, client: BrokerClient
) -> None:
    async with client.handshake() as handshake:
        assert isinstance(await handshake.start(WISH, PATIENCE), Flight)
        assert broker.under_way == 1
    await _until(lambda: broker.under_way == 0)


async def test_wish_arrives_as_it_was_made(broker: FakeBroker, client: BrokerClient) -> None:
    wish = HandshakeWish(server_name="server.example", port=8443, token="web01", alpn=("h2", "http/1.1"))
    async with client.handshake() as handshake:
        await handshake.start(wish, 4.0)
    (start,) = broker.starts
    assert (start.server_name, start.port, start.token) == ("server.example", 8443, "web01")
    assert list(start.alpn) == ["h2", "http/1.1"]
    assert 3 < start.timeout.ToTimedelta().total_seconds() < 4, "the broker gives up before we do"


async def test_broker_that_is_away_is_waited_for_so_long_and_no_longer(client: BrokerClient) -> None:
    started = asyncio.get_running_loop().time()
    async with client.handshake() as handshake:
        with pytest.raises(BrokerUnavailable, match="does not answer") as caught:
            await handshake.start(WISH, 30.0)
    assert 0.9 < asyncio.get_running_loop().time() - started < 3
    assert caught.value.retry_after


async def test_handshake_begins_while_the_broker_restarts(
    broker: FakeBroker, client: BrokerClient, home: Path
) -> None:
    """Streams that were warm are dead without us knowing."""
    client.warm_up()
    async with client.handshake() as handshake:
        await handshake.start(WISH, PATIENCE)
    await broker.stop()

    async def come_back() -> None:
        await asyncio.sleep(0.3)
        await broker.serve(home / "broker.sock")

    coming = asyncio.create_task(come_back())
    async with client.handshake() as handshake:
        assert isinstance(await handshake.start(WISH, PATIENCE), Flight)
    await coming


async def test_broker_lost_in_the_middle_fails_this_handshake_and_not_the_next(
    broker: FakeBroker, client: BrokerClient, home: Path
) -> None:
    async with client.handshake() as handshake:
        await handshake.start(WISH, PATIENCE)
        await broker.stop()
        await broker.serve(home / "broker.sock")
        with pytest.raises(BrokerUnavailable, match="broke before the handshake was complete"):
            await handshake.process(b"\x16\x03\x03\x00\x00", PATIENCE)
    async with client.handshake() as handshake:
        await handshake.start(WISH, PATIENCE)


async def test_busy_token_and_deadline(broker: FakeBroker, client: BrokerClient) -> None:
    broker.hold()
    async with client.handshake() as handshake:
        with pytest.raises(TokenBusy, match="no answer before the deadline"):
            await handshake.start(WISH, 0.2)
    broker.open_gate.set()
    async with client.handshake() as handshake:
        await handshake.start(WISH, PATIENCE)
        with pytest.raises(DeadlineExceeded):
            await handshake.process(b"\x16\x03\x03\x00\x00", 0.0)


async def test_more_handshakes_than_configured_wait_for_their_turn(
    broker: FakeBroker, client: BrokerClient
) -> None:
    async def hold_one() -> None:
        async with client.handshake() as handshake:
            await handshake.start(WISH, PATIENCE)
            most.append(broker.under_way)

    most: list[int] = []
    await asyncio.gather(*(hold_one() for _ in range(20)))
    assert max(most) <= 4


async def test_ticket_of_nothing_is_not_accepted(broker: FakeBroker, client: BrokerClient) -> None:
    assert not await client.give_back_ticket(b"unknown", b"\x04\x00\x00\x00")


async def test_link_over_tcp_with_mutual_tls(broker: FakeBroker, home: Path) -> None:
    """The agent shows its enrolment certificate and verifies the broker's."""
    certificates: list[bytes] = []

    def identify(transport: asyncio.BaseTransport) -> str:
        certificates.append(tcp.peer_certificate(transport))
        return "web01"

    async def server_of(caller: str) -> Path:
        return home / "broker.sock"

    theirs = server_identity().write(home, "broker")
    ours = pki().intermediate.issue("enrolled", KeyKind.ECDSA_P256, usage=Usage.CLIENT)
    files = ours.write(home, "vm")
    door = FrontDoor(identify, server_of)
    context = tcp.server_context(theirs.chain, theirs.key, files.anchors)
    listener = await tcp.listen("127.0.0.1", 0, context, door.protocol)
    port = listener.sockets[0].getsockname()[1]
    enrolment = Enrolment(
        ca=theirs.anchors, certificate=files.chain, key=files.key, server_name="server.example"
    )
    client = BrokerClient(BrokerSettings(link=f"tcp:127.0.0.1:{port}", enrolment=enrolment))
    try:
        assert [token.name for token in await client.tokens(PATIENCE)] == ["web01"]
        async with client.handshake() as handshake:
            await handshake.start(WISH, PATIENCE)
        assert certificates == [ours.chain_der[0]]
    finally:
        await client.close()
        listener.close()
        await door.close()


# The fake itself.


async def test_fake_runs_a_real_handshake(broker: FakeBroker, client: BrokerClient) -> None:
    with tls_server(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with client.handshake() as handshake:
            step: Flight | HandshakeResult = await handshake.start(WISH, PATIENCE)
            while isinstance(step, Flight):
                writer.write(step.records)
                header = await reader.readexactly(5)
                fragment = await reader.readexactly(int.from_bytes(header[3:], "big"))
                step = await handshake.process(header + fragment, PATIENCE)
        writer.close()
    assert step.server_certificate == server_identity().chain_der[0]
    assert step.client_certificate_sent
    assert len(step.session_id) == 16


@pytest.mark.parametrize(
    "steps",
    [
        [pb.HandshakeRequest(start=pb.HandshakeStart(server_name="server.example"))] * 2,
        [pb.HandshakeRequest(server_records=b"x")],
        [pb.HandshakeRequest()],
    ],
    ids=["start twice", "records without a start", "no step"],
)
async def test_fake_refuses_what_the_contract_forbids(
    broker: FakeBroker, home: Path, steps: list[pb.HandshakeRequest]
) -> None:
    channel = unix_channel(home / "broker.sock")
    call = TokenServiceStub(channel).Handshake(wait_for_ready=True)
    for step in steps[:-1]:
        await call.write(step)
        await call.read()
    await call.write(steps[-1])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert isinstance(from_rpc_error(caught.value), InvalidRequest)
    await channel.close()


async def test_fake_knows_its_token_only(broker: FakeBroker, client: BrokerClient) -> None:
    async with client.handshake() as handshake:
        with pytest.raises(HandshakeRefused) as caught:
            await handshake.start(HandshakeWish("server.example", 443, token="other"), PATIENCE)
    assert isinstance(caught.value.error, TokenNotFound)


async def _until(condition) -> None:  # type: ignore[no-untyped-def]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110  # the other side is in this loop
                await asyncio.sleep(0.01)
    assert condition()
