"""What each kind of token adds to a handshake: by the card, by the engine, by the queue."""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.bench import Bench
from benchmarks.engine import MemoryServer, ssl_client, ssl_server
from benchmarks.local import client_context
from benchmarks.rows import Row, in_turns, median
from dom0_broker.admission import Admission
from dom0_broker.engine import EngineToken
from dom0_broker.worker import TokenWorker
from tests.support.pki import NOW, SERVER_NAME, KeyKind, client_identity, server_identity
from tests.support.tokens import TOKENS, TokenKind
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.clock import SystemClock
from vmtoken.token import HandshakeStart, HandshakeToken

CROWD = 4
"""VMs that want the token at once."""


@dataclass
class Stopwatch:
    """Milliseconds spent in the card, or in what stands for it."""

    milliseconds: float = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same, measured."""

        @functools.wraps(call)
        def measured(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*arguments)
            finally:
                self.milliseconds += (time.perf_counter() - started) * 1e3

        return measured


@dataclass(frozen=True)
class Cost:
    """Milliseconds of one handshake in the token, and how many of them in the card."""

    token: float
    card: float


def rows(bench: Bench) -> Iterator[Row]:
    """TLS 1.3, full, ECDSA P-256 at the server; in memory, so that nothing but the token counts."""
    for kind in TOKENS:
        if not _is_shown(kind):
            continue
        with ExitStack() as stack:
            directory = bench.directory / f"token-{TOKENS.index(kind)}"
            directory.mkdir()
            token = stack.enter_context(kind.holder(directory)).token()
            stack.callback(token.close)
            yield from _of_kind(bench, kind.name, token)


def _of_kind(bench: Bench, name: str, token: HandshakeToken) -> Iterator[Row]:
    server = ssl_server(server_identity().write(bench.directory, "token-server"))
    context = client_context(client_identity(KeyKind.ECDSA_P256), bench.directory)
    watch = card_watch(token)
    ours = functools.partial(_handshake, token, server, watch)
    theirs = functools.partial(_local, functools.partial(ssl_client, context, server))
    costs, local = in_turns([ours, theirs], bench.rounds(60, 8))
    yardstick = median(cost.token for cost in local)
    whole, card = (median(getattr(cost, part) for cost in costs) for part in ("token", "card"))
    yield Row(f"{name}: in the token", whole, "ms", yardstick)
    yield Row(f"{name}: of which the card", card, "ms")
    yield Row(f"{name}: of which the broker", whole - card, "ms")
    waits = asyncio.run(_crowd(token, server, watch, bench.rounds(20, 4)))
    yield Row(f"{name}: in the queue, {CROWD} at once", median(waits), "ms")


def card_watch(token: HandshakeToken) -> Stopwatch:
    """Measures the card of a token from now on: APDUs, or signatures of a key that has none."""
    watch = Stopwatch()
    if isinstance(token, EapTlsCard):
        channel = token._card.channel
        channel._connection = _Timed(channel._connection, "transmit", watch)  # type: ignore[assignment]
    else:
        assert isinstance(token, EngineToken)
        token._key = _Timed(token._key, "sign", watch)  # type: ignore[assignment]
    return watch


class _Timed:
    """Something with one method measured."""

    def __init__(self, target: object, method: str, watch: Stopwatch) -> None:
        self._target = target
        setattr(self, method, watch.timed(getattr(target, method)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


def _handshake(token: HandshakeToken, server: Callable[[], MemoryServer], watch: Stopwatch) -> Cost:
    """Shares are made while nobody waits, as behind the handshake before."""
    token.abort()
    peer, elapsed, before = server(), Stopwatch(), watch.milliseconds
    step = elapsed.timed(token.start)(HandshakeStart(SERVER_NAME, int(NOW.timestamp())), lambda _: None)
    while step.result is None:
        answer = peer.exchange(step.client_flight)
        step = elapsed.timed(token.process)(answer)
    peer.exchange(step.client_flight)
    return Cost(elapsed.milliseconds, watch.milliseconds - before)


def _local(run: Callable[[], float]) -> Cost:
    """Microseconds of CPU: in memory that is the time it takes."""
    return Cost(run() / 1e3, 0.0)


async def _crowd(
    token: HandshakeToken, server: Callable[[], MemoryServer], watch: Stopwatch, rounds: int
) -> list[float]:
    """Milliseconds that handshakes of several VMs wait for their turn, all of them always wanting one."""
    clock = SystemClock()
    worker = TokenWorker("bench", lambda: _Kept(token), card_timeout=60.0, clock=clock)
    admission = Admission("bench", capacity=CROWD, clock=clock)
    waits: list[float] = []

    async def vm(number: int) -> None:
        for _ in range(rounds):
            started = time.perf_counter()
            await admission.acquire(uuid.UUID(int=number), asyncio.get_running_loop().time() + 60)
            waits.append((time.perf_counter() - started) * 1e3)
            try:
                await worker.run(lambda _: _handshake(token, server, watch))
            finally:
                admission.release()

    await asyncio.gather(*map(vm, range(CROWD)))
    await worker.stop()
    return waits


class _Kept:
    """The token, which the worker does not close at its end."""

    def __init__(self, token: HandshakeToken) -> None:
        self.describe = token.describe

    def close(self) -> None: ...


def _is_shown(kind: TokenKind) -> bool:
    """One of each family; the contract suites have every variant."""
    return kind.name in SHOWN


SHOWN = (
    "software, short APDUs",
    "PC/SC, software, short APDUs",
    "engine, memory, ecdsa-p256",
    "engine, PIV slot 9A, ecdsa-p256",
    "PC/SC, PIV slot 9A, ecdsa-p256",
    "engine, SoftHSM, ecdsa-p256",
    "engine, SoftHSM through p11-kit-proxy, ecdsa-p256",
    "engine, OpenSC, PIV slot 9A, ecdsa-p256",
    "engine, TPM 2.0, ecdsa-p256",
)
