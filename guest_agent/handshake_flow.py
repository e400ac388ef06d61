"""The handshake as the agent sees it: whole records between a server's socket and the broker.

The agent reads nothing but record headers. TCP and the broker's ClientHello are had side by
side; then the two sides take turns until the broker gives the key block.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from guest_agent.broker_client import (
    FREE,
    BrokerClient,
    Flight,
    Handshake,
    HandshakeRefused,
    HandshakeResult,
    HandshakeWish,
    StepCost,
)
from guest_agent.early_records import early_records
from guest_agent.record_socket import NotTls, RecordSocket, open_record_socket
from vmtoken.errors import DeadlineExceeded, TlsHandshakeFailed, VmTokenError

_FAILURE_LINGER = 1.0
"""Seconds that a server gets to read our alert before the connection is closed."""


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to connect to, and how."""

    host: str
    port: int
    wish: HandshakeWish
    trace: bool = False
    """Whether the timeline holds the records too."""


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """One step of a handshake; see `TimelineStep` in tls_service.proto."""

    name: str
    at_microseconds: int
    sent: int = 0
    received: int = 0
    cost: StepCost = FREE
    sent_records: bytes = b""
    received_records: bytes = b""


@dataclass(frozen=True, slots=True)
class Opened:
    """A handshake that is complete."""

    connection: RecordSocket
    result: HandshakeResult
    timeline: tuple[TimelineStep, ...]
    early_records: bytes
    """Records of the session that came with the server's last flight."""


async def open_session(target: Target, broker: BrokerClient, timeout: float) -> Opened:
    """Run one handshake within `timeout` seconds.

    Raises `ServerUnreachable`, `BrokerUnavailable`, `DeadlineExceeded`, `TlsHandshakeFailed` or
    whatever the broker refused with. Whatever happens, an alert of the token reaches the server.
    """
    flow = _Flow(target, timeout)
    try:
        async with asyncio.timeout(timeout):
            return await flow.run(broker)
    except TimeoutError:
        raise DeadlineExceeded(
            f"The deadline of {timeout:.3g} s passed while waiting for {flow.waiting_for}.",
            waiting_for=flow.waiting_for,
        ) from None


class _Flow:
    def __init__(self, target: Target, timeout: float) -> None:
        self._target = target
        self._started = time.monotonic()
        self._deadline = self._started + timeout
        self._timeline: list[TimelineStep] = []
        self.waiting_for = "other handshakes to end"

    async def run(self, broker: BrokerClient) -> Opened:
        async with broker.handshake() as handshake:
            connection, hello = await self._begin(handshake)
            try:
                return await self._converse(handshake, connection, hello)
            except HandshakeRefused as refused:
                connection.send(refused.records)
                connection.close_gently(_FAILURE_LINGER)
                raise refused.error from refused
            except BaseException:
                connection.abort()
                raise

    async def _begin(self, handshake: Handshake) -> tuple[RecordSocket, Flight]:
        """TCP and the ClientHello side by side; one that fails ends the other."""
        self.waiting_for = f"TCP to {self._target.host} port {self._target.port} and the token"
        starting = asyncio.create_task(self._start(handshake))  # first: it takes longer
        connecting = asyncio.create_task(self._connect())
        try:
            done, _ = await asyncio.wait({connecting, starting}, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            return connecting.result(), starting.result()
        except BaseException:
            _undo(connecting, starting)
            raise

    async def _connect(self) -> RecordSocket:
        connection = await open_record_socket(self._target.host, self._target.port)
        self._mark("TCP")
        self.waiting_for = "the token"
        return connection

    async def _start(self, handshake: Handshake) -> Flight:
        try:
            flight = await handshake.start(self._target.wish, self._left)
        except HandshakeRefused as refused:
            raise refused.error from refused
        self.waiting_for = f"TCP to {self._target.host} port {self._target.port}"
        return flight

    async def _converse(self, handshake: Handshake, connection: RecordSocket, hello: Flight) -> Opened:
        step: Flight | HandshakeResult = hello
        name, records = "ClientHello", b""
        while True:
            connection.send(step.records)
            self._mark(name, sent=step.records, received=records, cost=step.cost)
            if isinstance(step, HandshakeResult):
                early = early_records(step.key_block, records)
                return Opened(connection, step, tuple(self._timeline), early)
            self.waiting_for = "the server's answer"
            records = await self._server_records(connection)
            self.waiting_for = "the token"
            step = await handshake.process(records, self._left)
            name = _step_name(step)

    async def _server_records(self, connection: RecordSocket) -> bytes:
        try:
            return await connection.read_records()
        except EOFError:
            raise _server_left(connection) from None
        except NotTls as error:
            raise TlsHandshakeFailed(error.message) from None

    def _mark(self, name: str, sent: bytes = b"", received: bytes = b"", cost: StepCost = FREE) -> None:
        trace = self._target.trace
        self._timeline.append(
            TimelineStep(
                name,
                round((time.monotonic() - self._started) * 1e6),
                len(sent),
                len(received),
                cost,
                sent if trace else b"",
                received if trace else b"",
            )
        )

    @property
    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.0)


def _undo(connecting: asyncio.Task[RecordSocket], starting: asyncio.Task[Flight]) -> None:
    """Without waiting: whoever cancels us may do so twice."""
    connecting.add_done_callback(_drop_connection)
    starting.add_done_callback(_drop)
    for task in (connecting, starting):
        task.cancel()


def _drop_connection(connecting: asyncio.Task[RecordSocket]) -> None:
    if _drop(connecting):
        connecting.result().abort()


def _drop(task: asyncio.Task[Any]) -> bool:
    """True when there is a result after all; an error that nobody wants any more is taken note of."""
    return not task.cancelled() and task.exception() is None


def _step_name(step: Flight | HandshakeResult) -> str:
    if isinstance(step, HandshakeResult):
        return "key block"
    return "client flight" if step.records else "server records"


def _server_left(connection: RecordSocket) -> VmTokenError:
    how = "reset" if connection.error is not None else "closed"
    if connection.octets_received == 0:
        return TlsHandshakeFailed(
            f"The server {how} the connection without an answer; check that it is a server of TLS 1.2 or 1.3."
        )
    return TlsHandshakeFailed(f"The server {how} the connection in the middle of the handshake.")
