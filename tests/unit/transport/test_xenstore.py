"""The client of xenstore against a xenstored that behaves; tests/xen has the real one."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.xenstored import FakeXenstored
from tests.support.directories import short_directory
from vmtoken.transport.xenstore import Xenstore
from vmtoken.transport.xenstore_wire import (
    MAX_ANSWER,
    MAX_PAYLOAD,
    Access,
    Decoder,
    Message,
    MessageType,
    Permission,
    XenstoreProtocolError,
    failure,
    names,
)


@pytest.fixture
async def store() -> AsyncIterator[Xenstore]:
    daemon = FakeXenstored(short_directory())
    store = await Xenstore.connect([await daemon.socket()])
    yield store
    store.close()
    await daemon.close()


async def test_what_is_written_is_read(store: Xenstore) -> None:
    await store.write("/test/a/b", b"\x00value without an end")
    assert await store.read("/test/a/b") == b"\x00value without an end"
    assert await store.directory("/test") == ["a"]
    assert await store.directory("/test/a/b") == []
    await store.make_directory("/test/empty")
    assert await store.read("/test/empty") == b""
    await store.remove("/test/a")
    assert await store.directory("/test") == ["empty"]
    assert not await store.exists("/test/a/b")


async def test_errors_are_those_of_the_operating_system(store: Xenstore) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await store.read("/test/nothing")
    assert caught.value.filename == "/test/nothing"
    with pytest.raises(OSError, match="Invalid argument"):
        await store.read("/no//path")
    await store.remove("/test/nothing")
    assert "tool" in await store.directory("/"), "an error leaves the connection usable"


async def test_a_list_longer_than_a_message_comes_in_parts(store: Xenstore) -> None:
    children = [f"child-{number:04}" for number in range(1000)]
    for child in children:
        await store.make_directory(f"/test/{child}")
    assert sorted(await store.directory("/test")) == children


async def test_permissions_are_set_and_read(store: Xenstore) -> None:
    await store.write("/test/leaf", b"1")
    wanted = [Access(Permission.NONE, 0), Access(Permission.READ, 7)]
    await store.set_permissions("/test/leaf", wanted)
    assert await store.permissions("/test/leaf") == wanted


async def test_a_watch_fires_at_once_and_with_every_change(store: Xenstore) -> None:
    fired: asyncio.Queue[str] = asyncio.Queue()
    token = await store.watch("/test/watched", fired.put_nowait)
    assert await asyncio.wait_for(fired.get(), 5) == "/test/watched"
    await store.write("/test/watched/below", b"1")
    assert await asyncio.wait_for(fired.get(), 5) == "/test/watched/below"
    await store.remove("/test/watched")
    assert await asyncio.wait_for(fired.get(), 5) == "/test/watched"
    store.unwatch("/test/watched", token)
    await store.write("/test/watched", b"2")
    await store.read("/test/watched")
    assert fired.empty()


async def test_a_caller_who_gives_up_does_not_upset_the_next(store: Xenstore) -> None:
    await store.write("/test/a", b"a")
    for _ in range(20):
        task = asyncio.create_task(store.read("/test/a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        assert await store.directory("/test") == ["a"]


async def test_requests_made_at_once_get_their_own_answers(store: Xenstore) -> None:
    for number in range(50):
        await store.write(f"/test/{number}", str(number).encode())
    values = await asyncio.gather(*(store.read(f"/test/{number}") for number in range(50)))
    assert values == [str(number).encode() for number in range(50)]


async def test_a_request_too_long_for_xenstore_is_not_sent(store: Xenstore) -> None:
    with pytest.raises(OSError, match="too long"):
        await store.write("/test/a", b"x" * MAX_PAYLOAD)
    assert not await store.exists("/test/a")


async def test_nothing_serves_is_said_with_every_place(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"a: No such file.*; .*b: No such file"):
        await Xenstore.connect([tmp_path / "a", tmp_path / "b"])


class Device:
    """The other end of a connection, by hand."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        self.store = Xenstore(ours.detach())
        self.peer.setblocking(False)

    async def request(self) -> Message:
        octets = await asyncio.get_running_loop().sock_recv(self.peer, 8192)
        (message,) = Decoder().feed(octets)
        return message

    def send(self, kind: int, request_id: int, payload: bytes) -> None:
        self.peer.send(Message(kind, request_id, payload).encode())


@pytest.fixture
async def device() -> AsyncIterator[Device]:
    device = Device()
    yield device
    device.store.close()
    device.peer.close()


async def test_the_kernels_answer_to_a_watch_has_request_number_zero(device: Device) -> None:
    fired: list[str] = []
    watching = asyncio.create_task(device.store.watch("path", fired.append))
    request = await device.request()
    device.send(MessageType.WATCH_EVENT, 0, request.payload)  # may come before the answer
    device.send(MessageType.WATCH, 0, b"OK\0")
    await asyncio.wait_for(watching, 5)
    assert fired == ["path"]


@pytest.mark.parametrize(
    "octets",
    [
        struct.pack("=IIII", MessageType.READ, 1, 0, MAX_ANSWER + 1),
        Message(MessageType.READ, 99, b"nobody asked").encode(),
        Message(MessageType.DIRECTORY, 1, b"").encode(),
        Message(MessageType.ERROR, 1, b"EWHATEVER\0").encode(),
        b"",
    ],
    ids=["too long", "not asked", "other type", "unknown error", "end"],
)
async def test_what_is_no_answer_is_an_error(device: Device, octets: bytes) -> None:
    reading = asyncio.create_task(device.store.read("path"))
    await device.request()
    if octets:
        device.peer.send(octets)
    else:
        device.peer.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError, match="xenstore"):
        await asyncio.wait_for(reading, 5)


async def test_a_lost_connection_is_told_once_and_then_to_everybody(device: Device) -> None:
    device.peer.close()
    await asyncio.wait_for(device.store.lost, 5)
    with pytest.raises(ConnectionError):
        await device.store.read("path")


def test_messages_come_out_whole_however_they_come_in() -> None:
    messages = [Message(1, 2, b"abc"), Message(15, 0, names("a", "b")), Message(11, 3, b"")]
    octets = b"".join(message.encode() for message in messages)
    decoder = Decoder()
    assert [each for octet in octets for each in decoder.feed(bytes([octet]))] == messages
    assert list(Decoder().feed(octets + b"tail")) == messages


def test_an_error_is_named_as_in_errno() -> None:
    assert isinstance(failure(b"EACCES\0", "p"), PermissionError)
    assert isinstance(failure(b"ENOENT\0", "p"), FileNotFoundError)
    assert isinstance(failure(b"OK\0", "p"), XenstoreProtocolError)


def test_a_name_with_a_zero_octet_is_refused() -> None:
    with pytest.raises(ValueError, match="zero"):
        names("a\0b")
