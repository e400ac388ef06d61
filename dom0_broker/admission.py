"""Who gets a token next: a queue a token, first come first served within a VM, turns between VMs."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from vmtoken.clock import Clock
from vmtoken.errors import QuotaExceeded, ShuttingDown, TokenBusy

_SMOOTHING = 0.2
"""Weight of the latest handshake in the average on which retry hints rest."""

_FIRST_GUESS = 0.05
"""Seconds that a handshake holds a token, as long as none was seen."""


class Admission:
    """The slot of one token. Used from the event loop only."""

    def __init__(self, token: str, *, capacity: int, clock: Clock) -> None:
        self._token = token
        self._capacity = capacity
        self._clock = clock
        self._held_since: float | None = None
        self._average = _FIRST_GUESS
        self._queues: OrderedDict[uuid.UUID, deque[asyncio.Future[None]]] = OrderedDict()
        self._closed = False

    @property
    def busy(self) -> bool:
        """True while somebody holds the slot."""
        return self._held_since is not None

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._queues.values()))

    async def acquire(self, vm: uuid.UUID, deadline: float) -> None:
        """Wait for the slot until `deadline` (loop time). Raises `TokenBusy` or `ShuttingDown`."""
        self._check_open()
        if self._held_since is None:
            self._held_since = self._clock.monotonic()
            return
        if self.waiting >= self._capacity:
            raise self._busy_error(f"has {self._capacity} handshakes waiting already")
        turn = asyncio.get_running_loop().create_future()
        self._queues.setdefault(vm, deque()).append(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except TimeoutError:
            self._leave(vm, turn)
            raise self._busy_error("was not free before the deadline of this handshake") from None
        except BaseException:
            self._leave(vm, turn)
            raise

    def release(self) -> None:
        """Give the slot to the next VM in turn."""
        assert self._held_since is not None, "released once for each acquire"
        held = self._clock.monotonic() - self._held_since
        self._average += _SMOOTHING * (held - self._average)
        self._held_since = None
        self._pass_on()

    def close(self) -> None:
        """Refuse everybody who waits, and everybody who comes."""
        self._closed = True
        for queue in self._queues.values():
            for turn in queue:
                if not turn.done():
                    turn.set_exception(_shutting_down())
        self._queues.clear()

    def _pass_on(self) -> None:
        while self._queues:
            vm, queue = self._queues.popitem(last=False)
            turn = queue.popleft()
            if queue:
                self._queues[vm] = queue
            if not turn.done():
                self._held_since = self._clock.monotonic()
                turn.set_result(None)
                return

    def _leave(self, vm: uuid.UUID, turn: asyncio.Future[None]) -> None:
        """A waiter is late or cancelled; a slot that it got in the same moment goes on to the next."""
        queue = self._queues.get(vm)
        if queue is not None and turn in queue:
            queue.remove(turn)
            if not queue:
                del self._queues[vm]
        elif turn.done() and not turn.cancelled() and turn.exception() is None:
            self._held_since = None
            self._pass_on()

    def _check_open(self) -> None:
        if self._closed:
            raise _shutting_down()

    def _busy_error(self, why: str) -> TokenBusy:
        hint = round(self._average * (self.waiting + 1), 3)
        return TokenBusy(f"Token '{self._token}' {why}.", retry_after=hint, waiting=str(self.waiting))


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


def _shutting_down() -> ShuttingDown:
    return ShuttingDown("The broker is stopping and begins no more handshakes.", retry_after=5.0)
