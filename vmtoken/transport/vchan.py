"""Links over Xen's vchan as asyncio transports: a server for one domain, and a client.

The peer is root in a machine of its own and owns half of the shared page. So nothing waits for it: reads and
writes take what there is, buffers are bounded, notifications are taken at a bounded rate, and what the page
says is checked. What the channel cannot tell is the end of a whole domain: that is for a watch in xenstore,
and for the heartbeat of the protocol above (`vmtoken.rpc.channel`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from vmtoken.transport import libxenvchan
from vmtoken.transport.libxenvchan import Vchan, VchanClosed, VchanState
from vmtoken.transport.xenstore import Xenstore

log = logging.getLogger(__name__)

READ_RING: Final = 32768
WRITE_RING: Final = 16384
"""Octets, seen from the broker. What fits into the ring crosses with one notification, and that is what time
goes into: in the lab 16 KiB there and back took 20 ms with rings of 4 KiB, 4 ms with 16 KiB, 0.5 ms with 64
KiB, and 4 KiB took the same with all of them. A flight of a server has 3 to 5 KiB, with post-quantum
certificates up to 20 KiB; what goes back is smaller. With the shared page a server grants 13 pages: 78 VMs
under the kernel's limit of 1024."""

HIGH_WATER: Final = 65536
LOW_WATER: Final = 16384
"""Octets that wait for room in the ring: above one the writer is told to pause, below the other to go on."""

LINGER: Final = 5.0
"""Seconds that a peer gets to read what was written before a close."""

SHARE: Final = 0.05
SHARE_BURST: Final = 0.25
"""How much of a processor reading from one VM may take, and seconds of it at once. What the VM writes beyond
that waits in the ring. A read takes some 10 microseconds, and a handshake three reads, so a VM at its
`limits.vm_rate` of 1000 steps a second needs a quarter of this; emulated, where a read takes a millisecond,
a VM needs as much for 5 handshakes a second."""

RATE: Final = 5000.0
BURST: Final = 500.0
"""Notifications a second, and at once. A VM at its `limits.vm_rate` of 1000 steps a second needs three for
each; one that sends more is looked at less often, and what it writes meanwhile waits in the ring."""

IDLE_RATE: Final = 10.0
IDLE_BURST: Final = 100.0
"""The same for notifications that nothing comes with. What passes through a ring allows two: an end that
behaves sends one for it, and another now and then while its data are being read. Each look takes time from
the others, emulated some 2 ms: with 200 a second their calls took 1.7 times as long, with 20 1.1 times."""

REST: Final = 0.005
"""Seconds at least until a VM that sent too many notifications is looked at again."""

LONGEST_PAUSE: Final = 5.0
"""Seconds until a new server for a domain whose sessions end at once: each costs xenstored ten requests."""

STEADY: Final = 10.0
"""Seconds after which a session counts as one that lasted."""

MANY_BRIEF: Final = 10
"""Sessions in a row that last for less than that: a violation."""

RETRY: Final = 1.0
"""Seconds after which a client tries again without an event: the server may be stale, or the earlier client
still there."""

_CHUNK: Final = 65536

OpenServer = Callable[..., Vchan]
OpenClient = Callable[[int, str], Vchan]
End = TypeVar("End", bound=asyncio.Protocol)


@dataclass(frozen=True, slots=True)
class RingSizes:
    """Octets of the two rings, seen from the server."""

    read: int = READ_RING
    write: int = WRITE_RING


class VchanViolation(ConnectionError):
    """The peer does what none does that means well."""


class PageSpoiled(VchanViolation):
    """The one that ends a session at once, and has the next one wait for long."""

    def __init__(self) -> None:
        super().__init__("the shared page holds what no vchan library writes")


Violated = Callable[[VchanViolation], None]
"""Is told what the peer does, of each kind once a session."""


def on_xen() -> bool:
    """Whether this kernel runs on Xen and knows it, as dom0 or as a guest."""
    try:
        return Path("/sys/hypervisor/type").read_text().strip() == "xen"
    except OSError:
        return False


def links_path(broker_domid: int) -> str:
    """Where in xenstore the links of a broker are: in its domain's `data`, where it may write."""
    return f"/local/domain/{broker_domid}/data/vmtoken"


def link_path(broker_domid: int, vm_domid: int) -> str:
    """Where the broker serves the agent of a domain; 39 octets at most."""
    return f"{links_path(broker_domid)}/{vm_domid}"


