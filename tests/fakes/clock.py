"""Time that moves when told to."""

from __future__ import annotations

from datetime import UTC, datetime


class FixedClock:
    """Both times are the same seconds, since 1970 and since the start."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds
