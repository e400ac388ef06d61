"""Domains whose agents come and go, and what happens to the domains meanwhile."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from xenlab import DomU, Lab, LabError
from xenlab.remote import PATIENCE, PYTHON, Process

from tests.xen.links import Broker

PROGRAM = "/root/restless.py"
_RESTLESS = (Path(__file__).parent / "restless.py").read_text()

MEMORY = 128
"""MiB of a domU: the kernel leaves 80, and lab and program need half of that; with gRPC it takes 192."""

DOM0_WEIGHT, BOOT_WEIGHT, WEIGHT = 4096, 1024, 256
"""Of dom0, of a domain that boots, of any other: dom0 would get nothing done with no more than a domU has."""

ROUND_WITHIN = 900.0 * PATIENCE
"""Seconds for a round, which takes twenty where the machine is quiet, for a boot, for the program's start."""

EVERY = 30.0
"""Seconds from one domain to the next that something is done to."""

PAUSES = (5.0, 5.0, 45.0)
"""Seconds: the third is longer than the heartbeat allows, so the broker ends the link."""

MOST_FAILED_STARTS = 2
"""Times in a row that a domain may not come up."""

AT_ONCE = 3
"""Domains that something is done to; one boots for up to a minute while others come and go."""


class Guest:
    """A domain with the program in it. What it says is counted here, over all of its lives."""

    def __init__(self, domain: DomU) -> None:
        self.domain = domain
        self.visits: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.excused: Counter[str] = Counter()
        """Errors while the domain was paused, or short after it."""

        self.again = 0
        """Connections that ended before the answer, so that another one was made."""

        self.failed_starts = 0
        """Times that the domain did not come up."""

        self.rounds = 0
        self.resting = False
        self.slowest = 0.0
        """Seconds of a round."""

        self._process: Process | None = None
        self._taken = 0
        self._forgiving = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Let the program run; the domain is up."""
        self.domain.write(PROGRAM, _RESTLESS)
        self._process, self._taken, self.resting = self.domain.start([PYTHON, PROGRAM]), 0, False

    def rest(self) -> None:
        """Let it stop after its round."""
        assert self._process
        self._process.write("rest\n")

    def go_on(self) -> None:
        """Let it go on after a rest."""
        assert self._process
        self.resting = False
        self._process.write("go on\n")

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for what the program says. Raises `LabError` when it has ended, or does not say it."""
        deadline = time.monotonic() + ROUND_WITHIN
        while not condition():
            assert self._process
            if self._process.has_ended:
                raise LabError(f"{self.domain}: the agents have ended: {self._process.output[-2000:]}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.domain}: no round in time: {self._process.output[-2000:]}")
            time.sleep(0.5)
            self.collect()

    def wait_for_rounds(self, count: int) -> None:
        """Wait until it has made so many more."""
        wanted = self.rounds + count
        self.wait_until(lambda: self.rounds >= wanted)

    def collect(self) -> None:
        """Count what it has said since the last time."""
        with self._lock:
            assert self._process
            said = self._process.stdout
            whole = said.rfind("\n") + 1
            lines, self._taken = said[self._taken : whole].splitlines(), whole
            for line in lines:
                self._count(json.loads(line))

    def renew(self) -> None:
        """Destroy the domain in the middle of whatever it does, and make it anew: same UUID, new domid."""
        self.domain.destroy()
        self.collect()
        self._start()
        self.begin()
        self.wait_for_rounds(1)

    def pause(self, seconds: float) -> None:
        """Take its processor away for a while."""
        self.collect()
        with self._forgiven():
            self.domain.pause()
            time.sleep(seconds)
            self.domain.unpause()
            self.wait_for_rounds(2)

    def _start(self) -> None:
        """Again, when it starves: libxl gives a disk or an interface 40 seconds."""
        for failed in range(MOST_FAILED_STARTS + 1):
            try:
                self.domain.create()
                self._weigh(BOOT_WEIGHT)
                self.domain.wait_until_up(ROUND_WITHIN)
                self._weigh(WEIGHT)
                return
            except LabError:
                if failed == MOST_FAILED_STARTS:
                    raise
                self.failed_starts += 1
                if self.domain.is_alive:
                    self.domain.destroy()

    def _weigh(self, weight: int) -> None:
        self.domain.dom0.run(["xl", "sched-credit2", "-d", self.domain.name, "-w", str(weight)])

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        self._forgiving = True
        try:
            yield
        finally:
            self._forgiving = False

    def _count(self, said: dict[str, object]) -> None:
        match said:
            case {"visits": list(visits), "again": int(again), "seconds": float(seconds)}:
                self.visits.update(visits)
                self.again += again
                self.rounds += 1
                self.slowest = max(self.slowest, seconds)
            case {"error": str(error)}:
                (self.excused if self._forgiving else self.errors)[error] += 1
            case {"resting": True}:
                self.resting = True


