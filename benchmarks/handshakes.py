"""Latency of handshakes over TCP: the local yardstick, the agent's own flow, an application over gRPC."""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.bench import REQUEST, TOKEN, VERSIONS, Bench
from benchmarks.local import LocalSession, client_context
from benchmarks.rows import Row, in_turns, median, percentile
from guest_agent.broker_client import BrokerClient, HandshakeWish
from guest_agent.config import BrokerSettings, SessionSettings
from guest_agent.handshake_flow import Target
from guest_agent.tickets import TicketReturns
from guest_agent.tls_stream import TlsStream
from tests.support.pki import SERVER_NAME, client_identity
from tests.support.stack import Stack
from tests.support.stack_client import StackClient

AGENT_GOAL, APPLICATION_GOAL, RESUMED_GOAL = "<= 1.3", "<= 1.6", "<= 1.0"
TIMEOUT = 30.0
TICKET_TIMEOUT = 5.0
SETTLE = 0.005
"""Seconds for agent, broker and server to end what the last connection left them."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds from the start: TCP included, names not resolved."""

    handshake: float
    """Until the client may send."""

    answer: float
    """Until the server's answer to a small request is there."""

    resumed: bool


class Client(Protocol):
    """Connects, asks for something small, closes."""

    def full(self, port: int) -> Timing: ...
    def resumed(self, port: int) -> Timing: ...


def rows(bench: Bench) -> Iterator[Row]:
    """Full and resumed, both versions."""
    agent = AgentClient(bench.stack)
    with StackClient.of(bench.stack) as application:
        for version in VERSIONS:
            local = LocalClient(client_context(client_identity(), bench.directory, version))
            clients = (local, agent, ApplicationClient(application))
            yield from _of_version(bench, version, clients)
    agent.close()


def _of_version(bench: Bench, version: str, clients: Sequence[Client]) -> Iterator[Row]:
    port = bench.servers[version].port
    measure = functools.partial(in_turns, settle=SETTLE)
    full = measure([functools.partial(client.full, port) for client in clients], bench.rounds(300, 40))
    yield from _rows(f"TLS {version} full", full, full[0], (AGENT_GOAL, APPLICATION_GOAL))
    resumed = measure([functools.partial(client.resumed, port) for client in clients], bench.rounds(200, 30))
    assert all(timing.resumed for series in resumed for timing in series)
    yield from _rows(f"TLS {version} resumed, to ssl full", resumed, full[0], (RESUMED_GOAL, RESUMED_GOAL))
    for who, series in zip(WHO, resumed[1:], strict=True):
        yield _median_row(f"TLS {version} resumed, to ssl resumed, {who}, p50", series, resumed[0], "")


WHO = ("agent", "application")


def _rows(
    name: str, ours: Sequence[Sequence[Timing]], baseline: Sequence[Timing], goals: Sequence[str]
) -> Iterator[Row]:
    """Goals are about the median of the handshake itself; the rest informs."""
    for who, series, goal in zip(WHO, ours[1:], goals, strict=True):
        yield _median_row(f"{name}, {who}, p50", series, baseline, goal)
        slowest, local_slowest = (
            percentile((each.handshake for each in of), 99) for of in (series, baseline)
        )
        yield Row(f"{name}, {who}, p99", slowest, "ms", local_slowest)
        answer, local_answer = (median(each.answer for each in of) for of in (series, baseline))
        yield Row(f"{name}, {who}, with a small request, p50", answer, "ms", local_answer)
        yield Row(f"{name}, {who}, one after another", _rate(series), "1/s", _rate(baseline))


def _median_row(name: str, ours: Sequence[Timing], baseline: Sequence[Timing], goal: str) -> Row:
    value, yardstick = (median(timing.handshake for timing in series) for series in (ours, baseline))
    return Row(name, value, "ms", yardstick, goal)


def _slowest(series: Sequence[Timing]) -> float:
    return percentile((timing.handshake for timing in series), 99)


def _rate(series: Sequence[Timing]) -> float:
    return 1e3 * len(series) / sum(timing.handshake for timing in series)


class LocalClient:
    """Python's `ssl`."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._session: ssl.SSLSession | None = None

    def full(self, port: int) -> Timing:
        return self._run(port, None)

    def resumed(self, port: int) -> Timing:
        return self._run(port, self._session)

    def _run(self, port: int, resume: ssl.SSLSession | None) -> Timing:
        started = time.perf_counter()
        session = LocalSession(self._context, port, resume)
        shaken = time.perf_counter()
        session.send(REQUEST)
        session.receive()
        answered = time.perf_counter()
        timing = _timing(started, shaken, answered, bool(session.tls.session_reused))
        self._session = session.tls.session
        session.close()
        return timing


class AgentClient:
    """The agent's flow in this process, against the broker in its own."""

    def __init__(self, stack: Stack) -> None:
        self._loop = asyncio.new_event_loop()
        self._settings = SessionSettings(linger=0.2)
        self._loop.run_until_complete(self._set_up(stack))

    async def _set_up(self, stack: Stack) -> None:
        self._broker = BrokerClient(BrokerSettings(link=f"unix:{stack.broker_socket}"))
        self._tickets = TicketReturns(self._broker, TICKET_TIMEOUT)

    def full(self, port: int) -> Timing:
        return self._loop.run_until_complete(self._run(port, no_resumption=True))

    def resumed(self, port: int) -> Timing:
        return self._loop.run_until_complete(self._run(port, no_resumption=False))

    async def _run(self, port: int, *, no_resumption: bool) -> Timing:
        wish = HandshakeWish(SERVER_NAME, port, TOKEN, no_resumption=no_resumption)
        started = time.perf_counter()
        stream = await TlsStream.connect(
            Target("127.0.0.1", port, wish), self._broker, self._tickets, self._settings, TIMEOUT
        )
        shaken = time.perf_counter()
        await stream.write(REQUEST)
        await stream.read(65_536)
        answered = time.perf_counter()
        await stream.ticket_kept(TICKET_TIMEOUT)
        stream.close()
        return _timing(started, shaken, answered, stream.facts.resumed)

    def close(self) -> None:
        """End the connection to the broker."""
        self._loop.run_until_complete(self._tear_down())
        self._loop.close()

    async def _tear_down(self) -> None:
        await self._tickets.close()
        await self._broker.close()
        if left := asyncio.all_tasks() - {asyncio.current_task()}:  # streams that gRPC is still ending
            await asyncio.wait(left, timeout=TIMEOUT)


class ApplicationClient:
    """A blocking gRPC client of the agent."""

    def __init__(self, client: StackClient) -> None:
        self._client = client

    def full(self, port: int) -> Timing:
        return self._run(port, no_resumption=True)

    def resumed(self, port: int) -> Timing:
        return self._run(port, no_resumption=False)

    def _run(self, port: int, *, no_resumption: bool) -> Timing:
        started = time.perf_counter()
        session = self._client.connect_to(
            port, token=TOKEN, server_name=SERVER_NAME, no_resumption=no_resumption
        )
        shaken = time.perf_counter()
        session.send(REQUEST)
        session.receive()
        answered = time.perf_counter()
        session.close()
        return _timing(started, shaken, answered, session.resumed)


def _timing(started: float, shaken: float, answered: float, resumed: bool) -> Timing:
    return Timing((shaken - started) * 1e3, (answered - started) * 1e3, resumed)
