"""Calls and handshakes over vchan, beside other links and beside a hostile guest: figures, no tests of speed.

Each link has an agent and an application of its own, all of one broker, and they take turns, so that what
else the machine does falls on all of them. Emulation makes absolute times meaningless: read the ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from xenlab import Lab

from tests.xen.hostile import COMES_AND_GOES, COMPUTES, FLOODS, NEVER_READS, SENDS_ON
from tests.xen.links import DOM0
from tests.xen.nginx import PORT
from tests.xen.residents import Application, Residents
from tests.xen.stage import SERVER_NAME, Link

ROUNDS = 3
CALLS, HANDSHAKES, CROWD = 20, 4, 8
"""In a round, one after the other; and handshakes at once."""

NEIGHBOURS = {
    "sleeps": "print('open', flush=True); import time; time.sleep(600)",
    "computes": COMPUTES,
    "floods with notifications": FLOODS,
    "sends data without end": SENDS_ON,
    "fills its ring and never reads": NEVER_READS,
    "comes and goes in a tight loop": COMES_AND_GOES,
}
"""What another VM does meanwhile. One that computes does no wrong, and takes its share of the processors."""

SERVER = {"host": DOM0, "port": PORT, "server_name": SERVER_NAME}


@dataclass
class Contender:
    """A link, and milliseconds."""

    link: Link
    application: Application
    calls: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)
    resumed: list[float] = field(default_factory=list)
    crowds: list[float] = field(default_factory=list)

    def take_turn(self) -> None:
        """One round."""
        self.calls += self._time("calls", count=CALLS)["each"]
        one = {"count": HANDSHAKES, "parallel": 1, **SERVER}
        self.full += self._time("handshakes", **one, no_resumption=True)["each"]
        again = self._time("handshakes", **one)
        assert again["resumed"] >= HANDSHAKES - 1
        self.resumed += again["each"][1:]
        crowd = {"count": CROWD, "parallel": CROWD, **SERVER}
        self.crowds.append(self._time("handshakes", **crowd, no_resumption=True)["all"] / CROWD)

    def _time(self, what: str, **options: object) -> dict[str, Any]:
        answer = self.application.do(f"time_{what}", **options)
        assert "error" not in answer, answer
        return answer


@pytest.fixture
def contenders(
    lab: Lab, residents: Residents, applications: dict[str, Application]
) -> Iterator[list[Contender]]:
    """vchan in one domU, TCP in another, the Unix socket in dom0, where alone there is one."""
    residents.stage.enroll(lab.domu("web02"))
    residents.stage.personalise("local")
    yield [
        Contender(Link.VCHAN, applications["web01"]),
        Contender(Link.TCP, residents.application(lab.domu("web02"), "web02", Link.TCP)),
        Contender(Link.UNIX, residents.application(lab.dom0, "local", Link.UNIX)),
    ]
    residents.move_out("local")


@pytest.mark.long
def test_figures(contenders: list[Contender], figures: Callable[[str], None]) -> None:
    for contender in contenders:
        contender.take_turn()  # links, streams and caches are warm after it
        for times in (contender.calls, contender.full, contender.resumed, contender.crowds):
            times.clear()
    for number in range(ROUNDS):
        for contender in contenders if number % 2 else reversed(contenders):
            contender.take_turn()
    for line in _table(contenders):
        figures(line)


@pytest.mark.long
def test_figures_beside_a_hostile_guest(
    lab: Lab, residents: Residents, figures: Callable[[str], None]
) -> None:
    """Calls of web01, while web02 does one thing after another, again and again."""
    application, other = residents.application(lab.domu("web01"), "web01"), lab.domu("web02")
    residents.move_out(other.name)
    calls: dict[str, list[float]] = {name: [] for name in NEIGHBOURS}
    application.do("time_calls", count=CALLS)
    for _ in range(ROUNDS):
        for name, program in NEIGHBOURS.items():
            with other.start_python(program, str(other.domid), "patient") as neighbour:
                neighbour.wait_for("open")
                calls[name] += application.do("time_calls", count=CALLS)["each"]
    figures(
        f"\n{'a call while another VM':<34}{'median, ms':>12}{'90th':>8}   to one that computes: median, 90th"
    )
    base = _median_and_90th(calls["computes"])
    for name, times in calls.items():
        median, late = _median_and_90th(times)
        figures(f"{name:<34}{median:>12.2f}{late:>8.2f}   {median / base[0]:.2f}, {late / base[1]:.2f}")


def _median_and_90th(times: list[float]) -> tuple[float, float]:
    tenths = statistics.quantiles(times, n=10)
    return tenths[4], tenths[8]


def _table(contenders: list[Contender]) -> Iterator[str]:
    """In milliseconds and handshakes a second, and what vchan has to the others."""
    yield (
        f"{'':<34}"
        + "".join(f"{each.link.name.lower():>10}" for each in contenders)
        + "   vchan to tcp, unix"
    )
    for name, times_of in (
        ("a call, median, ms", lambda each: each.calls),
        ("full handshake, median, ms", lambda each: each.full),
        ("resumed handshake, median, ms", lambda each: each.resumed),
    ):
        yield _row(name, [statistics.median(times_of(each)) for each in contenders])
    yield _row("handshakes/s, one after another", [1e3 / statistics.mean(each.full) for each in contenders])
    yield _row(f"handshakes/s, {CROWD} at once", [1e3 / statistics.mean(each.crowds) for each in contenders])


def _row(name: str, values: list[float]) -> str:
    vchan, tcp, unix = values
    cells = "".join(f"{value:>10.2f}" for value in values)
    return f"{name:<34}{cells}   {vchan / tcp:.2f}, {vchan / unix:.2f}"
