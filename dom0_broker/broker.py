"""The use cases of a VM: list its tokens, read a certificate chain, make handshakes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from cryptography import x509

from dom0_broker.domains import DomainIdentity
from dom0_broker.handshake import Attempt, Desk
from dom0_broker.inventory import Token, TokenState
from dom0_broker.pool import Pool
from dom0_broker.steps import MAX_TICKET, Outcome, StartRequest
from vmtoken.errors import InvalidRequest, VmTokenError
from vmtoken.tls.ocsp import UNPARSABLE
from vmtoken.token import Assurance, HandshakeFailed, Resumption

_UNREADABLE = "The token holds a certificate that cannot be read; the operator has to install another."
_TICKET_WAIT = 5.0
"""Seconds that a ticket waits for its token; the session lives without it."""


@dataclass(frozen=True, slots=True)
class TokenView:
    """A token as its VM sees it."""

    name: str
    assurance: Assurance
    not_ready_because: str
    certificate_subject: str
    certificate_not_after: datetime | None


class Broker:
    """What VMs may do. Every method takes the VM as the link knows it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def tokens(self, vm: DomainIdentity) -> list[TokenView]:
        """The tokens of a VM, by name; a pool is one."""
        bound = self._desk.inventory.bindings(vm.uuid)
        return await asyncio.gather(*(_view(Pool(name, members)) for name, members in bound))

    async def certificate_chain(self, vm: DomainIdentity, untrusted_token: str) -> tuple[bytes, ...]:
        """DER, leaf first. Raises `NoTokenBound`, `TokenNotFound`, or why the token is not ready."""
        pool = Pool.bound(self._desk.inventory, vm.uuid, untrusted_token)
        state = (await _states(pool))[0]
        if state.problem is not None:
            raise state.problem
        assert state.description is not None, "a token without a problem was opened"
        return state.description.certificate_chain

    def handshakes(self, vm: DomainIdentity) -> HandshakeStream:
        """A stream of handshakes of a VM, one after another."""
        return HandshakeStream(self._desk, vm)

    async def drain(self) -> bool:
        """Begin no more handshakes and let those under way end, under the limit; True when all have."""
        self._desk.inventory.close_admission()
        try:
            async with asyncio.timeout(self._desk.limits.drain):
                await self._desk.quotas.idle.wait()
        except TimeoutError:
            return False
        return True


class HandshakeStream:
    """Handshakes of one VM, one after another. A context manager: its end gives everything back."""

    def __init__(self, desk: Desk, vm: DomainIdentity) -> None:
        self._desk = desk
        self._vm = vm
        self._attempt: Attempt | None = None

    def __enter__(self) -> HandshakeStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    async def start(self, request: StartRequest) -> Outcome:
        """Begin a handshake. Raises `InvalidRequest` while one is under way."""
        if self._attempt is not None:
            raise InvalidRequest("A handshake is under way on this stream; end it or use another stream.")
        self._attempt = Attempt(self._desk, self._vm, request)
        return self._ended(await self._attempt.begin())

    async def records(self, untrusted_records: bytes) -> Outcome:
        """Hand the server's records in. Raises `InvalidRequest` when no handshake is under way."""
        if self._attempt is None:
            raise InvalidRequest("Records of a server, but no handshake is under way on this stream.")
        return self._ended(await self._attempt.proceed(untrusted_records))

    async def ticket(self, session_id: bytes, untrusted_message: bytes) -> bool:
        """Give a ticket to the token that made the session; False when it is of no use."""
        session = self._desk.sessions.session(self._vm.uuid, session_id)
        if session is None or not 0 < len(untrusted_message) <= MAX_TICKET:
            return False
        session.tickets_left -= 1
        try:
            token = self._desk.inventory.token(session.purpose.token)
            resumption = await self._taken(token, session.token_session, untrusted_message)
        except (VmTokenError, HandshakeFailed):
            return False
        if resumption is not None:
            self._desk.sessions.keep(self._vm.uuid, session.purpose, resumption)
        return resumption is not None

    def abort(self) -> None:
        """Give the handshake under way up, if there is one."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.abort()

    async def _taken(self, token: Token, session: bytes, message: bytes) -> Resumption | None:
        """Between two handshakes: a card that is in the middle of one does not take tickets."""
        end = asyncio.get_running_loop().time() + _TICKET_WAIT
        await token.admission.acquire(self._vm.uuid, end)
        try:
            return await token.worker.run(lambda card: card.accept_ticket(session, message))
        finally:
            token.admission.release()

    def _ended(self, outcome: Outcome) -> Outcome:
        if self._attempt is not None and self._attempt.over:
            self._attempt = None
        return outcome


async def _states(pool: Pool) -> list[TokenState]:
    """Of the tokens that handshakes may use now, or would use if they worked; there is at least one."""
    await asyncio.gather(*(token.state() for token in pool.members))
    return await asyncio.gather(*(token.state() for token in pool.candidates()))


async def _view(pool: Pool) -> TokenView:
    """A pool of several is as good as its worst member that works, and as lasting as the first to expire."""
    views = [_member_view(pool.name, state) for state in await _states(pool)]
    lasting = [view.certificate_not_after for view in views if view.certificate_not_after]
    first, least = views[0], min(_ORDER.index(view.assurance) for view in views)
    return replace(first, assurance=_ORDER[least], certificate_not_after=min(lasting, default=None))


_ORDER: Final = (Assurance.SOFTWARE, Assurance.CARD_SIGNATURE, Assurance.CARD_HANDSHAKE)


def _member_view(name: str, state: TokenState) -> TokenView:
    description, because = state.description, state.problem.message if state.problem else ""
    if description is None:
        return TokenView(name, Assurance.SOFTWARE, because, "", None)
    if not description.certificate_chain:
        return TokenView(name, description.assurance, because, "", None)
    try:
        leaf = x509.load_der_x509_certificate(description.certificate_chain[0])
        subject, not_after = leaf.subject.rfc4514_string(), leaf.not_valid_after_utc
    except UNPARSABLE:
        return TokenView(name, description.assurance, _UNREADABLE, "", None)
    return TokenView(name, description.assurance, because, subject, not_after)
