"""The broker as typed async methods: tokens, handshakes on warm streams, tickets.

A message on a stream that is open costs a third of a millisecond, a new stream several times
that. So streams are opened ahead, kept, and used for one handshake after another.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio

from guest_agent.config import BrokerSettings, TcpLink, UnixLink, VchanLink, parse_link
from guest_agent.vchan_relay import VchanRelay, Xen
from vmtoken.errors import BrokerUnavailable, DeadlineExceeded, TokenBusy, VmTokenError
from vmtoken.rpc.channel import tls_channel, unix_channel
from vmtoken.rpc.convert import (
    assurance_from_pb,
    error_from_pb,
    key_block_from_pb,
    seconds_to_pb,
    version_to_pb,
)
from vmtoken.rpc.status import from_rpc_error
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.tls.key_block import KeyBlock
from vmtoken.token import Assurance
from vmtoken.v1 import token_service_pb2 as pb
from vmtoken.v1.token_service_pb2_grpc import TokenServiceStub

Result = TypeVar("Result")
_Call = grpc.aio.StreamStreamCall[pb.HandshakeRequest, pb.HandshakeResponse]

RETRY_AFTER = 1.0
"""Seconds after which it is worth asking again for a broker that is away."""

_MOST_IDLE = 16
"""Streams kept after a crowd: a handshake and its tickets use three, an idle one costs next to nothing."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0
"""Seconds between attempts to begin a handshake while the broker restarts."""

_ANSWER_MARGIN = 0.25
"""Seconds by which we outlast the time given to the broker: its own refusal says more than ours."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token of this VM; see `TokenDescriptor` in token.proto."""

    name: str
    assurance: Assurance
    ready: bool
    not_ready_because: str
    certificate_subject: str
    certificate_not_after: int


@dataclass(frozen=True, slots=True)
class HandshakeWish:
    """What a handshake begins with; see `HandshakeStart` in token_service.proto."""

    server_name: str
    port: int
    token: str = ""
    alpn: tuple[str, ...] = ()
    min_version: ProtocolVersion = ProtocolVersion.TLS_1_2
    max_version: ProtocolVersion = ProtocolVersion.TLS_1_3
    no_resumption: bool = False


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step cost on the broker's side."""

    queue_microseconds: int = 0
    token_microseconds: int = 0
    apdus: int = 0
    apdu_octets: int = 0


FREE = StepCost()
"""What a step costs that the broker has no part in."""


@dataclass(frozen=True, slots=True)
class Flight:
    """Records for the server; empty when the token needs more of the server's records."""

    records: bytes
    cost: StepCost


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """The handshake is complete; see `HandshakeResult` in token_service.proto."""

    records: bytes
    cost: StepCost
    key_block: KeyBlock
    session_id: bytes
    token: str
    assurance: Assurance
    alpn: str
    resumed: bool
    server_certificate: bytes
    group: str
    client_certificate_sent: bool
    tickets_wanted: int


class HandshakeRefused(Exception):
    """The handshake is over. `records` (an alert, or nothing) must still be sent to the server."""

    def __init__(self, error: VmTokenError, records: bytes = b"") -> None:
        super().__init__(error.message)
        self.error = error
        self.records = records


