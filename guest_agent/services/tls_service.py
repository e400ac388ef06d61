"""TlsService: sessions for the applications of this VM. One instance a user; the socket said who it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import grpc.aio

from guest_agent.broker_client import HandshakeWish, Token
from guest_agent.handshake_flow import Target, TimelineStep
from guest_agent.peers import LocalUser
from guest_agent.sessions import Sessions
from guest_agent.tls_stream import TlsStream
from vmtoken.errors import DeadlineExceeded, InvalidRequest, VmTokenError
from vmtoken.rpc.convert import assurance_to_pb, version_from_pb, version_to_pb
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2
from vmtoken.v1.tls_service_pb2_grpc import TlsServiceServicer
from vmtoken.version import VERSION

Context = grpc.aio.ServicerContext[Any, Any]

MAX_DATA: Final = 262_144
"""Octets of data in one message (tls_service.proto)."""

_DELIVERY = 0.02
"""Seconds that an answer may take to its caller; with less than that to the deadline it is not sent."""

_DEFAULT_READ = 65_536
_MAX_ALPN = 32
_ANSWER_MARGIN = 0.1
"""Seconds before the caller's deadline by which we give up ourselves, so that the caller learns why."""


class TlsService(TlsServiceServicer):
    """Converts, calls, converts."""

    def __init__(self, sessions: Sessions, caller: LocalUser) -> None:
        self._sessions = sessions
        self._caller = caller

    async def ListTokens(
        self, request: pb.ListAgentTokensRequest, context: Context
    ) -> pb.ListAgentTokensResponse:
        """The tokens of this VM."""
        tokens = await self._sessions.tokens()
        return pb.ListAgentTokensResponse(
            tokens=map(_descriptor, tokens),
            agent_version=VERSION,
            broker_version=self._sessions.broker_version,
        )

    async def Connect(self, request: pb.ConnectRequest, context: Context) -> pb.ConnectResponse:
        """Open a session."""
        session_id, stream = await self._sessions.open(self._caller, _target(request), _patience(context))
        try:
            await self._still_wanted(context)
        except BaseException:
            self._sessions.discard(self._caller, session_id)
            raise
        self._watch_delivery(context, session_id)
        return pb.ConnectResponse(session=_info(session_id, stream))

    async def _still_wanted(self, context: Context) -> None:
        """A session that nobody hears of would stay open: look whether the caller is still there."""
        for _ in range(2):
            await asyncio.sleep(0)  # where a cancellation that has arrived meets us
        left = context.time_remaining()
        if left is not None and left < _DELIVERY:
            raise DeadlineExceeded("The session was open too late for its answer to arrive in time.")

    def _watch_delivery(self, context: Context, session_id: str) -> None:
        """Close the session if the deadline passes while its answer is on the way."""

        def ended(context: Context) -> None:
            if context.time_remaining() == 0:
                self._sessions.discard(self._caller, session_id)

        context.add_done_callback(ended)  # type: ignore[arg-type]  # the stub takes the protocol for a class

    async def Read(self, request: pb.ReadRequest, context: Context) -> pb.ReadResponse:
        """Wait for data from the server."""
        if request.max_octets > MAX_DATA:
            raise InvalidRequest(f"The field max_octets is {request.max_octets}; the most is {MAX_DATA}.")
        stream = self._sessions.find(self._caller, request.session_id)
        data = await stream.read(request.max_octets or _DEFAULT_READ)
        return pb.ReadResponse(data=data, end=not data)

    async def Write(self, request: pb.WriteRequest, context: Context) -> pb.WriteResponse:
        """Send data to the server."""
        stream = self._sessions.find(self._caller, request.session_id)
        await stream.write(_checked(request.data))
        return pb.WriteResponse()

    async def Close(self, request: pb.CloseRequest, context: Context) -> pb.CloseResponse:
        """End a session, or its sending half."""
        if request.half:
            await self._sessions.find(self._caller, request.session_id).end_write()
        else:
            await self._sessions.close(self._caller, request.session_id, await_ticket=request.await_ticket)
        return pb.CloseResponse()

    async def Tunnel(
        self, request_iterator: AsyncIterator[pb.TunnelRequest], context: Context
    ) -> AsyncIterator[pb.TunnelResponse]:
        """A session as a stream of data in both directions; it ends with the call."""
        session_id = await self._tunnel_session(request_iterator, context)
        with self._sessions.borrowed(self._caller, session_id) as stream:
            yield pb.TunnelResponse(session=_info(session_id, stream))
            sending = asyncio.create_task(_send_all(stream, request_iterator))
            try:
                while data := await stream.read(MAX_DATA):
                    yield pb.TunnelResponse(data=data)
                yield pb.TunnelResponse(end=pb.ServerEnd())
                await sending
            except VmTokenError:
                if sending.done():
                    sending.result()  # what was wrong with the requests comes before what came of it
                raise
            finally:
                sending.cancel()

    async def _tunnel_session(self, requests: AsyncIterator[pb.TunnelRequest], context: Context) -> str:
        async for first in requests:
            match first.WhichOneof("step"):
                case "connect":
                    timeout = _patience(context)
                    session_id, _ = await self._sessions.open(self._caller, _target(first.connect), timeout)
                    return session_id
                case "session_id":
                    return first.session_id
                case _:
                    break
        raise InvalidRequest("The first message of a tunnel must be connect or session_id.")


