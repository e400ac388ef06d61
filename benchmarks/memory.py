"""Memory of broker and agent while sessions idle."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.bench import TOKEN, Bench
from benchmarks.rows import Row
from tests.support.pki import SERVER_NAME
from tests.support.processes import Child
from tests.support.stack_client import StackClient, StackSession

COUNTS = (1, 100, 1000)
SETTLE = 2.0
"""Seconds for tickets to be given back."""


def rows(bench: Bench) -> Iterator[Row]:
    """Resident memory of both programs, of their own pages and shared ones."""
    port = bench.servers["1.3"].port
    counts = COUNTS[:2] if bench.quick else COUNTS
    with StackClient.of(bench.stack) as application:
        sessions: list[StackSession] = []
        for count in counts:
            sessions += _open(application, port, count - len(sessions))
            time.sleep(SETTLE)
            for name, child in (("broker", bench.stack.broker), ("agent", bench.stack.agent)):
                yield Row(f"memory of the {name}, {count} idle sessions", resident(child), "MB")
        for session in sessions:
            session.close()


def _open(application: StackClient, port: int, count: int) -> list[StackSession]:
    def connect(_: int) -> StackSession:
        return application.connect_to(
            port, token=TOKEN, server_name=SERVER_NAME, no_resumption=True, timeout=60
        )

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(connect, range(count)))


def resident(child: Child | None) -> float:
    """Megabytes."""
    assert child is not None
    status = Path(f"/proc/{child.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match
    return int(match[1]) / 1000
