"""One handshake of one VM: admitted, run on its token, judged by policy, recorded, over.

The event loop waits here, the token's thread works in `handshake_run`. Whatever the thread decides (policy)
or completes (key block) is in the audit log before it has an effect.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from dom0_broker.domains import DomainIdentity
from dom0_broker.handshake_run import LONGEST_MESSAGE, Desk, Facts, Run
from dom0_broker.inventory import OVERDUE, Token
from dom0_broker.pool import Pool
from dom0_broker.sessions import Purpose, Summary
from dom0_broker.steps import (
    LONGEST_NAME,
    MAX_RECORDS,
    Completed,
    Cost,
    Failed,
    Flight,
    Outcome,
    StartRequest,
    checked,
)
from vmtoken.errors import (
    DeadlineExceeded,
    InvalidRequest,
    PinBlocked,
    PinMissing,
    PinRejected,
    TokenNotFound,
    TokenNotReady,
    TokenUnavailable,
    VmTokenError,
)
from vmtoken.token import (
    HandshakeFailed,
    HandshakeResult,
    HandshakeStep,
    HandshakeToken,
)

__all__ = ["Attempt", "Desk"]

log = logging.getLogger(__name__)


class Attempt:
    """One handshake from its start message to its end. Steps come one after another."""

    def __init__(self, desk: Desk, vm: DomainIdentity, request: StartRequest) -> None:
        self._desk = desk
        self._request = request
        self._began = asyncio.get_running_loop().time()
        self._facts = Facts(secrets.token_bytes(16), vm, desk.clock.now(), request)
        self._run: Run | None = None
        self._resources = ExitStack()
        self._slot = ExitStack()
        """The token's, which is given back before all else."""
        self._deadline = 0.0
        """When the guest gives up."""
        self._end = 0.0
        """When the token is for others."""
        self._timer: asyncio.TimerHandle | None = None
        self._expired: VmTokenError | None = None
        self.over = False

    async def begin(self) -> Outcome:
        """Check the request, wait for a token, make the ClientHello."""
        try:
            return await self._begun(self._entered())
        except VmTokenError as error:
            return self._refused(error)
        except BaseException:
            self._finish()
            raise

    async def proceed(self, untrusted_records: bytes) -> Outcome:
        """Hand the server's records to the token."""
        run = self._run
        assert run is not None, "steps follow a start that was admitted"
        if self._expired is not None:
            self.over = True
            return Failed(self._expired, b"", Cost())
        if len(untrusted_records) > MAX_RECORDS:
            return self._failed(
                run, InvalidRequest(f"More than {MAX_RECORDS} octets of records in one step.")
            )
        return await self._step(run, lambda card: card.process(untrusted_records))

    def abort(self) -> None:
        """The guest gives up, or is gone."""
        if self._run is not None and not self.over and self._expired is None:
            self._failed(self._run, VmTokenError("The guest gave up."), outcome="aborted")
        self.over = True

    def _entered(self) -> Pool:
        """The request is checked, the VM has room for it, and its time runs."""
        desk, vm = self._desk, self._facts.vm
        self._facts.request = request = checked(self._request)
        pool = Pool.bound(desk.inventory, vm.uuid, request.token)
        if len(pool.members) == 1:
            self._facts.token = pool.members[0].name
        self._deadline = self._began + min(request.timeout, desk.limits.handshake_timeout)
        self._resources.enter_context(desk.quotas.one_more(vm.uuid))
        return pool

    async def _begun(self, pool: Pool) -> Outcome:
        """The first step; on another token of the pool when one fails, for nothing has left us yet."""
        tried: set[str] = set()
        while True:
            run = await self._admitted(pool, tried)
            tried.add(run.token.name)
            answer = await self._first_step(run, others=bool(pool.candidates(tried)))
            if not (isinstance(answer, _Failure) and self._is_of_the_card(answer.error)):
                return self._concluded(run, answer)
            if not pool.candidates(tried):  # asked again: one may have turned out to be a stranger meanwhile
                return self._concluded(run, answer)
            self._leave(run, answer.error)

    async def _admitted(self, pool: Pool, tried: Collection[str]) -> Run:
        """Wait for a token's slot; from then on the handshake holds the token, for so long at most."""
        desk, vm, request = self._desk, self._facts.vm, self._facts.request

        def can_resume(token: Token) -> bool:
            purpose = _purpose(token.name, request)
            return not request.no_resumption and desk.sessions.resumable(vm.uuid, purpose)

        token = await pool.admit(vm.uuid, self._deadline, tried=tried, can_resume=can_resume)
        self._slot.callback(token.admission.release)
        self._facts.token = token.name
        now = asyncio.get_running_loop().time()
        self._end = min(self._deadline, now + desk.limits.token_hold)
        self._run = Run(desk, self._facts, pool, token, _purpose(token.name, request), now - self._began)
        return self._run

    async def _first_step(self, run: Run, *, others: bool) -> tuple[HandshakeStep, Cost] | _Failure:
        patience = asyncio.get_running_loop().time() + OVERDUE if others else self._end
        deadline = min(self._end, patience)
        await run.token.ticket_kept(deadline)
        start = run.start()
        return await self._asked(run, lambda card: run.begin(card, start), deadline)

    def _is_of_the_card(self, error: VmTokenError) -> bool:
        """Another card might do what this one did not, if there is time."""
        in_time = asyncio.get_running_loop().time() < self._deadline
        return in_time and isinstance(error, _TROUBLE_OF_A_CARD)

    def _leave(self, run: Run, error: VmTokenError) -> None:
        """The token did not begin the handshake, which goes on to another."""
        run.token.failed += 1
        run.token.worker.post(lambda card: card.abort())
        run.drop_resumption()
        outcome = {"outcome": error.reason, "message": error.message[:LONGEST_MESSAGE]}
        self._desk.notes.add("handshake-moved", {**self._facts.fields(), **outcome})
        extra = {"token": run.token.name, "because": error.message}
        log.warning("handshake moves to another token", extra=extra)
        self._run = None
        self._slot.close()

    async def _step(self, run: Run, call: Callable[[HandshakeToken], HandshakeStep]) -> Outcome:
        if self._timer is not None:
            self._timer.cancel()
        return self._concluded(run, await self._asked(run, call, self._end))

    async def _asked(
        self, run: Run, call: Callable[[HandshakeToken], HandshakeStep], end: float
    ) -> tuple[HandshakeStep, Cost] | _Failure:
        """Have the token do a step, until `end` (loop time)."""
        try:
            async with asyncio.timeout_at(end):
                return await run.token.worker.run(lambda card: run.step(card, call))
        except TimeoutError:
            return _Failure(self._too_late() if end == self._end else _too_slow(run.token))
        except HandshakeFailed as failure:
            return _Failure(failure.error, failure.alert_flight)
        except VmTokenError as error:
            return _Failure(error)
        except BaseException:
            self.abort()
            raise

    def _concluded(self, run: Run, answer: tuple[HandshakeStep, Cost] | _Failure) -> Outcome:
        """What the guest hears of a step."""
        if isinstance(answer, _Failure):
            return self._failed(run, answer.error, answer.records)
        step, cost = answer
        if step.result is not None:
            return self._completed(run, step.client_flight, step.result, cost)
        self._timer = asyncio.get_running_loop().call_at(self._end, self._expire, run)
        return Flight(step.client_flight, cost)

    def _completed(self, run: Run, records: bytes, result: HandshakeResult, cost: Cost) -> Completed:
        run.token.completed += 1
        wanted = run.remember(result)
        run.token.worker.post(lambda card: card.abort())  # it forgets, and has time for the next one's keys
        self._note(run, "complete", result)
        self._finish()
        assurance = run.assurance
        assert assurance is not None, "the token was asked before its result counted"
        return Completed(records, result, self._facts.session_id, run.token.name, assurance, wanted, cost)

    def _failed(
        self, run: Run, error: VmTokenError, records: bytes = b"", outcome: str | None = None
    ) -> Failed:
        """The handshake ends without a session; the token forgets it before anybody else has it."""
        run.token.failed += 1
        run.token.worker.post(lambda card: card.abort())
        run.drop_resumption()
        outcome = outcome or error.reason
        if not run.recorded:
            fields = {"outcome": outcome, "message": error.message[:LONGEST_MESSAGE]}
            self._desk.notes.add("handshake-failed", {**self._facts.fields(), **fields})
        self._note(run, outcome, None)
        self._finish()
        return Failed(error, records, run.cost)

    def _refused(self, error: VmTokenError) -> Failed:
        """It never came to the token."""
        self._desk.notes.refuse(self._facts.vm, self._facts.token, error)
        self._note(None, error.reason, None)
        self._finish()
        return Failed(error, b"", Cost(queue=asyncio.get_running_loop().time() - self._began))

    def _expire(self, run: Run) -> None:
        """Neither the server nor the guest came back in time: the token is for the others."""
        self._expired = self._too_late()
        self._failed(run, self._expired)
        self.over = False  # the guest is told with its next step

    def _too_late(self) -> DeadlineExceeded:
        asked = min(self._request.timeout, self._desk.limits.handshake_timeout)
        if self._end < self._deadline:
            limit = self._desk.limits.token_hold
            return DeadlineExceeded(f"The handshake held its token for {limit:g} seconds, the most allowed.")
        return DeadlineExceeded(f"The handshake was not complete after {asked:g} seconds.")

    def _note(self, run: Run | None, outcome: str, result: HandshakeResult | None) -> None:
        """For the operator's list; after the answer to the guest, who waits."""
        loop = asyncio.get_running_loop()
        total = loop.time() - self._began

        def note() -> None:
            summary = _summary(self._facts, run, outcome, result, total)
            self._desk.sessions.note(summary)
            self._desk.tally.count(summary)
            log.info("handshake", extra=_log_fields(summary))

        loop.call_soon(note)

    def _finish(self) -> None:
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        self._slot.close()
        self._resources.close()