class BrokerClient:
    """A connection to the broker that mends itself; made inside a running event loop."""

    def __init__(self, settings: BrokerSettings, *, xen: Xen | None = None) -> None:
        link = parse_link(settings.link)
        self._relay = VchanRelay(link, xen) if isinstance(link, VchanLink) else None
        self._channel = unix_channel(self._relay.path) if self._relay else _channel(settings)
        self._stub = TokenServiceStub(self._channel)
        self._settings = settings
        self._turns = asyncio.Semaphore(settings.handshakes)
        self._idle: deque[_HandshakeStream] = deque()
        self._closed = False
        self.broker_version = ""
        """Of the broker that told its tokens last; empty when it did not say."""

    async def tokens(self, timeout: float) -> list[Token]:
        """The tokens of this VM, by name. Raises `BrokerUnavailable`."""
        call = self._stub.ListTokens(
            pb.ListTokensRequest(), timeout=min(timeout, self._settings.connect_timeout), wait_for_ready=True
        )
        try:
            response = await call
        except grpc.aio.AioRpcError as error:
            raise _broker_error(error) from error
        self.broker_version = response.broker_version
        return [
            Token(
                name=token.name,
                assurance=assurance_from_pb(token.assurance),
                ready=token.ready,
                not_ready_because=token.not_ready_because,
                certificate_subject=token.certificate_subject,
                certificate_not_after=token.certificate_not_after,
            )
            for token in response.tokens
        ]

    @asynccontextmanager
    async def handshake(self) -> AsyncIterator[Handshake]:
        """A handshake on a warm stream; left early, it is aborted at the broker too.

        Waits for its turn when as many as configured are under way.
        """
        async with self._turns:
            handshake = Handshake(self)
            try:
                yield handshake
            finally:
                handshake.leave()

    async def give_back_ticket(self, session_id: bytes, message: bytes) -> bool:
        """Hand a NewSessionTicket to the token; true when the next handshake may resume."""
        ticket = pb.SessionTicket(session_id=session_id, message=message)
        async with self._turns:
            stream = await self.take_stream(self.patience)
            try:
                answer = await stream.exchange(pb.HandshakeRequest(ticket=ticket))
            except BaseException:
                stream.cancel()
                raise
            self.give_stream(stream)
        return answer.ticket.accepted

    def warm_up(self) -> None:
        """Open the streams that are kept ahead of use; does not wait for the broker."""
        self._refill()

    async def close(self) -> None:
        """End every stream and the connection."""
        self._closed = True
        while self._idle:
            self._idle.popleft().cancel()
        await self._channel.close()
        if self._relay is not None:
            await self._relay.close()

    @property
    def patience(self) -> float:
        """Seconds to wait for a broker that is away."""
        return self._settings.connect_timeout

    async def take_stream(self, timeout: float) -> _HandshakeStream:
        """An open stream, warm if there is one. Raises `BrokerUnavailable`."""
        stream = self._warm_stream() or self._open()
        self._refill()
        try:
            await _in_time(stream.connected(), min(timeout, self.patience))
        except TimeoutError:
            stream.cancel()
            raise _away() from None
        except BaseException:
            stream.cancel()
            raise
        return stream

    def give_stream(self, stream: _HandshakeStream) -> None:
        """Keep a stream on which no handshake is under way."""
        if self._closed or stream.dead or len(self._idle) >= max(self._settings.warm_streams, _MOST_IDLE):
            stream.cancel()
        else:
            self._idle.append(stream)

    def _warm_stream(self) -> _HandshakeStream | None:
        while self._idle:
            stream = self._idle.pop()
            if not stream.dead:
                return stream
        return None

    def _refill(self) -> None:
        self._idle = deque(stream for stream in self._idle if not stream.dead)
        while not self._closed and len(self._idle) < self._settings.warm_streams:
            self._idle.appendleft(self._open())

    def _open(self) -> _HandshakeStream:
        return _HandshakeStream(self._stub.Handshake(wait_for_ready=True))


class Handshake:
    """One handshake: `start`, then `process` until it gives a `HandshakeResult`."""

    def __init__(self, client: BrokerClient) -> None:
        self._client = client
        self._stream: _HandshakeStream | None = None
        self._under_way = False

    async def start(self, wish: HandshakeWish, timeout: float) -> Flight:
        """Begin; the flight is the ClientHello. `timeout` is for the whole handshake, in seconds.

        Begins again when the link breaks here: nothing was sent to the server yet. Raises
        `HandshakeRefused`, `BrokerUnavailable` or `TokenBusy`.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        last_try = clock() + self._client.patience
        pause = 0.0
        while True:
            try:
                return await self._try_start(wish, deadline - clock())
            except BrokerUnavailable:
                self.leave()
                if clock() + pause >= min(deadline, last_try):
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause + _FIRST_PAUSE, _LONGEST_PAUSE)

    async def _try_start(self, wish: HandshakeWish, left: float) -> Flight:
        self._stream = await self._client.take_stream(left)
        try:
            flight = await self._step(_start_request(wish, max(left - _ANSWER_MARGIN, left / 2)), left)
        except TimeoutError:
            message = "The broker had no answer before the deadline."
            raise TokenBusy(message, retry_after=RETRY_AFTER) from None
        assert isinstance(flight, Flight)
        return flight

    async def process(self, server_records: bytes, timeout: float) -> Flight | HandshakeResult:
        """Hand over whole records from the server; at most 64 KiB.

        Raises `HandshakeRefused`, `BrokerUnavailable` or `DeadlineExceeded`.
        """
        try:
            return await self._step(pb.HandshakeRequest(server_records=server_records), timeout)
        except TimeoutError:
            raise DeadlineExceeded("The token did not finish the handshake before the deadline.") from None

    def leave(self) -> None:
        """Give the stream back; a handshake that is under way is lost with its stream."""
        stream, self._stream = self._stream, None
        if stream is None:
            return
        if self._under_way:
            stream.cancel()
        else:
            self._client.give_stream(stream)

    async def _step(self, request: pb.HandshakeRequest, timeout: float) -> Flight | HandshakeResult:
        assert self._stream is not None
        self._under_way = True
        response = await _in_time(self._stream.exchange(request), timeout)
        outcome = _outcome(response)
        self._under_way = isinstance(outcome, Flight)
        if isinstance(outcome, HandshakeRefused):
            raise outcome
        return outcome


class _HandshakeStream:
    """One `Handshake` call to the broker; a request, then its response."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self.was_used = False

    @property
    def dead(self) -> bool:
        return self._call.done()

    async def connected(self) -> None:
        """Wait until the call is on its way to the broker."""
        if self.was_used:
            return
        try:
            await self._call.wait_for_connection()
        except grpc.aio.AioRpcError as error:
            raise _broker_error(error) from error

    async def exchange(self, request: pb.HandshakeRequest) -> pb.HandshakeResponse:
        """Send one step and wait for its answer. Cancelled, it ends the stream."""
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise _lost() from error  # gRPC calls it an internal error when the call ended before
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _broker_error(error) from error
        if not isinstance(response, pb.HandshakeResponse):
            raise _lost()
        self.was_used = True
        return response

    def cancel(self) -> None:
        self._call.cancel()