class VchanTransport(asyncio.Transport):
    """One session over a vchan. `domid` is the peer, as the hypervisor enforces it; `begun` is
    done after `connection_made`, `closed` when the channel is given back. There is no half-close."""

    def __init__(
        self,
        vchan: Vchan,
        protocol: asyncio.BaseProtocol,
        domid: int,
        violated: Violated = lambda _: None,
        share: float = 1.0,
    ) -> None:
        """`share` is how much of a processor reading may take."""
        super().__init__({"domid": domid})
        assert isinstance(protocol, asyncio.Protocol)
        self._loop = asyncio.get_running_loop()
        self._vchan = vchan
        self._protocol: asyncio.Protocol = protocol
        self._violated = violated
        self._notifications = _Notifications(vchan, self._notified, violated)
        self._buffer = bytearray()
        self._share = _Allowance(share, SHARE_BURST, self._loop.time())
        self._share_told = False
        self._next_turn: asyncio.Handle | None = None
        self._reading = True
        self._writer_paused = False
        self._closing = False
        self._lost = False
        self._lingering: asyncio.TimerHandle | None = None
        self.spoiled: PageSpoiled | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.begun: asyncio.Future[None] = self._loop.create_future()
        self._loop.call_soon(self._begin)

    # What asyncio asks of a transport.

    def is_reading(self) -> bool:
        """Whether data is delivered."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Leave data in the ring."""
        self._reading = False

    def resume_reading(self) -> None:
        """Deliver data again."""
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._pull)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send what fits into the ring now and the rest when there is room."""
        if self._closing or self._lost or not data:
            return
        self._buffer += data
        if len(self._buffer) == len(data):
            self._push()
        if len(self._buffer) > HIGH_WATER and not self._writer_paused:
            self._writer_paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Octets that wait for room in the ring."""
        return len(self._buffer)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Low and high water mark."""
        return LOW_WATER, HIGH_WATER

    def can_write_eof(self) -> bool:
        """A vchan has no half-close."""
        return False

    def is_closing(self) -> bool:
        """Whether it is closed or about to be."""
        return self._closing

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Whom data goes to."""
        return self._protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let data go to another."""
        assert isinstance(protocol, asyncio.Protocol)
        self._protocol = protocol

    def close(self) -> None:
        """Send what is buffered, for `LINGER` seconds at most, then close."""
        if self._closing:
            return
        self._closing = True
        if self._buffer:
            self._lingering = self._loop.call_later(LINGER, self._lingered)
        else:
            self._loop.call_soon(self._end, None)

    def abort(self) -> None:
        """Close now."""
        self._closing = True
        self._buffer.clear()
        self._loop.call_soon(self._end, None)

    async def given_back(self) -> None:
        """Wait until the channel is closed, even while we are cancelled."""
        await _finished(self.closed)

    def _lingered(self) -> None:
        self._violated(VchanViolation(f"what was sent is not read within {LINGER:.0f} s of the end"))
        self.abort()

    # What the channel brings.

    def _begin(self) -> None:
        self._protocol.connection_made(self)
        if not self.begun.done():
            self.begun.set_result(None)
        if not self._lost:
            self._notifications.start()
            self._pull()

    def _notified(self) -> None:
        self._push()
        self._pull()

    def _push(self) -> None:
        """Write until nothing is left, or nothing fits and the peer has been asked to tell of room."""
        try:
            while self._buffer and (count := self._vchan.write(self._buffer[:_CHUNK])):
                del self._buffer[:count]
                self._notifications.allow()
        except VchanClosed:
            self._buffer.clear()  # what it sent may still be there to be read
        if self._closing and not self._buffer:
            self._end(None)
        elif self._writer_paused and len(self._buffer) <= LOW_WATER:
            self._writer_paused = False
            self._protocol.resume_writing()

    def _pull(self) -> None:
        """Read once, and again after others had their turn, until nothing comes: that arms the event."""
        if self._lost or self._next_turn is not None:
            return
        began, data = time.thread_time(), b""
        if self.is_reading():
            try:
                data = self._vchan.read(_CHUNK)
            except VchanClosed:
                self._end(None)
                return
        if data:
            self._notifications.allow()
            self._protocol.data_received(data)
            self._next_turn = self._loop.call_later(self._spent_since(began), self._take_turn)
        else:
            self._look()

    def _take_turn(self) -> None:
        self._next_turn = None
        self._pull()

    def _spent_since(self, began: float) -> float:
        """Take it from the peer's share; seconds until some of that is left."""
        self._share.grow(self._loop.time())
        self._share.left -= time.thread_time() - began
        wait = self._share.wait_for(0.0)
        if wait and not self._share_told:
            self._share_told = True
            because = f"what it sends takes more than {self._share.rate:.0%} of a processor to read"
            self._violated(VchanViolation(because))
        return wait

    def _look(self) -> None:
        """Nothing comes, or nobody reads: is the peer still there, and does it behave?"""
        state = self._vchan.state
        if state in (VchanState.BROKEN, VchanState.WAITING):  # it was open, so it cannot be waiting
            self.spoiled = PageSpoiled()
            self._end(self.spoiled)
        elif state is VchanState.CLOSED and (self._closing or self._reading):
            self._end(None)

    def _end(self, reason: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._buffer.clear()
        self._notifications.stop()
        for timer in (self._lingering, self._next_turn):
            if timer is not None:
                timer.cancel()
        self._loop.call_soon(self._protocol.connection_lost, reason)
        self._loop.run_in_executor(_executor, self._vchan.close).add_done_callback(self._given_back)

    def _given_back(self, closing: asyncio.Future[None]) -> None:
        if not self.closed.done():
            self.closed.set_result(closing.result())


async def serve(
    domid: int,
    path: str,
    protocol: Callable[[], asyncio.Protocol],
    *,
    sizes: RingSizes,
    violated: Violated,
    open_server: OpenServer = libxenvchan.open_server,
) -> None:
    """Keep a server open for one domain until cancelled: session after session, each on rings of its own.

    A used ring holds what the earlier client did not read, and indexes that it chose: a session gets new
    ones. When this returns by cancellation the channel is closed and its nodes are gone.
    """
    clock, pause, brief = asyncio.get_running_loop().time, _Pause(), 0
    while True:
        began = clock()
        try:
            vchan = await _opened(open_server, domid, path, read_size=sizes.read, write_size=sizes.write)
            await _session(vchan, protocol, domid, violated)
        except PageSpoiled as violation:
            violated(violation)
            pause.lengthen_to_the_longest()
        except OSError as error:
            log.warning("vchan cannot be served", extra={"domid": domid, "because": str(error)})
        else:
            brief = brief + 1 if clock() - began < STEADY else 0
            if brief == MANY_BRIEF:
                violated(VchanViolation(f"it comes and goes: no session of {brief} lasts {STEADY:.0f} s"))
        await asyncio.sleep(pause.after(clock() - began))


async def connect(
    protocol: Callable[[], End],
    domid: int,
    path: str,
    store: Xenstore,
    *,
    open_client: OpenClient = libxenvchan.open_client,
) -> tuple[VchanTransport, End]:
    """Connect to what domain `domid` serves at a path, as soon as it does. Raises `OSError`."""
    changed = asyncio.Event()
    token = await store.watch(path, lambda _: changed.set())
    try:
        while True:
            changed.clear()
            try:
                return await _begun(await _opened_unused(open_client, domid, path), protocol(), domid)
            except OSError as error:
                log.debug("no vchan yet", extra={"domid": domid, "because": str(error)})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY):
                    await changed.wait()
            if store.lost.done():
                raise ConnectionError("xenstore is lost")
    finally:
        store.unwatch(path, token)


