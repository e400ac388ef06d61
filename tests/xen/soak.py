"""`make soak-xen`: agents and domains come and go for an hour on a real Xen, and nothing may be left of them.

In every domU agents connect over vchan, ask the broker, and leave in all ways; domUs are destroyed, made anew
and paused meanwhile; one broker runs through it all. Counted are descriptors, memory, threads, nodes in
xenstore, grants, event channels and dead domains. At the end, when all is quiet, there may be no more of
anything than after the first rounds. Ctrl-C ends it before its time, with a verdict.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from xenlab import Lab, LabError, images
from xenlab.remote import PATIENCE

from tests.xen.counts import Counts, left_over, mapped_by_others
from tests.xen.crowd import MEMORY, Crowd
from tests.xen.links import Broker

DIRECTORY = images.BUILD / "soak"
"""Where the consoles are after it."""

BESIDES = 3600.0 * PATIENCE
"""Seconds for all that is not the soak itself: boot, warm-up, the end."""

BASE_MEMORY = 2048
"""MiB: dom0 has half of it, the rest is for Xen and for domains on their way out."""

WARM_UP = 1
"""Rounds of the last domain, and more of the others, until allocators have most of what they keep."""

SETTLE = 45.0
"""Seconds of quiet before counting: longer than the heartbeat needs to find a link dead."""

MOST_GROWTH = 2048
"""KiB of resident memory, from the third quarter of the time to the last."""

ENOUGH = 8
"""Looks from which the growth of memory can be told."""


@dataclass(frozen=True)
class Look:
    """How things are while all is under way."""

    minutes: float
    visits: int
    errors: int
    counts: Counts

    @property
    def cells(self) -> dict[str, str]:
        """A line of the table, by the heads of its columns."""
        counts = self.counts
        return {
            "minute": f"{self.minutes:.1f}",
            "  visits": f"{self.visits:,}",
            "errors": str(self.errors),
            "    MB": f"{counts.memory / 1024:.1f}",
            "files": str(sum(counts.descriptors.values())),
            "threads": str(counts.threads),
            "links/domains": f"{len(counts.links)}/{len(counts.domains)}",
            "nodes": str(counts.nodes),
            "granted": str(counts.granted),
            "channels": str(counts.event_channels),
            "dead": str(counts.dead),
            "xenstored: files": str(counts.xenstored_descriptors),
            "   MB": f"{counts.xenstored_memory / 1024:.1f}",
        }


class Soak:
    """The crowd of a lab, its broker, and what was seen of them."""

    def __init__(self, lab: Lab, broker: Broker, crowd: Crowd) -> None:
        self._lab = lab
        self._broker = broker
        self._crowd = crowd
        self._looks: list[Look] = []
        self._told: Counter[str] = Counter()
        self.over = threading.Event()
        """Ends it before its time."""

    def run(self, seconds: float) -> list[str]:
        """All of it; what is wrong, a line each."""
        self._crowd.begin(WARM_UP)
        before = self._quiet()
        self._crowd.go_on()
        with self._crowd.stirred():
            self._look_on(seconds)
        after = self._quiet()
        self._tell()
        _compare(before, after)
        return [*left_over(before, after), *self._errors(), *self._growth()]

    def _look_on(self, seconds: float) -> None:
        """A line a minute."""
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds and not self.over.is_set():
            self.over.wait(min(60.0 - elapsed % 60.0, seconds - elapsed))
            self._lab.check()
            self._crowd.check()
            look = self._look((time.monotonic() - began) / 60)
            if not self._looks:
                _say("  ".join(look.cells))
            _say("  ".join(f"{cell:>{len(head)}}" for head, cell in look.cells.items()))
            self._looks.append(look)
            self._tell_new_errors()

    def _tell_new_errors(self) -> None:
        errors = self._crowd.errors
        for error, count in (errors - self._told).items():
            _say(f"{count} times: {error}")
        self._told = errors

    def _look(self, minutes: float) -> Look:
        visits, errors = self._crowd.visits.total(), self._crowd.errors.total()
        return Look(minutes, visits, errors, self._counted())

    def _counted(self) -> Counts:
        return Counts.now(self._lab, self._broker.process.pid)

    def _quiet(self) -> dict[str, int]:
        """Nobody is there. Raises `LabError` when the links are not those of the domains that live."""
        self._crowd.rest()
        time.sleep(SETTLE)
        counts = self._counted()
        if counts.links != counts.domains:
            raise LabError(f"There are links of the domains {counts.links}, and domains {counts.domains}.")
        return counts.numbers | {"grants that others map (Xen)": mapped_by_others(self._lab)}

    def _tell(self) -> None:
        crowd, first, last = self._crowd, self._looks[0], self._looks[-1]
        ends = ", ".join(f"{count:,} {how}" for how, count in sorted(crowd.visits.items()))
        _say(f"{crowd.visits.total():,} visits: {ends}")
        if last.minutes > first.minutes:
            rate = (last.visits - first.visits) / (last.minutes - first.minutes) / 60
            _say(
                f"{rate:.1f} a second, {rate / len(crowd.guests):.2f} in each of {len(crowd.guests)} domains"
            )
        _say(f"{sum(guest.again for guest in crowd.guests):,} connections made anew before an answer")
        _say(
            f"{crowd.renewed} domains destroyed and made anew, {crowd.paused} paused; "
            f"{crowd.failed_starts} times one did not come up at first; "
            f"slowest round {max(guest.slowest for guest in crowd.guests):.0f} s"
        )
        _say(f"errors in domains that were paused: {_listed(crowd.excused)}")
        _say(f"other errors: {_listed(crowd.errors)}")

    def _errors(self) -> Iterator[str]:
        for error, count in self._crowd.errors.items():
            yield f"{count} times: {error}"

    def _growth(self) -> Iterator[str]:
        if len(self._looks) < ENOUGH:
            return
        quarter, sizes = len(self._looks) // 4, [look.counts.memory for look in self._looks]
        third, last = (statistics.median(part) for part in (sizes[-2 * quarter : -quarter], sizes[-quarter:]))
        _say(f"resident memory of the broker: {third:.0f} KiB in the third quarter, {last:.0f} in the last")
        if last > third + MOST_GROWTH:
            yield f"memory: {third:.0f} KiB in the third quarter, {last:.0f} in the last"


def main() -> int:
    """0 when nothing is left of anybody."""
    options = _parser().parse_args()
    try:
        findings = _findings(options.seconds, options.domains)
    except LabError as error:
        findings = [str(error)]
    for finding in findings:
        _say(f"LEFT: {finding}")
    if not findings:
        _say("Nothing is left.")
    return 1 if findings else 0


def _findings(seconds: float, domains: int) -> list[str]:
    memory = BASE_MEMORY + domains * MEMORY
    with (
        Lab.boot(images.build(), DIRECTORY, lifetime=seconds + BESIDES, memory=memory) as lab,
        Broker.running(lab.dom0) as broker,
    ):
        crowd = Crowd.gathered(lab, broker, domains)
        _say(f"{domains} domains are up")
        soak = Soak(lab, broker, crowd)
        signal.signal(signal.SIGINT, lambda *_: soak.over.set())
        return soak.run(seconds)


def _compare(before: dict[str, int], after: dict[str, int]) -> None:
    _say(f"{'when all is quiet':<40}{'before':>8}{'after':>8}")
    for name in before | after:
        _say(f"{name:<40}{before.get(name, 0):>8}{after.get(name, 0):>8}")


def _listed(errors: Counter[str]) -> str:
    return "; ".join(f"{count} times {error}" for error, count in errors.items()) or "none"


def _say(line: str) -> None:
    print(line, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make soak-xen", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="default: an hour")
    parser.add_argument("--domains", type=int, default=20, help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