class Crowd:
    """All guests, and what is done to their domains."""

    def __init__(self, guests: list[Guest]) -> None:
        self.guests = guests
        self.renewed = self.paused = 0
        self._over = threading.Event()

    @classmethod
    def gathered(cls, lab: Lab, broker: Broker, count: int) -> Crowd:
        """Domains that run and are VMs of the broker; each boots while the next is made."""
        lab.dom0.run(["xl", "sched-credit2", "-d", "Domain-0", "-w", str(DOM0_WEIGHT)])
        domains = [lab.define(f"vm{number:02}", memory=MEMORY) for number in range(1, count + 1)]
        for domain in domains:
            domain.create()
        broker.know(*domains)
        for domain in domains:
            domain.wait_until_up(ROUND_WITHIN)
        return cls([Guest(domain) for domain in domains])

    def begin(self, rounds: int) -> None:
        """Start all agents, and wait until each domain has made so many rounds."""
        for guest in self.guests:
            guest.begin()
        for guest in self.guests:
            guest.wait_for_rounds(rounds)

    def rest(self) -> None:
        """Return when no agent runs any more."""
        for guest in self.guests:
            guest.rest()
        for guest in self.guests:
            guest.wait_until(lambda guest=guest: guest.resting)  # type: ignore[misc]

    def go_on(self) -> None:
        """After a rest."""
        for guest in self.guests:
            guest.go_on()

    @property
    def visits(self) -> Counter[str]:
        """How many ended in each way."""
        return self._total(lambda guest: guest.visits)

    @property
    def errors(self) -> Counter[str]:
        """What nobody expected."""
        return self._total(lambda guest: guest.errors)

    @property
    def excused(self) -> Counter[str]:
        """Errors in domains that were paused."""
        return self._total(lambda guest: guest.excused)

    @contextmanager
    def stirred(self) -> Iterator[None]:
        """Domains are destroyed and made anew, and paused, as long as the block lasts."""
        with ThreadPoolExecutor(AT_ONCE + 1) as pool:
            self._stirring = pool.submit(self._stir, pool)
            try:
                yield
            finally:
                self._over.set()
                self._stirring.result()

    def check(self) -> None:
        """Raise what ended the stirring before its time."""
        if self._stirring.done():
            self._stirring.result()

    def _stir(self, pool: ThreadPoolExecutor) -> None:
        """Two of three are destroyed; of a number of domains that is no multiple of three, all."""
        pauses, busy = itertools.cycle(PAUSES), dict[Guest, Future[None]]()
        for number, guest in enumerate(itertools.cycle(self.guests)):
            if guest in busy:
                busy[guest].result()
            if number % 3 == 2:
                busy[guest] = pool.submit(guest.pause, next(pauses))
                self.paused += 1
            else:
                busy[guest] = pool.submit(guest.renew)
                self.renewed += 1
            if self._over.wait(EVERY):
                break
            while sum(not each.done() for each in busy.values()) >= min(AT_ONCE, len(self.guests) - 1):
                if self._over.wait(1):
                    break
        for each in busy.values():
            each.result()

    @property
    def failed_starts(self) -> int:
        """Times that a domain did not come up."""
        return sum(guest.failed_starts for guest in self.guests)

    def _total(self, of: Callable[[Guest], Counter[str]]) -> Counter[str]:
        total: Counter[str] = Counter()
        for guest in self.guests:
            guest.collect()
            total += of(guest)
        return total
