"""The part of a handshake that runs on its token: judged by policy, recorded before it has an effect.

`handshake.Attempt` waits for the token and talks to the guest; a `Run` is used from the token's thread.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from dom0_broker.admission import Quotas
from dom0_broker.audit import AuditError, AuditLog, AuditNotes
from dom0_broker.config import Limits
from dom0_broker.domains import DomainIdentity
from dom0_broker.inventory import Inventory, Token
from dom0_broker.policy import Grant, Policy, PolicyRequest
from dom0_broker.pool import Pool
from dom0_broker.sessions import Purpose, Session, Sessions
from dom0_broker.steps import LONGEST_NAME, Cost, StartRequest
from dom0_broker.tally import Tally
from vmtoken.clock import Clock
from vmtoken.errors import PolicyDenied, TokenNotReady, VmTokenError
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import (
    Assurance,
    HandshakeFailed,
    HandshakeResult,
    HandshakeStart,
    HandshakeStep,
    HandshakeToken,
    Resumption,
    ServerIdentity,
)


@dataclass(frozen=True, slots=True)
class Desk:
    """What handshakes share: everything that the broker decides and remembers with."""

    inventory: Inventory
    sessions: Sessions
    audit: AuditLog
    notes: AuditNotes
    quotas: Quotas
    limits: Limits
    clock: Clock
    policy: Callable[[], Policy]
    """The policy in force at this moment."""

    tally: Tally = field(default_factory=Tally)


@dataclass(slots=True)
class Facts:
    """What every record about a handshake says."""

    session_id: bytes
    vm: DomainIdentity
    started: datetime
    request: StartRequest
    token: str = ""

    def fields(self) -> dict[str, str | int | bool | None]:
        """As the audit log has them."""
        return {
            "session": self.session_id.hex(),
            "vm": self.vm.name,
            "vm_uuid": str(self.vm.uuid),
            "token": self.token or None,
            "server_name": self.request.server_name[:LONGEST_NAME],
            "port": self.request.port,
        }


class Run:
    """The part of a handshake that runs on its token, in the token's thread but for what says otherwise."""

    def __init__(
        self, desk: Desk, facts: Facts, pool: Pool, token: Token, purpose: Purpose, queue: float
    ) -> None:
        self.token = token
        self.rule = ""
        self.server: ServerIdentity | None = None
        self.assurance: Assurance | None = None
        self.cost = Cost(queue=queue)
        self.total = Cost(queue=queue)
        self.recorded = False
        self._desk = desk
        self._facts = facts
        self._pool = pool
        self._purpose = purpose
        self._expected: Grant | None = None
        self._resumption: Resumption | None = None

    def start(self) -> HandshakeStart:
        """In the event loop: what the token begins with, a session to resume if policy agrees."""
        request, description = self._facts.request, self.token.worker.description
        if description is not None and not request.no_resumption:
            self._resumption = self._allowed_resumption(description.assurance)
        return HandshakeStart(
            server_name=request.server_name,
            time=int(self._facts.started.timestamp()),
            alpn=request.alpn,
            min_version=request.min_version,
            max_version=request.max_version,
            resumption=self._resumption.handle if self._resumption else None,
        )

    def begin(self, card: HandshakeToken, start: HandshakeStart) -> HandshakeStep:
        """The first step: only the open token says for sure who it is and what it reaches."""
        self._pool.check(self.token)
        expected = self._expected or self._expect(card.assurance)
        try:
            return card.start(replace(start, certificate=expected.certificate), self.authorize)
        except HandshakeFailed as failure:
            missing = self.token.missing
            if missing is None or not isinstance(failure.error, TokenNotReady):
                raise
            raise HandshakeFailed(missing, failure.alert_flight) from failure  # in the words of the list

    def step(
        self, card: HandshakeToken, call: Callable[[HandshakeToken], HandshakeStep]
    ) -> tuple[HandshakeStep, Cost]:
        """One step on the token; its end, good or bad, is recorded before anybody hears of it."""
        self.assurance = card.assurance
        before = self._desk.clock.monotonic()
        try:
            step = call(card)
            if step.result is not None:
                self._check(step.result)
        except HandshakeFailed as failure:
            self._spend(card, before)
            self._record_failure(failure.error)
            raise
        self._spend(card, before)
        if step.result is not None:
            self._record("handshake-complete", _result_fields(step.result, self.total))
        return step, self.cost

    def authorize(self, server: ServerIdentity) -> None:
        """May this VM talk to this server, which has proved who it is? Raises `PolicyDenied`."""
        assert self.assurance is not None, "set by the step that is under way"
        assert self._expected is not None, "set by the first step"
        request = PolicyRequest(self._facts.vm, self.token.name, self.assurance)
        leaf = hashlib.sha256(server.leaf).hexdigest()
        try:
            grant = self._desk.policy().confirm(self._expected, request, server)
        except PolicyDenied as denied:
            self.rule = denied.metadata["rule"]
            self._record("handshake-denied", {"rule": self.rule, "leaf_sha256": leaf})
            self.recorded = True
            raise
        self.rule = grant.rule
        assurance = self.assurance.value
        self._record("handshake-allowed", {"rule": grant.rule, "leaf_sha256": leaf, "assurance": assurance})
        self.server = server

    def remember(self, result: HandshakeResult) -> int:
        """In the event loop: how many tickets the agent is to send; the token has one of TLS 1.2 already."""
        vm, sessions = self._facts.vm.uuid, self._desk.sessions
        wanted = sessions.wanted(vm, self._purpose)
        if not wanted:
            return 0
        if result.key_block.version is ProtocolVersion.TLS_1_2:
            self._take_ticket(result.session)
            return 0
        session = Session(self._purpose, result.session, tickets_left=wanted)
        sessions.begin(vm, self._facts.session_id, session)
        return wanted

    def _take_ticket(self, token_session: bytes) -> None:
        """Nobody waits for it but the next handshake, which could resume the session."""

        def keep(taken: asyncio.Future[Resumption | None]) -> None:
            if self.token.ticket is taken:
                self.token.ticket = None
            resumption = None if taken.cancelled() or taken.exception() else taken.result()
            if resumption is not None:
                self._desk.sessions.keep(self._facts.vm.uuid, self._purpose, resumption)

        self.token.ticket = self.token.worker.post(lambda card: card.accept_ticket(token_session, b""))
        self.token.ticket.add_done_callback(keep)

    def drop_resumption(self) -> None:
        """In the event loop: do not try the same session again after a failure."""
        if self._resumption is not None:
            self._desk.sessions.drop(self._facts.vm.uuid, self._purpose, self._resumption.handle)

    def _expect(self, assurance: Assurance) -> Grant:
        """What policy will most likely grant; only sessions that were made in the same way are resumed."""
        request = PolicyRequest(self._facts.vm, self.token.name, assurance)
        self._expected = expected = self._desk.policy().expect(request, self._facts.request.server_name)
        self._purpose = replace(self._purpose, certificate=expected.certificate)
        return expected

    def _allowed_resumption(self, assurance: Assurance) -> Resumption | None:
        """The newest session that policy would allow today, by the identity kept with its ticket."""
        expected = self._expect(assurance)
        vm, sessions = self._facts.vm, self._desk.sessions
        request = PolicyRequest(vm, self.token.name, assurance)
        for resumption in sessions.candidates(vm.uuid, self._purpose):
            try:
                self._desk.policy().confirm(expected, request, resumption.server)
                return resumption
            except PolicyDenied as denied:
                sessions.drop(vm.uuid, self._purpose, resumption.handle)
                rule = {"rule": denied.metadata["rule"]}
                self._desk.notes.add("resumption-denied", {**self._facts.fields(), **rule})
        return None

    def _check(self, result: HandshakeResult) -> None:
        """A token must not complete a handshake with a server that policy has not seen."""
        if self.server is None or result.server != self.server:
            raise HandshakeFailed(VmTokenError("The token did not ask before it finished the handshake."))

    def _spend(self, card: HandshakeToken, before: float) -> None:
        in_token, traffic = self._desk.clock.monotonic() - before, card.traffic
        queue = self.total.queue if not self.total.in_token else 0.0
        apdus, octets = traffic.apdus - self.total.apdus, traffic.octets - self.total.apdu_octets
        self.cost = Cost(queue, in_token, apdus, octets)
        self.total = Cost(self.total.queue, self.total.in_token + in_token, traffic.apdus, traffic.octets)

    def _record_failure(self, error: VmTokenError) -> None:
        """A failure that cannot be recorded is one all the same; it is noted for later."""
        if not self.recorded:
            fields = {"outcome": error.reason, "message": error.message[:LONGEST_MESSAGE]}
            with suppress(VmTokenError):
                self._record("handshake-failed", fields)
                self.recorded = True

    def _record(self, event: str, fields: Mapping[str, str | int | bool | None]) -> None:
        """Raises `VmTokenError` when the record cannot be written: what is not recorded does not happen."""
        try:
            self._desk.audit.append(event, {**self._facts.fields(), **fields})
        except AuditError as error:
            raise VmTokenError("The broker cannot write its audit log.") from error


LONGEST_MESSAGE: Final = 500
"""Characters of an error that go into a record."""


def _result_fields(result: HandshakeResult, total: Cost) -> dict[str, str | int | bool | None]:
    return {
        "version": result.key_block.version.name,
        "cipher_suite": result.key_block.cipher_suite.name,
        "group": result.group,
        "alpn": result.alpn,
        "resumed": result.resumed,
        "client_certificate_sent": result.client_certificate_sent,
        "queue_microseconds": round(total.queue * 1e6),
        "token_microseconds": round(total.in_token * 1e6),
    }
