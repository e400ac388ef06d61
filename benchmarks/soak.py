"""`python -m benchmarks.soak`: very many short sessions on one token, and whether anything grows.

Full and resumed handshakes in turns, through application, agent, broker and card, with nginx as the server.
Memory, descriptors and latency are looked at a hundred times; the end must look like the beginning.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.bench import REQUEST, TOKEN, Bench
from benchmarks.memory import resident
from benchmarks.rows import median, percentile
from tests.support.pki import SERVER_NAME
from tests.support.processes import Child
from tests.support.stack_client import StackClient

LOOKS = 100
WARM_UP = 0.1
"""Part of the handshakes until caches, tables of sessions and allocators have what they keep."""

MOST_GROWTH = 1.05
"""Of memory, from the first tenth behind the warm-up to the last tenth."""

MOST_SLOWDOWN = 1.25
"""Of the median latency; a shared machine moves by that much by itself."""

MOST_DESCRIPTORS = 8
"""More than at the beginning: a few sockets are always on their way out."""


@dataclass(frozen=True)
class Look:
    """How things are after so many handshakes."""

    done: int
    seconds: float
    broker_mb: float
    agent_mb: float
    broker_files: int
    agent_files: int
    p50: float
    p99: float

    def __str__(self) -> str:
        return (
            f"{self.done:>7,} in {self.seconds:>6,.0f} s: "
            f"broker {self.broker_mb:6.1f} MB {self.broker_files:>3} files, "
            f"agent {self.agent_mb:6.1f} MB {self.agent_files:>3} files, "
            f"p50 {self.p50:6.1f} ms, p99 {self.p99:6.1f} ms"
        )


class Soak:
    """Handshakes from a few threads; `looks` drives it."""

    def __init__(self, bench: Bench, client: StackClient, workers: int) -> None:
        self._bench = bench
        self._client = client
        self._workers = workers
        self._port = bench.servers["1.3"].port
        self._numbers = itertools.count()
        self.resumed = 0
        self._lock = threading.Lock()

    def looks(self, count: int) -> Iterator[Look]:
        """One for each hundredth of the handshakes. A handshake that fails ends the soak."""
        started = time.monotonic()
        each = -(-count // LOOKS)
        with ThreadPoolExecutor(self._workers) as pool:
            for number in range(1, LOOKS + 1):
                latencies = list(pool.map(self._session, range(each)))
                yield self._look(number * each, time.monotonic() - started, latencies)

    def _session(self, _: int) -> float:
        """Milliseconds until the application may send; every second session may be a resumed one."""
        full = next(self._numbers) % 2 == 0
        started = time.perf_counter()
        session = self._client.connect_to(
            self._port, token=TOKEN, server_name=SERVER_NAME, no_resumption=full, timeout=60
        )
        elapsed = (time.perf_counter() - started) * 1e3
        session.send(REQUEST)
        assert session.receive().startswith(b"HTTP/1.1 200"), "the server answers"
        session.close()
        with self._lock:
            self.resumed += session.resumed
        return elapsed

    def _look(self, done: int, seconds: float, latencies: Sequence[float]) -> Look:
        broker, agent = self._bench.stack.broker, self._bench.stack.agent
        return Look(
            done,
            seconds,
            resident(broker),
            resident(agent),
            _files(broker),
            _files(agent),
            median(latencies),
            percentile(latencies, 99),
        )


def main() -> int:
    """0 when nothing grows."""
    options = _parser().parse_args()
    with tempfile.TemporaryDirectory() as directory, ExitStack() as programs:
        bench = Bench(Path(directory), quick=False, programs=programs)
        client = programs.enter_context(StackClient.of(bench.stack))
        soak = Soak(bench, client, options.workers)
        looks = []
        for look in soak.looks(options.handshakes):
            looks.append(look)
            if len(looks) % 5 == 0:
                print(look, flush=True)
        print(f"{looks[-1].done:,} handshakes, {soak.resumed:,} of them resumed")
        growth = list(_growth(looks))
    for finding in growth:
        print(f"GROWS: {finding}")
    if not growth:
        print("Memory, descriptors and latency are flat.")
    return 1 if growth else 0


def _growth(looks: Sequence[Look]) -> Iterator[str]:
    """What the last tenth has more of than the first tenth behind the warm-up."""
    tenth = LOOKS // 10
    skip = int(LOOKS * WARM_UP)
    first, last = looks[skip : skip + tenth], looks[-tenth:]
    for name, most in (
        ("broker_mb", MOST_GROWTH),
        ("agent_mb", MOST_GROWTH),
        ("p50", MOST_SLOWDOWN),
    ):
        before, after = (median(getattr(look, name) for look in part) for part in (first, last))
        if after > before * most:
            yield f"{name}: {before:.1f} at the beginning, {after:.1f} at the end"
    for name in ("broker_files", "agent_files"):
        before, after = (median(getattr(look, name) for look in part) for part in (first, last))
        if after > before + MOST_DESCRIPTORS:
            yield f"{name}: {before:.0f} at the beginning, {after:.0f} at the end"


def _files(child: Child | None) -> int:
    assert child is not None
    return len(os.listdir(f"/proc/{child.pid}/fd"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--handshakes", type=int, default=70_000)
    parser.add_argument("--workers", type=int, default=4, help="sessions at once (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
