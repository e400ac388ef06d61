"""What a link over vchan does with a peer that behaves, with one that does not, and with one that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from unittest.mock import patch

import pytest

from tests.fakes.vchan import FakeHypervisor, FakeVchan
from tests.fakes.xenstored import FakeXenstored
from tests.support.directories import short_directory
from tests.support.waiting import eventually
from vmtoken.transport import vchan
from vmtoken.transport.vchan import (
    PageSpoiled,
    RingSizes,
    VchanTransport,
    VchanViolation,
    connect,
    link_path,
    serve,
)
from vmtoken.transport.xenstore import Xenstore

SIZES = RingSizes(4096, 4096)
WEB01 = 1


class End(asyncio.Protocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.came = asyncio.Event()
        self.transport: VchanTransport | None = None
        self.may_write = asyncio.Event()
        self.may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, VchanTransport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.came.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    async def until(self, octets: int) -> bytes:
        async with asyncio.timeout(10):
            while len(self.received) < octets:
                self.came.clear()
                await self.came.wait()
        return bytes(self.received)


class Host:
    """dom0 with one domain, and a server for it."""

    def __init__(self) -> None:
        self.store = FakeXenstored(short_directory())
        self.hypervisor = FakeHypervisor(self.store)
        self.sessions: asyncio.Queue[End] = asyncio.Queue()
        self.violations: list[VchanViolation] = []
        self.path = link_path(0, WEB01)

    def arrive(self) -> End:
        end = End()
        self.sessions.put_nowait(end)
        return end

    @contextmanager
    def serving(self) -> Iterator[asyncio.Task[None]]:
        machine = self.hypervisor.machine(0)
        task = asyncio.create_task(
            serve(
                WEB01,
                self.path,
                self.arrive,
                sizes=SIZES,
                violated=self.violations.append,
                open_server=machine.open_server,
            )
        )
        try:
            yield task
        finally:
            task.cancel()

    async def raw_client(self, *, server: int = 1) -> FakeVchan:
        """A guest with a library of its own, at the first server of the host or a later one."""
        machine = self.hypervisor.machine(WEB01)
        await eventually(lambda: self.hypervisor.opened >= server)
        await eventually(lambda: f"{self.path}/event-channel" in self.store.nodes)
        return machine.open_client(0, self.path)

    @asynccontextmanager
    async def guest(self) -> AsyncIterator[Callable[[], asyncio.Task[tuple[VchanTransport, End]]]]:
        """What connects from within the domain."""
        store = await Xenstore.connect([await self.store.socket(WEB01)])
        machine = self.hypervisor.machine(WEB01)
        yield lambda: asyncio.create_task(connect(End, 0, self.path, store, open_client=machine.open_client))
        store.close()

    async def session(self) -> End:
        return await asyncio.wait_for(self.sessions.get(), 10)


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    host.store.create_domain("web01", uuid.UUID(int=1))
    yield host
    await host.store.close()


@asynccontextmanager
async def pair(host: Host) -> AsyncIterator[tuple[End, End]]:
    """The server's end and the client's."""
    with host.serving() as task:
        async with host.guest() as dial:
            transport, end = await asyncio.wait_for(dial(), 10)
            yield await host.session(), end
            transport.abort()
            await transport.closed
        task.cancel()
        await asyncio.wait([task])
    assert not host.hypervisor.ends, "an end is still open"


async def test_the_transport_knows_the_domain_and_data_passes_both_ways(host: Host) -> None:
    async with pair(host) as (server, client):
        assert server.transport is not None
        assert client.transport is not None
        assert server.transport.get_extra_info("domid") == WEB01
        client.transport.write(b"question")
        assert await server.until(8) == b"question"
        server.transport.write(b"answer")
        assert await client.until(6) == b"answer"


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 100_000, 3_000_000])
async def test_whatever_is_longer_than_a_ring_arrives_whole(host: Host, size: int) -> None:
    octets = os.urandom(size)
    async with pair(host) as (server, client):
        for sender, receiver in ((client, server), (server, client)):
            assert sender.transport is not None
            sender.transport.write(octets)
            assert await receiver.until(size) == octets


async def test_a_peer_that_does_not_read_pauses_the_writer_and_nothing_grows(host: Host) -> None:
    async with pair(host) as (server, client):
        assert server.transport is not None
        assert client.transport is not None
        client.transport.pause_reading()
        written = 0
        while server.may_write.is_set():
            server.transport.write(b"x" * 8192)
            written += 8192
        assert server.transport.get_write_buffer_size() <= vchan.HIGH_WATER + 8192
        await asyncio.sleep(0.05)
        assert not client.received
        client.transport.resume_reading()
        assert await client.until(written) == b"x" * written
        await asyncio.wait_for(server.may_write.wait(), 5)


async def test_close_sends_what_is_buffered_first(host: Host) -> None:
    octets = os.urandom(200_000)
    async with pair(host) as (server, client):
        assert server.transport is not None
        server.transport.write(octets)
        server.transport.close()
        server.transport.write(b"after the close")
        assert await asyncio.wait_for(client.lost, 10) is None
        assert client.received == octets


async def test_close_waits_for_a_peer_that_does_not_read_only_so_long(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vchan, "LINGER", 0.05)
    async with pair(host) as (server, client):
        assert server.transport is not None
        assert client.transport is not None
        client.transport.pause_reading()
        server.transport.write(b"x" * 20_000)
        server.transport.close()
        assert await asyncio.wait_for(server.lost, 5) is None
    (violation,) = host.violations
    assert "is not read" in str(violation)


async def test_a_killed_peer_is_noticed_after_what_it_sent(host: Host) -> None:
    with host.serving():
        guest = await host.raw_client()
        guest.write(b"last words")
        guest.kill()
        server = await host.session()
        assert await asyncio.wait_for(server.lost, 5) is None
        assert server.received == b"last words"


async def test_each_session_has_rings_of_its_own(host: Host) -> None:
    with host.serving():
        first = await host.raw_client()
        server = await host.session()
        assert server.transport is not None
        server.transport.write(b"for the first")
        first.kill()
        await asyncio.wait_for(server.lost, 5)
        second = await host.raw_client(server=2)
        assert second.read(100) == b""
        assert second.page is not first.page
        await host.session()
        second.close()


async def test_a_client_waits_for_its_server_and_for_the_next(host: Host) -> None:
    async with host.guest() as dial:
        waiting = dial()
        await asyncio.sleep(0.02)
        assert not waiting.done()
        with host.serving() as task:
            _, end = await asyncio.wait_for(waiting, 5)
            task.cancel()
            await asyncio.wait([task])
        await asyncio.wait_for(end.lost, 5)
        assert host.path not in host.store.nodes, "the nodes left with the server"
        waiting = dial()
        with host.serving():
            again, _ = await asyncio.wait_for(waiting, 5)
            again.abort()
            await again.closed


@pytest.mark.parametrize(("read", "written"), [(3, b""), (0, b"hello"), (3, b"hello")])
async def test_a_client_that_follows_at_once_gets_rings_of_its_own(
    host: Host, read: int, written: bytes
) -> None:
    with host.serving():
        first = await host.raw_client()
        server = await host.session()
        assert server.transport is not None
        server.transport.write(b"for the first")
        first.read(read)
        first.write(written)

        def open_client(domid: int, path: str) -> FakeVchan:
            first.kill()  # the server has not looked yet when the next one is there
            return host.hypervisor.machine(WEB01).open_client(domid, path)

        store = await Xenstore.connect([await host.store.socket(WEB01)])
        transport, end = await asyncio.wait_for(
            connect(End, 0, host.path, store, open_client=open_client), 10
        )
        following = await host.session()
        transport.write(b"second")
        assert await following.until(6) == b"second"
        assert (server.received, end.received) == (written, b"")
        transport.abort()
        await transport.closed
        store.close()


async def test_a_client_that_gives_up_at_any_moment_leaves_no_channel_behind(host: Host) -> None:
    with host.serving() as task:
        async with host.guest() as dial:
            for turns in range(40):
                dialling = dial()
                for _ in range(turns):
                    await asyncio.sleep(0)
                dialling.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    transport, _ = await dialling
                    transport.abort()
                    await transport.closed
        task.cancel()
        await asyncio.wait([task])
    assert not host.hypervisor.ends


async def test_stale_nodes_of_a_killed_broker_are_replaced(host: Host) -> None:
    killed = host.hypervisor.machine(0).open_server(WEB01, host.path, read_size=4096, write_size=4096)
    killed.kill()
    assert f"{host.path}/ring-ref" in host.store.nodes
    async with host.guest() as dial:
        waiting = dial()
        with host.serving():
            transport, _ = await asyncio.wait_for(waiting, 5)
            transport.abort()
            await transport.closed


async def _garbage_producer(guest: FakeVchan) -> None:
    guest.page.to_server.producer = 0x7FFF_FFFF


async def _garbage_consumer(guest: FakeVchan) -> None:
    guest.page.to_server.consumer = 0x8000_0001


async def _garbage_live(guest: FakeVchan) -> None:
    guest.page.client_live = 77


async def _waiting_again(guest: FakeVchan) -> None:
    guest.page.client_live = 2


@pytest.mark.parametrize("spoil", [_garbage_producer, _garbage_consumer, _garbage_live, _waiting_again])
async def test_garbage_in_the_shared_page_ends_the_session_and_is_told(host: Host, spoil: object) -> None:
    with host.serving():
        guest = await host.raw_client()
        server = await host.session()
        await spoil(guest)  # type: ignore[operator]
        guest.notify()
        assert isinstance(await asyncio.wait_for(server.lost, 5), PageSpoiled)
        await eventually(lambda: host.violations)
        guest.vanish()


async def test_garbage_before_there_is_a_session_is_told_too(host: Host) -> None:
    with host.serving():
        guest = await host.raw_client()
        guest.page.client_live = 77
        guest.notify()
        await eventually(lambda: host.violations)
        assert host.sessions.empty()
        guest.vanish()


async def test_who_misbehaves_has_to_wait_for_the_next_server(host: Host) -> None:
    with host.serving():
        guest = await host.raw_client()
        await host.session()
        await _garbage_live(guest)
        guest.notify()
        guest.vanish()
        await asyncio.sleep(0.3)
        assert host.hypervisor.opened == 1


async def test_sessions_that_end_at_once_come_ever_more_slowly(host: Host) -> None:
    with host.serving():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while True:
                    (await host.raw_client(server=host.hypervisor.opened + 1)).kill()
        assert 3 <= host.hypervisor.opened <= 6
    assert not host.violations


async def test_coming_and_going_is_told_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vchan, "LONGEST_PAUSE", 0.001)
    monkeypatch.setattr(vchan, "MANY_BRIEF", 3)
    with host.serving():
        for server in range(1, 6):
            guest = await host.raw_client(server=server)
            assert len(host.violations) == (server > 3)
            await host.session()
            guest.kill()
        await eventually(lambda: host.hypervisor.opened == 6)
    (violation,) = host.violations
    assert "comes and goes" in str(violation)


async def test_notifications_that_come_along_with_data_delay_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vchan, "IDLE_RATE", 0.01)
    monkeypatch.setattr(vchan, "IDLE_BURST", 3.0)
    with host.serving():
        guest = await host.raw_client()
        server = await host.session()
        for count in range(1, 51):
            guest.write(b"x")
            assert await server.until(count) == b"x" * count
            before = guest.page.server.taken  # type: ignore[union-attr]
            guest.notify()
            await eventually(lambda taken=before: guest.page.server.taken > taken)  # type: ignore[misc]
        guest.kill()
        await asyncio.wait_for(server.lost, 5)
    assert not host.violations


@pytest.mark.parametrize(("rate", "burst"), [("RATE", "BURST"), ("IDLE_RATE", "IDLE_BURST")])
async def test_a_flood_of_notifications_costs_a_bounded_number_of_looks(
    host: Host, monkeypatch: pytest.MonkeyPatch, rate: str, burst: str
) -> None:
    monkeypatch.setattr(vchan, rate, 20.0)
    monkeypatch.setattr(vchan, burst, 50.0)
    loop = asyncio.get_running_loop()
    with host.serving(), patch.object(loop, "add_reader", wraps=loop.add_reader) as looks_again:
        guest = await host.raw_client()
        server = await host.session()
        end = loop.time() + 0.3
        while loop.time() < end:
            guest.notify()
            await asyncio.sleep(0)
        assert guest.page.server is not None
        assert guest.page.server.taken <= 50 + 0.4 * 20
        assert looks_again.call_count <= 20
        assert not server.lost.done()
        assert [str(each) for each in host.violations] == [
            "more than 20 notifications a second say nothing"
        ] * (rate == "IDLE_RATE")
        guest.write(b"still there")
        assert await server.until(11) == b"still there"
        guest.kill()
        await asyncio.wait_for(server.lost, 5)


async def test_a_domain_that_sends_all_the_time_gets_its_share_and_loses_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vchan, "SHARE", 0.02)
    monkeypatch.setattr(vchan, "SHARE_BURST", 0.001)
    keep = End.data_received

    def work(end: End, data: bytes) -> None:
        end_of_work = time.thread_time() + 0.005
        while time.thread_time() < end_of_work:
            pass
        keep(end, data)

    monkeypatch.setattr(End, "data_received", work)
    with host.serving():
        guest = await host.raw_client()
        server = await host.session()
        began = time.monotonic()
        for count in range(1, 4):
            guest.write(b"x" * 100)
            guest.notify()
            assert await server.until(100 * count) == b"x" * 100 * count
        assert time.monotonic() - began > 0.4, "0.2 s after the first and 0.25 s after the second"
        (violation,) = host.violations
        assert "more than 2% of a processor" in str(violation)
        guest.kill()
        await asyncio.wait_for(server.lost, 5)


async def test_a_server_that_cannot_be_opened_is_tried_again(host: Host) -> None:
    host.store.nodes.pop("/local/domain/1")
    with host.serving():
        await asyncio.sleep(0.05)
        host.store.create_domain("other", uuid.UUID(int=2))
        host.store.toolstack_write("/local/domain/1", b"")
        guest = await host.raw_client()
        await host.session()
        guest.close()


def test_the_longest_path_fits_into_the_librarys_buffer() -> None:
    assert len(link_path(32751, 32751)) <= 49