@dataclass(frozen=True, slots=True)
class _Failure:
    """A step that did not succeed; the alert, if any, is for the server."""

    error: VmTokenError
    records: bytes = b""


def _too_slow(token: Token) -> TokenUnavailable:
    return TokenUnavailable(f"The card behind token '{token.name}' did not begin within {OVERDUE:g} seconds.")


_TROUBLE_OF_A_CARD: Final = (
    TokenUnavailable,
    TokenNotFound,
    TokenNotReady,
    PinMissing,
    PinRejected,
    PinBlocked,
    DeadlineExceeded,
)


def _summary(
    facts: Facts, run: Run | None, outcome: str, result: HandshakeResult | None, total: float
) -> Summary:
    summary = Summary(
        facts.session_id,
        facts.started,
        facts.vm.name,
        facts.vm.uuid,
        facts.token,
        facts.request.server_name[:LONGEST_NAME],
        facts.request.port,
        outcome,
        total=total,
    )
    if run is not None:
        leaf = hashlib.sha256(run.server.leaf).digest() if run.server else b""
        cost = run.total
        summary = replace(
            summary,
            rule=run.rule,
            assurance=run.assurance,
            leaf_sha256=leaf,
            queue=cost.queue,
            in_token=cost.in_token,
        )
    if result is not None:
        block = result.key_block
        summary = replace(
            summary,
            version=block.version,
            cipher_suite=block.cipher_suite.name,
            group=result.group or "",
            resumed=result.resumed,
        )
    return summary


def _log_fields(summary: Summary) -> dict[str, str | int | float]:
    return {
        "session": summary.session_id.hex(),
        "vm": summary.vm,
        "token": summary.token,
        "server": f"{summary.server_name!r}:{summary.port}",
        "outcome": summary.outcome,
        "suite": summary.cipher_suite,
        "resumed": summary.resumed,
        "milliseconds": round(summary.total * 1000, 1),
    }


def _purpose(token: str, request: StartRequest) -> Purpose:
    return Purpose(
        token, request.server_name, request.port, request.alpn, request.min_version, request.max_version
    )
