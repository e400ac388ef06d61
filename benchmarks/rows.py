"""Rows of the table, and how the numbers in them come about.

Absolute times on a shared machine move by a third from run to run, so every ratio is of two
things measured in turns, one after the other, over and over.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar


@dataclass(frozen=True)
class Row:
    """One line of the table and of build/bench.json."""

    name: str
    value: float
    unit: str
    baseline: float | None = None
    """The same of Python's `ssl` with the key in a local file, in the same unit."""

    goal: str = ""
    """Such as `<= 1.3`: about the ratio. Empty when the row only informs."""

    @property
    def ratio(self) -> float | None:
        """Value to baseline."""
        return self.value / self.baseline if self.baseline else None

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if not self.goal or self.ratio is None:
            return None
        comparison, _, limit = self.goal.partition(" ")
        return self.ratio <= float(limit) if comparison == "<=" else self.ratio >= float(limit)

    def as_json(self) -> dict[str, object]:
        """As it stands in build/bench.json."""
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


Cost = TypeVar("Cost")


def in_turns(
    actions: Sequence[Callable[[], Cost]],
    rounds: int,
    *,
    batch: int = 1,
    settle: float = 0.0,
    warm_up: int = 3,
) -> list[list[Cost]]:
    """Do each action once a round, in alternating order, and give what each of them returned.

    With a `batch`, that often in a row: short pure computation is then measured as a program does it
    over and over, and not how fast the processor's caches forget the other contender. `settle` is how
    many seconds other processes get to finish what an action leaves to them, such as tickets.

    The garbage collector runs between rounds only, as it would strike whoever is next.
    """
    costs: list[list[Cost]] = [[] for _ in actions]
    gc.collect()
    gc.disable()
    try:
        for number in range(-warm_up, rounds):
            order = range(len(actions)) if number % 2 else reversed(range(len(actions)))
            for index in order:
                repeated = [actions[index]() for _ in range(batch)]
                if number >= 0:
                    costs[index] += repeated
                time.sleep(settle)
            if number % 20 == 0:
                gc.collect()
    finally:
        gc.enable()
    return costs


def percentile(series: Iterable[float], percent: float) -> float:
    """The nearest one that was really measured."""
    ordered = sorted(series)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def median(series: Iterable[float]) -> float:
    """The middle one."""
    return statistics.median(series)


class CpuMeter:
    """Sums up the CPU time that this thread spends inside `with` blocks, in microseconds."""

    def __init__(self) -> None:
        self.microseconds = 0.0

    def __enter__(self) -> CpuMeter:
        self._started = time.thread_time_ns()
        return self

    def __exit__(self, *_: object) -> None:
        self.microseconds += (time.thread_time_ns() - self._started) / 1e3

    def read(self) -> float:
        """The sum until now, starting again from zero."""
        total, self.microseconds = self.microseconds, 0.0
        return total


_VERDICTS = {True: "met", False: "MISSED", None: ""}


def table(rows: Sequence[Row]) -> str:
    """The rows for people."""
    lines = [["", "ours", "ssl", "unit", "ratio", "goal", ""]]
    for row in rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        lines.append(
            [
                row.name,
                _number(row.value),
                _number(row.baseline),
                row.unit,
                _number(row.ratio),
                row.goal,
                verdict,
            ]
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(_aligned(line, widths) for line in lines)


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    name, *numbers = line
    cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
    return "  ".join([name.ljust(widths[0]), *cells]).rstrip()


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