async def _opened_unused(open_client: OpenClient, domid: int, path: str) -> Vchan:
    """A client whose rings are those of no earlier session. Raises `OSError`.

    The library lets a client in that comes before the server has seen the one before leave. It would read
    what was written for that one, and the server would take both for one.
    """
    vchan = await _opened(open_client, domid, path)
    if not vchan.used:
        return vchan
    await asyncio.shield(asyncio.get_running_loop().run_in_executor(_executor, vchan.close))
    raise ConnectionRefusedError("the server has not seen yet that the client before has left")


async def _begun(vchan: Vchan, end: End, domid: int) -> tuple[VchanTransport, End]:
    """A transport that has called `connection_made`; cancelled, it leaves no channel behind."""
    transport = VchanTransport(vchan, end, domid)
    try:
        await asyncio.shield(transport.begun)
    except asyncio.CancelledError:
        transport.abort()
        await transport.given_back()
        raise
    return transport, end


async def _session(
    vchan: Vchan, protocol: Callable[[], asyncio.Protocol], domid: int, violated: Violated
) -> None:
    """One client, from its coming to its end. Raises `PageSpoiled`."""
    try:
        await _client_came(vchan, violated)
    except BaseException:
        await _finished(asyncio.get_running_loop().run_in_executor(_executor, vchan.close))
        raise
    transport = VchanTransport(vchan, protocol(), domid, violated, SHARE)
    try:
        await asyncio.shield(transport.closed)
    except asyncio.CancelledError:
        transport.abort()
        await transport.given_back()
        raise
    if transport.spoiled is not None:
        raise transport.spoiled


