"""One thread a token: a card is asked one thing at a time, and a card that hangs stalls nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from vmtoken.clock import Clock
from vmtoken.errors import PinBlocked, PinMissing, PinRejected, TokenUnavailable, VmTokenError
from vmtoken.token import HandshakeFailed, HandshakeToken, TokenDescription

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_PIN_PROBLEMS = (PinRejected, PinBlocked, PinMissing)

_FIRST_PAUSE = 0.25
_LONGEST_PAUSE = 30.0
"""Seconds before a card that could not be opened is tried again: doubled each time."""


class TokenWorker:
    """Runs jobs on a token, in its own thread, in order.

    The token is opened by the first job and again after it was lost; one that could not be opened is tried
    again after a pause that grows. `pin_refused` hears of a PIN that the open token refuses. A job that takes
    longer than `card_timeout` sets the worker aside: everybody is told at once that the token is unavailable,
    until the card comes back.
    """

    def __init__(
        self,
        name: str,
        open_token: Callable[[], HandshakeToken],
        *,
        card_timeout: float,
        clock: Clock,
        pin_refused: Callable[[PinRejected], None] = lambda error: None,
    ) -> None:
        self._name = name
        self._card_timeout = card_timeout
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._card = _Card(open_token, pin_refused, clock)
        self._jobs: SimpleQueue[_Job[Any] | None] = SimpleQueue()
        self._pending: set[_Job[Any]] = set()
        self._hung = self._stopped = self._looks_again = False
        self._busy_since: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._work, name=f"token {name}", daemon=True)
        self._thread.start()

    @property
    def description(self) -> TokenDescription | None:
        """What the token said that it is, when it was last opened; None before that."""
        return self._card.description

    @property
    def problem(self) -> VmTokenError | None:
        """Why the token could not be opened the last time, or hangs; None when all is well."""
        return self._hung_error() if self._hung else self._card.problem

    @property
    def busy_for(self) -> float:
        """Seconds that the job under way has taken so far; 0.0 while there is none."""
        since = self._busy_since
        return self._clock.monotonic() - since if since is not None else 0.0

    async def run(self, job: Callable[[HandshakeToken], Result]) -> Result:
        """Do something with the open token. Raises what opening or the job raises, or `TokenUnavailable`.

        A caller who is cancelled leaves the job to end by itself; the next one waits behind it.
        """
        return await self._submit(lambda: self._card.use(job))

    async def run_closed(self, job: Callable[[], Result]) -> Result:
        """Do something while the token is closed and its card free, such as personalisation."""

        def closed() -> Result:
            self._card.forget()
            return job()

        return await self._submit(closed)

    async def run_if_closed(self, job: Callable[[], None]) -> None:
        """Do something beside the token, such as reading its counters; nothing if it is open."""
        await self._submit(lambda: None if self._card.is_open else job())

    def post(self, job: Callable[[HandshakeToken], Result]) -> asyncio.Future[Result | None]:
        """Do something with the token if it is open; nobody has to wait for it, as for an abort."""
        posted = self._enqueue(lambda: self._card.use_if_open(job))
        posted.add_done_callback(lambda future: future.cancelled() or future.exception())
        return posted

    def look_again(self, is_present: Callable[[], bool]) -> None:
        """Cards came or went: give up an open one that is gone, open at once one that could not be had.

        While the card hangs one look waits for it, however much comes and goes meanwhile.
        """
        if self._stopped or (self._hung and self._looks_again):
            return
        self._looks_again = True
        posted = self._enqueue(lambda: self._card.look_again(is_present))
        posted.add_done_callback(self._looked_again)

    async def stop(self) -> bool:
        """Close the token and end the thread; False when the card hangs and the thread is left behind."""
        self._stopped = True
        self._jobs.put(None)
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.to_thread(self._thread.join, 0.0 if self._hung else self._card_timeout)
        return not self._thread.is_alive()

    async def _submit(self, call: Callable[[], Result]) -> Result:
        if self._hung:
            raise self._hung_error()
        if self._stopped:
            raise TokenUnavailable(f"Token '{self._name}' is not served any more.")
        return await self._enqueue(call)

    def _enqueue(self, call: Callable[[], Result]) -> asyncio.Future[Result]:
        job = _Job(call, self._loop.create_future())
        self._pending.add(job)
        self._jobs.put(job)
        if self._watch is None:
            self._watch = self._loop.call_later(self._card_timeout, self._look)
        return job.future

    def _look(self) -> None:
        """Now and then while there is work: has the card answered?"""
        self._watch = None
        if not self._pending:
            return
        left = self._card_timeout - self.busy_for
        if left <= 0 and not self._hung:
            self._set_aside()
        self._watch = self._loop.call_later(max(left, self._card_timeout / 10), self._look)

    def _set_aside(self) -> None:
        self._hung = True
        log.error("card does not answer, token set aside", extra={"token": self._name})
        for job in self._pending:
            job.settle(None, self._hung_error())

    def _finished(self, job: _Job[Any], result: Any, error: BaseException | None) -> None:
        self._pending.discard(job)
        if self._hung:
            self._hung = False
            log.warning("card answers again", extra={"token": self._name})
        job.settle(result, error)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(job)
        self._card.drop()

    def _do(self, job: _Job[Any]) -> None:
        result: Any = None
        failure: BaseException | None = None
        self._busy_since = started = self._clock.monotonic()
        try:
            if not job.future.done():  # nobody waits for it any more otherwise
                result = job.call()
        except BaseException as error:  # whoever waits gets it; the thread goes on
            failure = error
        self._busy_since = None
        if self._clock.monotonic() - started > self._card_timeout:
            self._card.drop()  # its state is unknown: the next job finds it reset
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._finished, job, result, failure)

    def _looked_again(self, future: asyncio.Future[None]) -> None:
        self._looks_again = False
        _ = future.cancelled() or future.exception()  # the token's state shows what became of it

    def _hung_error(self) -> TokenUnavailable:
        seconds = f"{self._card_timeout:g}"
        message = (
            f"The card behind token '{self._name}' has not answered for {seconds} seconds; it is set aside."
        )
        return TokenUnavailable(message, retry_after=self._card_timeout)


@dataclass(frozen=True, slots=True, eq=False)
class _Job(Generic[Result]):
    """A call and who waits for it."""

    call: Callable[[], Result]
    future: asyncio.Future[Result]

    def settle(self, result: Result, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class _Card:
    """The token of a worker, open or not. Everything but the two attributes belongs to the thread."""

    def __init__(
        self,
        open_token: Callable[[], HandshakeToken],
        pin_refused: Callable[[PinRejected], None],
        clock: Clock,
    ) -> None:
        self.description: TokenDescription | None = None
        self.problem: VmTokenError | None = None
        self._open_token = open_token
        self._pin_refused = pin_refused
        self._clock = clock
        self._token: HandshakeToken | None = None
        self._pause = 0.0
        self._not_before = 0.0

    @property
    def is_open(self) -> bool:
        return self._token is not None

    def use(self, job: Callable[[HandshakeToken], Result]) -> Result:
        token = self._token or self._open()
        try:
            return job(token)
        except (TokenUnavailable, *_PIN_PROBLEMS) as error:
            self._lost(error)
            raise
        except HandshakeFailed as failure:
            if isinstance(failure.error, _PIN_PROBLEMS):
                self._lost(failure.error)
            raise

    def use_if_open(self, job: Callable[[HandshakeToken], Result]) -> Result | None:
        return None if self._token is None else self.use(job)

    def look_again(self, is_present: Callable[[], bool]) -> None:
        if self._token is not None:
            if is_present():
                return
            self.drop()  # opening it says why
        elif not isinstance(self.problem, TokenUnavailable):
            return  # a PIN is not tried again for that
        self._pause, self._not_before = 0.0, 0.0
        self._open()

    def drop(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            token.close()

    def forget(self) -> None:
        self.drop()
        self.problem = self.description = None
        self._pause, self._not_before = 0.0, 0.0

    def _lost(self, error: VmTokenError) -> None:
        if isinstance(error, PinRejected):
            self._pin_refused(error)  # at once: other tokens may have the same PIN
        self.drop()
        self.problem = error

    def _open(self) -> HandshakeToken:
        self._check_problem()
        try:
            self._token = token = self._open_token()
            self.description = token.describe()
        except VmTokenError as error:
            self.drop()
            self.problem = error
            self._pause = min(max(2 * self._pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            self._not_before = self._clock.monotonic() + self._pause
            raise
        self.problem, self._pause, self._not_before = None, 0.0, 0.0
        return token

    def _check_problem(self) -> None:
        problem, left = self.problem, self._not_before - self._clock.monotonic()
        if left <= 0:
            return
        if isinstance(problem, TokenUnavailable):
            raise TokenUnavailable(problem.message, retry_after=round(left, 3))
        if isinstance(problem, _PIN_PROBLEMS):
            raise problem.with_traceback(None)  # a flood of handshakes need not ask the card each time
