"""Many connects at once: handshakes a second and the slowest of them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from benchmarks.bench import TOKEN, Bench
from benchmarks.local import LocalSession, client_context
from benchmarks.rows import Row, in_turns, median, percentile
from tests.support.pki import SERVER_NAME, client_identity
from tests.support.stack_client import StackClient

CROWDS = (1, 4, 16, 64)


class Session(Protocol):
    """Something that can be closed."""

    def close(self) -> None: ...


def rows(bench: Bench) -> Iterator[Row]:
    """TLS 1.3, full, through gRPC, agent, broker and one card, beside threads of Python's `ssl`."""
    context = client_context(client_identity(), bench.directory)
    port = bench.servers["1.3"].port
    with StackClient.of(bench.stack) as application:
        ours = functools.partial(_connect_ours, application, port)
        theirs = functools.partial(LocalSession, context, port)
        for crowd in CROWDS:
            yield from _of_crowd(bench, crowd, ours, theirs)


def _of_crowd(
    bench: Bench, crowd: int, ours: Callable[[], Session], theirs: Callable[[], Session]
) -> Iterator[Row]:
    count = max(bench.rounds(128, 32), crowd)
    actions = [functools.partial(_rush, connect, crowd, count) for connect in (ours, theirs)]
    costs = in_turns(actions, bench.rounds(5, 1), warm_up=1)
    rates = [median(rate for rate, _ in series) for series in costs]
    slowest = [median(slow for _, slow in series) for series in costs]
    yield Row(f"{crowd} at once, rate", rates[0], "1/s", rates[1])
    yield Row(f"{crowd} at once, p99", slowest[0], "ms", slowest[1])


def _rush(connect: Callable[[], Session], crowd: int, count: int) -> tuple[float, float]:
    """Connects and closes a second; the milliseconds that 99 of 100 connects stayed below."""

    def timed(_: int) -> float:
        started = time.perf_counter()
        session = connect()
        elapsed = (time.perf_counter() - started) * 1e3
        session.close()
        return elapsed

    with ThreadPoolExecutor(crowd) as pool:
        started = time.perf_counter()
        times = list(pool.map(timed, range(count)))
        elapsed = time.perf_counter() - started
    return count / elapsed, percentile(times, 99)


def _connect_ours(application: StackClient, port: int) -> Session:
    return application.connect_to(port, token=TOKEN, server_name=SERVER_NAME, no_resumption=True, timeout=60)
