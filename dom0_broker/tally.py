"""Counters of handshakes since the broker started: what is counted when one ends, and nothing before.

Label values are names that the operator gave, and reasons of `docs/errors.md`: a guest adds none.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from dom0_broker.sessions import Summary

COMPLETE: Final = "complete"
"""The outcome of a handshake that made a session."""

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: from a resumption on the software element to a slow card with a long queue."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a handshake ended."""

    token: str
    """Empty when it did not come to one."""

    vm: str
    outcome: str
    """`complete`, or a reason."""

    assurance: str
    """Empty when no token was asked."""

    resumed: bool


@dataclass(slots=True)
class Histogram:
    """Durations by `BOUNDS`; the last one counts what is longer than all of them."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> Sequence[int]:
        """How many were not longer than each bound, and all of them."""
        return list(itertools.accumulate(self.counts))

    def copy(self) -> Histogram:
        """As it is now."""
        return Histogram(list(self.counts), self.total)


@dataclass(slots=True)
class Durations:
    """Where the time of a token's handshakes went."""

    queue: Histogram = field(default_factory=Histogram)
    in_token: Histogram = field(default_factory=Histogram)
    total: Histogram = field(default_factory=Histogram)

    def copy(self) -> Durations:
        """As they are now."""
        return Durations(self.queue.copy(), self.in_token.copy(), self.total.copy())


class Tally:
    """All of them. Used from the event loop only."""

    def __init__(self) -> None:
        self.endings: Counter[Ending] = Counter()
        self.durations: defaultdict[str, Durations] = defaultdict(Durations)
        """Of the handshakes that made a session, by token."""

    def count(self, summary: Summary) -> None:
        """A handshake has ended."""
        assurance = summary.assurance.value if summary.assurance else ""
        self.endings[Ending(summary.token, summary.vm, summary.outcome, assurance, summary.resumed)] += 1
        if summary.outcome == COMPLETE:
            durations = self.durations[summary.token]
            durations.queue.observe(summary.queue)
            durations.in_token.observe(summary.in_token)
            durations.total.observe(summary.total)