async def _send_all(stream: TlsStream, requests: AsyncIterator[pb.TunnelRequest]) -> None:
    """Send what the application sends; the end of its stream is the half-close."""
    try:
        async for request in requests:
            if request.WhichOneof("step") != "data":
                raise InvalidRequest("After its first message a tunnel takes data only.")
            await stream.write(_checked(request.data))
        await stream.end_write()
    except VmTokenError:
        stream.abort()  # wakes the reader; what is already read still goes to the application
        raise


def _target(request: pb.ConnectRequest) -> Target:
    host = _host(request.host, "host")
    if not 0 < request.port < 65_536:
        raise InvalidRequest(f"The field port is {request.port}; it must be 1 to 65535.")
    wish = HandshakeWish(
        server_name=_host(request.server_name, "server_name") if request.server_name else host,
        port=request.port,
        token=request.token,
        alpn=_alpn(request.alpn),
        min_version=version_from_pb(request.min_version, ProtocolVersion.TLS_1_2),
        max_version=version_from_pb(request.max_version, ProtocolVersion.TLS_1_3),
        no_resumption=request.no_resumption,
    )
    if wish.min_version > wish.max_version:
        raise InvalidRequest("The field min_version is above max_version; exchange them.")
    return Target(host, request.port, wish, request.trace)


def _host(untrusted: str, field: str) -> str:
    """A name or address that can go into a query. DNS names have at most 253 octets (RFC 1035)."""
    name = untrusted.removesuffix(".")
    if not 0 < len(name) <= 253:
        raise InvalidRequest(
            f"The field {field} is empty or longer than 253 octets; give a host name or an IP address."
        )
    if not (name.isascii() and name.isprintable()) or any(letter in name for letter in " /@[]"):
        raise InvalidRequest(
            f"The field {field} is no host name; write an international name in its xn-- form, "
            "and an IPv6 address without brackets."
        )
    return name


def _alpn(untrusted: Sequence[str]) -> tuple[str, ...]:
    """Protocol names of 1 to 255 octets (RFC 7301 section 3.1)."""
    if len(untrusted) > _MAX_ALPN or not all(0 < len(name.encode()) < 256 for name in untrusted):
        raise InvalidRequest(f"The field alpn takes at most {_MAX_ALPN} names of 1 to 255 octets.")
    return tuple(untrusted)


def _checked(data: bytes) -> bytes:
    if len(data) > MAX_DATA:
        raise InvalidRequest(f"A message holds {len(data)} octets of data; the most is {MAX_DATA}.")
    return data


def _patience(context: Context) -> float | None:
    """Seconds to the caller's deadline, less what it takes to say why; None without a deadline."""
    left = context.time_remaining()
    return None if left is None else max(left - _ANSWER_MARGIN, left / 2)


def _info(session_id: str, stream: TlsStream) -> pb.SessionInfo:
    facts = stream.facts
    return pb.SessionInfo(
        session_id=session_id,
        version=version_to_pb(facts.version),
        cipher_suite=facts.cipher_suite.name,
        group=facts.group,
        alpn=facts.alpn,
        resumed=facts.resumed,
        assurance=assurance_to_pb(facts.assurance),
        token=facts.token,
        server_certificate=facts.server_certificate,
        client_certificate_sent=facts.client_certificate_sent,
        peer=facts.peer,
        timeline=map(_step, facts.timeline),
        broker_session_id=facts.broker_session_id,
    )


def _step(step: TimelineStep) -> pb.TimelineStep:
    return pb.TimelineStep(
        name=step.name,
        at_microseconds=step.at_microseconds,
        sent=step.sent,
        received=step.received,
        apdus=step.cost.apdus,
        apdu_octets=step.cost.apdu_octets,
        queue_microseconds=step.cost.queue_microseconds,
        token_microseconds=step.cost.token_microseconds,
        sent_records=step.sent_records,
        received_records=step.received_records,
    )


def _descriptor(token: Token) -> token_pb2.TokenDescriptor:
    return token_pb2.TokenDescriptor(
        name=token.name,
        assurance=assurance_to_pb(token.assurance),
        ready=token.ready,
        not_ready_because=token.not_ready_because,
        certificate_subject=token.certificate_subject,
        certificate_not_after=token.certificate_not_after,
    )
