"""TokenService: what a VM may ask. One instance a VM; the link said who it is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from dom0_broker.admission import Pace
from dom0_broker.broker import Broker, HandshakeStream, TokenView
from dom0_broker.domains import DomainIdentity
from dom0_broker.steps import Completed, Cost, Failed, Flight, Outcome, StartRequest
from vmtoken.errors import InvalidRequest
from vmtoken.rpc import convert
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.v1 import token_pb2, token_service_pb2_grpc
from vmtoken.v1 import token_service_pb2 as pb
from vmtoken.version import VERSION

Context = grpc.aio.ServicerContext[Any, Any]


class TokenService(token_service_pb2_grpc.TokenServiceServicer):
    """Converts, calls the broker, converts."""

    def __init__(self, broker: Broker, caller: DomainIdentity, pace: Pace) -> None:
        self._broker = broker
        self._caller = caller
        self._pace = pace

    async def ListTokens(self, request: pb.ListTokensRequest, context: Context) -> pb.ListTokensResponse:
        """The tokens of the calling VM."""
        await self._pace.keep()
        views = await self._broker.tokens(self._caller)
        return pb.ListTokensResponse(tokens=map(_descriptor, views), broker_version=VERSION)

    async def GetCertificateChain(
        self, request: pb.GetCertificateChainRequest, context: Context
    ) -> pb.GetCertificateChainResponse:
        """The certificate chain of one of them."""
        await self._pace.keep()
        chain = await self._broker.certificate_chain(self._caller, request.token)
        return pb.GetCertificateChainResponse(certificates=chain)

    async def Handshake(
        self, request_iterator: AsyncIterator[pb.HandshakeRequest], context: Context
    ) -> AsyncIterator[pb.HandshakeResponse]:
        """Handshakes, one after another, until the agent ends the stream."""
        with self._broker.handshakes(self._caller) as stream:
            async for request in request_iterator:
                await self._pace.keep()
                if request.WhichOneof("step") == "abort":
                    stream.abort()
                else:
                    yield await _answer(stream, request)


async def _answer(stream: HandshakeStream, request: pb.HandshakeRequest) -> pb.HandshakeResponse:
    match request.WhichOneof("step"):
        case "server_records":
            return _response(await stream.records(request.server_records))
        case "start":
            return _response(await stream.start(_start_request(request.start)))
        case "ticket":
            accepted = await stream.ticket(request.ticket.session_id, request.ticket.message)
            return pb.HandshakeResponse(ticket=pb.TicketAnswer(accepted=accepted))
        case _:
            raise InvalidRequest("This broker does not know that kind of step; use an agent of its version.")


def _start_request(start: pb.HandshakeStart) -> StartRequest:
    return StartRequest(
        token=start.token,
        server_name=start.server_name,
        port=start.port,
        timeout=convert.seconds_from_pb(start.timeout),
        alpn=tuple(start.alpn),
        min_version=convert.version_from_pb(start.min_version, ProtocolVersion.TLS_1_2),
        max_version=convert.version_from_pb(start.max_version, ProtocolVersion.TLS_1_3),
        no_resumption=start.no_resumption,
    )


def _response(outcome: Outcome) -> pb.HandshakeResponse:
    match outcome:
        case Flight(records, cost):
            return pb.HandshakeResponse(flight=pb.ClientFlight(records=records), cost=_cost(cost))
        case Completed():
            return pb.HandshakeResponse(result=_result(outcome), cost=_cost(outcome.cost))
        case Failed(error, records, cost):
            failure = pb.HandshakeFailure(error=convert.error_to_pb(error), records=records)
            return pb.HandshakeResponse(failure=failure, cost=_cost(cost))


def _result(completed: Completed) -> pb.HandshakeResult:
    """The key block goes into the message, and its copy here is wiped."""
    result = completed.result
    message = pb.HandshakeResult(
        records=completed.records,
        key_block=convert.key_block_to_pb(result.key_block),
        session_id=completed.session_id,
        token=completed.token,
        assurance=convert.assurance_to_pb(completed.assurance),
        alpn=result.alpn or "",
        resumed=result.resumed,
        server_certificate=result.server.leaf,
        group=result.group or "",
        client_certificate_sent=result.client_certificate_sent,
        tickets_wanted=completed.tickets_wanted,
    )
    result.key_block.client_secret.wipe()
    result.key_block.server_secret.wipe()
    return message


def _cost(cost: Cost) -> pb.StepCost:
    return pb.StepCost(
        queue_microseconds=round(cost.queue * 1e6),
        token_microseconds=round(cost.in_token * 1e6),
        apdus=cost.apdus,
        apdu_octets=cost.apdu_octets,
    )


def _descriptor(view: TokenView) -> token_pb2.TokenDescriptor:
    not_after = view.certificate_not_after
    return token_pb2.TokenDescriptor(
        name=view.name,
        assurance=convert.assurance_to_pb(view.assurance),
        ready=not view.not_ready_because,
        not_ready_because=view.not_ready_because,
        certificate_subject=view.certificate_subject,
        certificate_not_after=int(not_after.timestamp()) if not_after else 0,
    )
