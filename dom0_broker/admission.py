"""Who gets a token next: a queue a token, first come first served within a VM, turns between VMs."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vmtoken.clock import Clock
from vmtoken.errors import QuotaExceeded, ShuttingDown, TokenBusy, VmTokenError

_SMOOTHING = 0.2
"""Weight of the latest handshake in the average on which retry hints rest."""

_FIRST_GUESS = 0.05
"""Seconds that a handshake holds a token, as long as none was seen."""


class Admission:
    """The slot of one token. Used from the event loop only."""

    def __init__(
        self, token: str, *, capacity: int, clock: Clock, healthy: Callable[[], bool] = lambda: True
    ) -> None:
        """While a token is not `healthy`, those who wait for others too are left to the others."""
        self.token = token
        self._capacity = capacity
        self._clock = clock
        self._healthy = healthy
        self._held_since: float | None = None
        self._free_since = clock.monotonic()
        self._average = _FIRST_GUESS
        self._queues: OrderedDict[uuid.UUID, deque[_Turn]] = OrderedDict()
        self._closed: VmTokenError | None = None

    @property
    def busy(self) -> bool:
        """True while somebody holds the slot."""
        return self._held_since is not None

    @property
    def waiting(self) -> int:
        """How many wait, here alone or elsewhere too."""
        return sum(map(len, self._queues.values()))

    @property
    def load(self) -> int:
        """How many handshakes one that comes now would find before it."""
        return self.waiting + self.busy

    @property
    def expected_wait(self) -> float:
        """Seconds until one that comes now has the slot, as far as one can tell."""
        return self._average * (self.waiting + 1)

    async def acquire(self, vm: uuid.UUID, deadline: float) -> None:
        """Wait for the slot until `deadline` (loop time). Raises `TokenBusy` or `ShuttingDown`."""
        await first_free([self], vm, deadline)

    def release(self) -> None:
        """Give the slot to the next VM in turn."""
        assert self._held_since is not None, "released once for each acquire"
        held = self._clock.monotonic() - self._held_since
        self._average += _SMOOTHING * (held - self._average)
        self._pass_on()

    def close(self, error: VmTokenError | None = None) -> None:
        """Refuse everybody who waits here alone, and everybody who comes, for a reason."""
        self._closed = error or _shutting_down()
        for turn in self._turns():
            turn.slots.remove(self)
            if not turn.slots and not turn.granted.done():
                turn.granted.set_exception(self._closed)
        self._queues.clear()

    def _take(self) -> None:
        self._held_since = self._clock.monotonic()

    def _pass_on(self) -> None:
        self._held_since, self._free_since = None, self._clock.monotonic()
        if not self._healthy():
            self._send_elsewhere()
        while self._queues:
            vm, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._queues[vm] = queue
            if not turn.granted.done():
                self._take()
                turn.grant(self)
                return

    def _send_elsewhere(self) -> None:
        for turn in self._turns():
            if len(turn.slots) > 1:
                turn.slots.remove(self)
                self._remove(turn)

    def _turns(self) -> list[_Turn]:
        return [turn for queue in self._queues.values() for turn in queue]

    def _add(self, turn: _Turn) -> None:
        self._queues.setdefault(turn.vm, deque()).append(turn)

    def _remove(self, turn: _Turn) -> None:
        queue = self._queues.get(turn.vm)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._queues[turn.vm]


async def first_free(slots: Sequence[Admission], vm: uuid.UUID, deadline: float) -> Admission:
    """Wait for any one of several slots until `deadline` (loop time). Raises `TokenBusy` or `ShuttingDown`.

    Of those that are free the one is taken that has been so for the longest. One who waits stands in every
    queue, and is served where its turn comes first.
    """
    open_slots = [slot for slot in slots if slot._closed is None]
    if not open_slots:
        assert slots[0]._closed is not None
        raise slots[0]._closed
    free = [slot for slot in open_slots if not slot.busy]
    if free:
        slot = min(free, key=lambda each: each._free_since)
        slot._take()
        return slot
    roomy = [slot for slot in open_slots if slot.waiting < slot._capacity]
    if not roomy:
        raise _busy(open_slots, f"has {open_slots[0]._capacity} handshakes waiting already")
    return await _Turn(vm, roomy).wait(deadline)


class _Turn:
    """One who waits, in the queues of one or several slots."""

    def __init__(self, vm: uuid.UUID, slots: list[Admission]) -> None:
        self.vm = vm
        self.slots = slots
        self.granted: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()

    async def wait(self, deadline: float) -> Admission:
        slots = list(self.slots)
        for slot in slots:
            slot._add(self)
        try:
            async with asyncio.timeout_at(deadline):
                return await self.granted
        except TimeoutError:
            self._give_up()
            raise _busy(slots, "was not free before the deadline of this handshake") from None
        except BaseException:
            self._give_up()
            raise

    def grant(self, slot: Admission) -> None:
        self._leave()
        self.granted.set_result(slot)

    def _give_up(self) -> None:
        """Late or cancelled; a slot that was granted in the same moment goes on to the next."""
        self._leave()
        if self.granted.done() and not self.granted.cancelled() and self.granted.exception() is None:
            self.granted.result()._pass_on()

    def _leave(self) -> None:
        for slot in self.slots:
            slot._remove(self)


class Quotas:
    """How many handshakes each VM has open or waiting, over all tokens."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: Counter[uuid.UUID] = Counter()
        self.idle = asyncio.Event()
        """Set while no VM has any."""
        self.idle.set()

    def open(self, vm: uuid.UUID) -> int:
        """How many the VM has."""
        return self._open[vm]

    @contextmanager
    def one_more(self, vm: uuid.UUID) -> Iterator[None]:
        """Count one handshake while the block runs. Raises `QuotaExceeded`."""
        if self._open[vm] >= self._limit:
            raise QuotaExceeded(
                f"This VM has {self._limit} handshakes open or waiting, as many as it may have.",
                retry_after=1.0,
            )
        self._open[vm] += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._open[vm] -= 1
            if not self._open[vm]:
                del self._open[vm]
            if not self._open:
                self.idle.set()


class Pace:
    """How fast one VM may ask: `rate` a second, and as many again in a burst; a faster one is slowed down."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._credit = rate
        self._last = asyncio.get_running_loop().time()

    async def keep(self) -> None:
        """Wait until one more call or step is due; at once for everybody who does not flood us."""
        now = asyncio.get_running_loop().time()
        self._credit = min(self._rate, self._credit + (now - self._last) * self._rate) - 1
        self._last = now
        if self._credit < 0:
            await asyncio.sleep(-self._credit / self._rate)


def _busy(slots: Sequence[Admission], why: str) -> TokenBusy:
    names = " or ".join(f"'{slot.token}'" for slot in slots)
    nearest = min(slots, key=lambda slot: slot.expected_wait)
    hint = round(nearest.expected_wait, 3)
    return TokenBusy(f"Token {names} {why}.", retry_after=hint, waiting=str(nearest.waiting))


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("The broker is stopping and begins no more handshakes.", retry_after=5.0)
