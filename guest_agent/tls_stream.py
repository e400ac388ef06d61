"""A TLS session with a server: the handshake was a token's, the records are ours.

The names of the talk that this system comes from are `TLS-connect`, `TLS-read` and `TLS-write`;
here they are `TlsStream.connect`, `read` and `write`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Final

from guest_agent.broker_client import BrokerClient, HandshakeResult
from guest_agent.config import SessionSettings
from guest_agent.handshake_flow import Opened, Target, TimelineStep, open_session
from guest_agent.tickets import TicketReturns
from vmtoken.errors import (
    ClientCertificateRefused,
    SessionBroken,
    SessionNotFound,
    SessionTruncated,
    VmTokenError,
)
from vmtoken.tls.codes import AlertDescription, CipherSuite, ProtocolVersion, name_of
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.errors import AlertReceived, TlsError
from vmtoken.tls.events import Closed, DataReceived, NeedData, TicketReceived
from vmtoken.token import Assurance

_REFUSALS: Final = frozenset(
    {
        AlertDescription.HANDSHAKE_FAILURE,
        AlertDescription.BAD_CERTIFICATE,
        AlertDescription.UNSUPPORTED_CERTIFICATE,
        AlertDescription.CERTIFICATE_REVOKED,
        AlertDescription.CERTIFICATE_EXPIRED,
        AlertDescription.CERTIFICATE_UNKNOWN,
        AlertDescription.UNKNOWN_CA,
        AlertDescription.ACCESS_DENIED,
        AlertDescription.DECRYPT_ERROR,
        AlertDescription.CERTIFICATE_REQUIRED,
    }
)
"""How a server says that it does not take the client's certificate, or the lack of one."""


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What a session is; see `SessionInfo` in tls_service.proto."""

    version: ProtocolVersion
    cipher_suite: CipherSuite
    group: str
    alpn: str
    resumed: bool
    assurance: Assurance
    token: str
    server_certificate: bytes
    client_certificate_sent: bool
    peer: str
    timeline: tuple[TimelineStep, ...]
    broker_session_id: bytes


class TlsStream:
    """One session. Made by `connect`; ended by `close` or `abort`.

    `read` and `write` raise `ClientCertificateRefused`, `SessionTruncated` or `SessionBroken` once
    the session is over in another way than by close_notify.
    """

    def __init__(self, opened: Opened, settings: SessionSettings, tickets: TicketReturns) -> None:
        self.facts = _facts(opened)
        self.last_used = asyncio.get_running_loop().time()
        self._socket = opened.connection
        self._records = DelegatedConnection(opened.result.key_block)
        self._settings = settings
        self._tickets = tickets
        self._tickets_left = opened.result.tickets_wanted
        self._awaits_ticket = self._tickets_left > 0
        self._first_ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._plaintext: deque[bytes] = deque()
        self._buffered = 0
        self._any_data = False
        self._server_ended = False
        self._write_ended = False
        self._closed = False
        self._broken = False
        self._failure: VmTokenError | None = None
        self._arrival: asyncio.Future[None] | None = None
        self._reading = asyncio.Lock()
        self._writing = asyncio.Lock()
        if opened.early_records:
            self._receive(memoryview(opened.early_records))
        self._socket.hand_over(self._receive, self._connection_ended)

    @classmethod
    async def connect(
        cls,
        target: Target,
        broker: BrokerClient,
        tickets: TicketReturns,
        settings: SessionSettings,
        timeout: float,
    ) -> TlsStream:
        """Open a session within `timeout` seconds; raises what `open_session` raises."""
        return cls(await open_session(target, broker, timeout), settings, tickets)

    async def read(self, limit: int) -> bytes:
        """At least one and at most `limit` octets of plaintext; none when the server said close_notify."""
        async with self._reading:
            while not self._plaintext:
                if self._server_ended:
                    return b""
                self._check()
                await self._next_arrival()
            self._touch()
            return self._take(limit)

    async def write(self, data: bytes) -> None:
        """Encrypt and send; returns when TCP has taken it all."""
        async with self._writing:
            self._check()
            if self._write_ended:
                raise SessionBroken("The sending half of this session is closed already.")
            self._touch()
            self._encrypt(data)
            self._flush()
            await self._socket.drain()
            self._check()

    async def end_write(self) -> None:
        """Send close_notify and go on reading (RFC 8446 section 6.1)."""
        async with self._writing:
            self._check()
            self._say_goodbye()
            await self._socket.drain()

    async def ticket_kept(self, timeout: float) -> None:
        """Wait until the next session can resume: a ticket was given back, or the broker wants none.

        Waits no longer than `timeout` seconds, and not beyond the end of the session.
        """
        if not self._awaits_ticket:
            return
        ends = [self._first_ticket, self._socket.closed]
        await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    def close(self) -> None:
        """Send close_notify and end; tickets that are still to come are taken in the background."""
        if self._closed:
            return
        self._closed = True
        self._plaintext.clear()
        if self._failure is None:
            self._say_goodbye()
        if self._server_ended or self._failure is not None:
            self._socket.close_gently(self._settings.linger)
        else:
            self._socket.end_write(self._settings.linger)
        self._fail(SessionNotFound("The session was closed."))

    def abort(self) -> None:
        """End without another word."""
        self._closed = True
        self._fail(SessionNotFound("The session was closed."))
        self._socket.abort()

    @property
    def is_over(self) -> bool:
        """True when neither direction can carry anything more."""
        return self._failure is not None or (self._server_ended and self._write_ended)

    # What the server sends.

    def _receive(self, octets: memoryview) -> None:
        if self._done_receiving():
            return
        try:
            self._records.receive_data(octets)
            self._take_events()
        except AlertReceived as alert:
            self._break(self._alert_meaning(alert))
        except TlsError as error:
            self._break(SessionBroken(f"The session broke: {error}."))
        self._flush()
        if self._closed and self._done_receiving():
            self._socket.close()
        elif self._broken:
            self._socket.close_gently(self._settings.linger)
        self._wake()

    def _done_receiving(self) -> bool:
        return self._broken or self._server_ended

    def _take_events(self) -> None:
        while True:
            match self._records.next_event():
                case DataReceived(data):
                    self._any_data = True
                    self._keep(data)
                case TicketReceived(message):
                    self._give_ticket_back(message)
                case Closed():
                    self._server_ended = True
                    return
                case NeedData():
                    return

    def _keep(self, data: bytes) -> None:
        if self._closed:
            return
        self._plaintext.append(data)
        self._buffered += len(data)
        if self._buffered >= self._settings.receive_buffer:
            self._socket.pause()

    def _take(self, limit: int) -> bytes:
        taken, size = [], 0
        while self._plaintext and size < limit:
            piece = self._plaintext.popleft()
            if len(piece) > limit - size:
                self._plaintext.appendleft(piece[limit - size :])
                piece = piece[: limit - size]
            taken.append(piece)
            size += len(piece)
        self._buffered -= size
        if self._buffered < self._settings.receive_buffer // 2:
            self._socket.resume()
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def _give_ticket_back(self, message: bytes) -> None:
        if self._tickets_left == 0:
            return
        self._tickets_left -= 1
        task = self._tickets.give_back(self.facts.broker_session_id, message)
        if task is not None:
            task.add_done_callback(self._ticket_done)

    def _ticket_done(self, _: asyncio.Task[bool]) -> None:
        if not self._first_ticket.done():
            self._first_ticket.set_result(None)

    def _connection_ended(self) -> None:
        if not self._server_ended:
            how = "was reset" if self._socket.error is not None else "ended"
            self._fail(SessionTruncated(f"TCP {how} without the server's close_notify; data may be missing."))
        if self._closed:
            self._socket.close()
        self._wake()

    def _alert_meaning(self, alert: AlertReceived) -> VmTokenError:
        name = name_of(AlertDescription, alert.description).lower()
        early = self.facts.version is ProtocolVersion.TLS_1_3 and not self._any_data
        if early and alert.description in _REFUSALS:
            what = (
                "refused the client certificate"
                if self.facts.client_certificate_sent
                else "demands a client certificate"
            )
            return ClientCertificateRefused(f"The server {what}: alert {name}.", alert=name)
        return SessionBroken(f"The server ended the session with the alert {name}.", alert=name)

    # Housekeeping.

    def _encrypt(self, data: bytes) -> None:
        try:
            self._records.send_data(data)
        except TlsError as error:
            raise SessionBroken(f"The session cannot go on: {error}.") from error

    def _say_goodbye(self) -> None:
        if not self._write_ended:
            self._write_ended = True
            self._records.close()
            self._flush()

    def _flush(self) -> None:
        self._socket.send(self._records.data_to_send())

    def _break(self, failure: VmTokenError) -> None:
        """The record layer is of no use any more."""
        self._broken = True
        self._fail(failure)

    def _fail(self, failure: VmTokenError) -> None:
        if self._failure is None:
            self._failure = failure
            self._wake()

    def _check(self) -> None:
        if self._failure is not None:
            raise _again(self._failure)

    async def _next_arrival(self) -> None:
        self._arrival = asyncio.get_running_loop().create_future()
        await self._arrival

    def _wake(self) -> None:
        arrival, self._arrival = self._arrival, None
        if arrival is not None and not arrival.done():
            arrival.set_result(None)

    def _touch(self) -> None:
        self.last_used = asyncio.get_running_loop().time()


def _facts(opened: Opened) -> SessionFacts:
    result: HandshakeResult = opened.result
    return SessionFacts(
        version=result.key_block.version,
        cipher_suite=result.key_block.cipher_suite,
        group=result.group,
        alpn=result.alpn,
        resumed=result.resumed,
        assurance=result.assurance,
        token=result.token,
        server_certificate=result.server_certificate,
        client_certificate_sent=result.client_certificate_sent,
        peer=opened.connection.peer,
        timeline=opened.timeline,
        broker_session_id=result.session_id,
    )


def _again(failure: VmTokenError) -> VmTokenError:
    """A fresh exception for every caller who meets the same failure."""
    again = type(failure)(failure.message)
    again.metadata = failure.metadata
    return again