def _channel(settings: BrokerSettings) -> grpc.aio.Channel:
    link = parse_link(settings.link)
    if isinstance(link, UnixLink):
        return unix_channel(link.path)
    assert isinstance(link, TcpLink), "a vchan has a relay"
    enrolment = settings.enrolment
    assert enrolment is not None  # checked when the settings were made
    return tls_channel(
        f"{link.host}:{link.port}" if ":" not in link.host else f"[{link.host}]:{link.port}",
        ca=enrolment.ca.read_bytes(),
        certificate=enrolment.certificate.read_bytes(),
        key=enrolment.key.read_bytes(),
        server_name=enrolment.server_name or None,
    )


def _start_request(wish: HandshakeWish, timeout: float) -> pb.HandshakeRequest:
    return pb.HandshakeRequest(
        start=pb.HandshakeStart(
            token=wish.token,
            server_name=wish.server_name,
            port=wish.port,
            alpn=wish.alpn,
            min_version=version_to_pb(wish.min_version),
            max_version=version_to_pb(wish.max_version),
            timeout=seconds_to_pb(timeout),
            no_resumption=wish.no_resumption,
        )
    )


def _outcome(response: pb.HandshakeResponse) -> Flight | HandshakeResult | HandshakeRefused:
    match response.WhichOneof("step"):
        case "flight":
            return Flight(response.flight.records, _cost(response.cost))
        case "result":
            return _result(response.result, _cost(response.cost))
        case "failure":
            return HandshakeRefused(error_from_pb(response.failure.error), response.failure.records)
        case step:
            return HandshakeRefused(VmTokenError(f"The broker answered a handshake with '{step}'."))


def _result(result: pb.HandshakeResult, cost: StepCost) -> HandshakeResult | HandshakeRefused:
    try:
        key_block = key_block_from_pb(result.key_block)
    except ValueError as error:
        return HandshakeRefused(VmTokenError(f"The broker gave a key block that does not fit: {error}."))
    return HandshakeResult(
        records=result.records,
        cost=cost,
        key_block=key_block,
        session_id=result.session_id,
        token=result.token,
        assurance=assurance_from_pb(result.assurance),
        alpn=result.alpn,
        resumed=result.resumed,
        server_certificate=result.server_certificate,
        group=result.group,
        client_certificate_sent=result.client_certificate_sent,
        tickets_wanted=result.tickets_wanted,
    )


def _cost(cost: pb.StepCost) -> StepCost:
    return StepCost(cost.queue_microseconds, cost.token_microseconds, cost.apdus, cost.apdu_octets)


async def _in_time(awaitable: Awaitable[Result], seconds: float) -> Result:
    async with asyncio.timeout(max(seconds, 0)):
        return await awaitable


def _broker_error(error: grpc.aio.AioRpcError) -> VmTokenError:
    """Our error for a failed call; what gRPC says of a connection is not for people."""
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return _away()
    ours = from_rpc_error(error)
    return _lost() if type(ours) is BrokerUnavailable else ours


def _away() -> BrokerUnavailable:
    return BrokerUnavailable(
        "The broker does not answer; check that vmtoken-broker runs in dom0 and that the link is up.",
        retry_after=RETRY_AFTER,
    )


def _lost() -> BrokerUnavailable:
    return BrokerUnavailable(
        "The link to the broker broke before the handshake was complete; try again.", retry_after=RETRY_AFTER
    )
