"""A broker without cards, queues and policy files: one VM, one token, real handshakes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from dom0_broker.engine import EngineHandshake
from tests.fakes.engine_token import EngineToken
from tests.support.pki import Identity
from vmtoken.errors import InvalidRequest, TokenNotFound, VmTokenError
from vmtoken.rpc.channel import private_server
from vmtoken.rpc.convert import assurance_to_pb, error_to_pb, key_block_to_pb, version_from_pb
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import Assurance, HandshakeFailed, HandshakeResult, HandshakeStart, HandshakeStep
from vmtoken.v1 import token_pb2
from vmtoken.v1 import token_service_pb2 as pb
from vmtoken.v1.token_service_pb2_grpc import TokenServiceServicer, add_TokenServiceServicer_to_server


class FakeBroker(TokenServiceServicer):
    """Serves one VM whose only token, `token`, holds `identity` and trusts its root.

    broker = FakeBroker(client_identity())
    await broker.serve(tmp_path / "broker.sock")
    broker.refusal = PinBlocked("...")      # every handshake from now on ends like that
    await broker.stop()                     # gone, as after a crash; `serve` again is a restart
    """

    def __init__(self, identity: Identity, token: str = "web01") -> None:
        self.identity = identity
        self.card = EngineToken(identity)
        self.token = token
        self.version = "1.0"
        self.refusal: VmTokenError | None = None
        self.refusal_after_hello: VmTokenError | None = None
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.streams = 0
        self.streams_opened = 0
        self.under_way = 0
        self.starts: list[pb.HandshakeStart] = []
        self.tickets: list[pb.SessionTicket] = []
        self.ticket_came = asyncio.Event()
        self._server: grpc.aio.Server | None = None

    async def serve(self, path: Path) -> None:
        self._server = private_server(path, "test", max_streams=1000)
        add_TokenServiceServicer_to_server(self, self._server)
        await self._server.start()

    async def stop(self) -> None:
        """End every stream at once."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace=None)

    def hold(self) -> None:
        """From now on a start is not answered before `open_gate` is set: the token is busy."""
        self.open_gate.clear()

    async def ListTokens(self, request: pb.ListTokensRequest, context: Any) -> pb.ListTokensResponse:
        token = token_pb2.TokenDescriptor(
            name=self.token,
            assurance=assurance_to_pb(Assurance.SOFTWARE),
            ready=True,
            certificate_subject=self.identity.certificate.subject.rfc4514_string(),
            certificate_not_after=int(self.identity.certificate.not_valid_after_utc.timestamp()),
        )
        return pb.ListTokensResponse(tokens=[token], broker_version=self.version)

    async def Handshake(
        self, request_iterator: AsyncIterator[pb.HandshakeRequest], context: Any
    ) -> AsyncIterator[pb.HandshakeResponse]:
        stream = _Stream(self)
        self.streams += 1
        self.streams_opened += 1
        try:
            async for request in request_iterator:
                response = await stream.answer(request)
                if response is not None:
                    yield response
        finally:
            self.streams -= 1
            stream.end()


class _Stream:
    """One stream: at most one handshake under way."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._handshake: EngineHandshake | None = None
        self._session_id = b""

    async def answer(self, request: pb.HandshakeRequest) -> pb.HandshakeResponse | None:
        match request.WhichOneof("step"):
            case "start":
                return await self._start(request.start)
            case "server_records":
                return self._process(request.server_records)
            case "ticket":
                return self._take_ticket(request.ticket)
            case "abort":
                self.end()
                return None
            case _:
                raise InvalidRequest("a step is missing")

    async def _start(self, start: pb.HandshakeStart) -> pb.HandshakeResponse:
        self._broker.starts.append(start)
        if self._handshake is not None:
            raise InvalidRequest("a handshake is under way on this stream")
        await self._broker.open_gate.wait()
        if self._broker.refusal is not None:
            return _failure(self._broker.refusal)
        if start.token not in {"", self._broker.token}:
            return _failure(TokenNotFound(f"no token '{start.token}' is bound to this VM"))
        self._handshake = self._broker.card.start(_start(start), no_resumption=start.no_resumption)
        self._session_id = os.urandom(16)
        self._broker.under_way += 1
        return self._answer(self._handshake.hello())

    def _process(self, records: bytes) -> pb.HandshakeResponse:
        if self._handshake is None:
            raise InvalidRequest("no handshake is under way on this stream")
        try:
            if self._broker.refusal_after_hello is not None:
                alert = bytes.fromhex("15 03 03 00 02 02 31")  # access_denied
                raise HandshakeFailed(self._broker.refusal_after_hello, alert)
            return self._answer(self._broker.card.step(self._session_id, self._handshake, records))
        except HandshakeFailed as failed:
            self.end()
            return _failure(failed.error, failed.alert_flight)

    def _take_ticket(self, ticket: pb.SessionTicket) -> pb.HandshakeResponse:
        self._broker.tickets.append(ticket)
        self._broker.ticket_came.set()
        accepted = self._broker.card.accept_ticket(ticket.session_id, ticket.message)
        return pb.HandshakeResponse(ticket=pb.TicketAnswer(accepted=accepted))

    def _answer(self, step: HandshakeStep) -> pb.HandshakeResponse:
        cost = pb.StepCost(apdus=2, apdu_octets=300, token_microseconds=500)
        if step.result is None:
            return pb.HandshakeResponse(flight=pb.ClientFlight(records=step.client_flight), cost=cost)
        self.end()
        return pb.HandshakeResponse(result=self._result(step.client_flight, step.result), cost=cost)

    def _result(self, records: bytes, result: HandshakeResult) -> pb.HandshakeResult:
        return pb.HandshakeResult(
            records=records,
            key_block=key_block_to_pb(result.key_block),
            session_id=self._session_id,
            token=self._broker.token,
            assurance=assurance_to_pb(Assurance.SOFTWARE),
            alpn=result.alpn or "",
            resumed=result.resumed,
            server_certificate=result.server.leaf,
            group=result.group or "",
            client_certificate_sent=result.client_certificate_sent,
            tickets_wanted=4,
        )

    def end(self) -> None:
        if self._handshake is not None:
            self._broker.under_way -= 1
        self._handshake = None


def _start(start: pb.HandshakeStart) -> HandshakeStart:
    return HandshakeStart(
        server_name=start.server_name,
        time=0,
        alpn=tuple(start.alpn),
        min_version=version_from_pb(start.min_version, ProtocolVersion.TLS_1_2),
        max_version=version_from_pb(start.max_version, ProtocolVersion.TLS_1_3),
    )


def _failure(error: VmTokenError, records: bytes = b"") -> pb.HandshakeResponse:
    return pb.HandshakeResponse(failure=pb.HandshakeFailure(error=error_to_pb(error), records=records))