async def _client_came(vchan: Vchan, violated: Violated) -> None:
    came: asyncio.Future[VchanState] = asyncio.get_running_loop().create_future()

    def look() -> None:
        if vchan.state is not VchanState.WAITING and not came.done():
            came.set_result(vchan.state)

    notifications = _Notifications(vchan, look, violated)
    notifications.start()
    try:
        look()
        if await came is VchanState.BROKEN:
            raise PageSpoiled
    finally:
        notifications.stop()


async def _opened(function: Callable[..., Vchan], *arguments: Any, **sizes: int) -> Vchan:
    """Call what waits for xenstored in the thread for that; cancelled, it leaves no channel behind."""
    loop = asyncio.get_running_loop()
    opening = loop.run_in_executor(_executor, functools.partial(function, *arguments, **sizes))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await _finished(opening)
        if opening.exception() is None:
            await _finished(loop.run_in_executor(_executor, opening.result().close))
        raise


async def _finished(future: asyncio.Future[Any]) -> None:
    """Wait for the end of something even while we are cancelled."""
    while not future.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([future])


class _Pause:
    """Seconds before the next server, so that a guest cannot keep xenstored busy by coming and going."""

    def __init__(self) -> None:
        self._next = 0.0

    def after(self, lasted: float) -> float:
        """The pause after a session that lasted so long; doubles while they end at once."""
        if lasted >= STEADY:
            self._next = 0.0
        pause, self._next = self._next, min(max(2 * self._next, 0.05), LONGEST_PAUSE)
        return pause

    def lengthen_to_the_longest(self) -> None:
        """The peer misbehaves."""
        self._next = LONGEST_PAUSE


class _Allowance:
    """So many at once, and so many a second."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self._burst = burst
        self._since = now
        self.left = burst

    def grow(self, now: float) -> None:
        """For the time since the last time."""
        self.left = min(self.left + (now - self._since) * self.rate, self._burst)
        self._since = now

    def wait_for(self, amount: float) -> float:
        """Seconds until so much is left."""
        return max(amount - self.left, 0.0) / self.rate


class _Notifications:
    """Calls `notified` for the notifications of a channel, at `RATE` and `IDLE_RATE` at most."""

    def __init__(self, vchan: Vchan, notified: Callable[[], None], violated: Violated) -> None:
        self._loop = asyncio.get_running_loop()
        self._vchan = vchan
        self._notified = notified
        self._violated = violated
        self._told = False
        self._all = _Allowance(RATE, BURST, self._loop.time())
        self._idle = _Allowance(IDLE_RATE, IDLE_BURST, self._loop.time())
        self._resting: asyncio.TimerHandle | None = None
        self._running = False

    def start(self) -> None:
        self._running = True
        self._loop.add_reader(self._vchan.event, self._readable)

    def stop(self) -> None:
        if self._running:
            self._running = False
            self._loop.remove_reader(self._vchan.event)
        if self._resting is not None:
            self._resting.cancel()

    def allow(self) -> None:
        """Something has passed."""
        self._idle.left += 2

    def _readable(self) -> None:
        now = self._loop.time()
        self._all.grow(now)
        self._idle.grow(now)
        if wait := max(self._all.wait_for(1), self._idle.wait_for(1)):
            self._rest(max(wait, REST))
            return
        self._all.left -= 1
        self._idle.left -= 1
        self._vchan.acknowledge()
        self._notified()

    def _rest(self, seconds: float) -> None:
        self._loop.remove_reader(self._vchan.event)
        self._resting = self._loop.call_later(seconds, self.start)
        if self._idle.wait_for(1) and not self._told:
            self._told = True
            because = f"more than {IDLE_RATE:.0f} notifications a second say nothing"
            self._violated(VchanViolation(because))


_executor = ThreadPoolExecutor(1, "vchan")
"""Opens and closes channels one after another: the library waits for xenstored, and the event loop must not.
A channel is closed before the next one is opened, so that it does not remove the nodes of that."""
