"""Whoever gives a PIN to a token does it here, so that no try is lost twice.

- A PIN is on the disk as *presented* before the token sees it, with the tries left at that time, and as
  accepted or refused after. When the answer was lost (a crash, a card that was pulled), the counter tells at
  the next opening: fewer tries than before mean that it was refused.
- A refused PIN is wiped. A digest of it under the host's sealing key stays, so that it is not tried again
  when it comes back, by hand or from a PIN source.
- A PIN that a token is asked to take is on the disk as *pending*, beside the earlier one, before the token
  hears of it. When the answer was lost, the pending one is tried first and, if refused, the earlier one: one
  of them is the token's, and a right PIN gives all tries back.
- With no more tries left than the reserve, nothing is presented.
- Tokens that are keys of one card have one PIN and one counter, so all this is kept by holder
  (`dom0_broker.pin_records`): whatever happens through one token holds for the others.

Methods that present PINs, or read counters, block: they are for the token's own thread, in its `turn`. The
others are for any thread.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from dom0_broker.backends.base import PinState
from dom0_broker.pin_records import PinRecords, is_kept, unmarked
from dom0_broker.pin_sentences import refused_code, rejected, set_command, too_few
from dom0_broker.pin_sources import read_pin_source
from dom0_broker.safe import Safe
from dom0_broker.store import PinRecord, PinRole, Presented, Store, TokenRecord
from vmtoken.clock import Clock
from vmtoken.errors import (
    Conflict,
    InvalidRequest,
    PinBlocked,
    PinMissing,
    PinRejected,
    TokenUnavailable,
    VmTokenError,
)
from vmtoken.secret import SecretBytes

log = logging.getLogger(__name__)

Result = TypeVar("Result")

Report = Callable[[str, Mapping[str, str | int | bool | None]], None]
"""Puts what happened to a PIN into the audit log; any thread calls it."""

ReadPins = Callable[[], PinState]
"""Asks a token for its retry counters, which spends no try."""

_FEWEST: Final = 3
"""Tries of a code at first, when the token tells nothing: no card has fewer."""

_LONGEST_CODE: Final = 8
"""Octets of an operator PIN that also unblocks; the management key of a PIV card is longer, and does not."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A PIN to be presented, and the tries that are left before."""

    pin: SecretBytes
    which: Presented
    tries: int | None


class PinKeeper:
    """The PINs of all tokens: what is kept of them, what may be presented, what became of it."""

    def __init__(self, store: Store, safe: Safe, clock: Clock, report: Report, *, reserve: int) -> None:
        self._records = PinRecords(store, safe)
        self._clock = clock
        self._report = report
        self._reserve = reserve

    def record(self, token: str, role: PinRole) -> PinRecord:
        """What is known of a PIN."""
        return self._records.of(token, role)

    def sharers(self, token: str) -> list[str]:
        """The other tokens that have the same PINs."""
        return [each for each in self._records.tokens(self._records.holder(token)) if each != token]

    def sharers_of(self, holder: str) -> tuple[list[str], list[PinRole]]:
        """The tokens that have the PINs of a holder, and which of these are kept."""
        kept = [role for role in PinRole if is_kept(self._records.held(holder, role))]
        return self._records.tokens(holder), kept

    def find_holder(self, token: str, ask: Callable[[], str]) -> None:
        """Make sure that it is known, for good, what has the PINs of a token. Raises as `ask`."""
        if self._records.holder(token) == token:
            self._records.move(token, ask())

    @contextmanager
    def turn(self, token: str) -> Iterator[None]:
        """Wait until nobody else gives PINs to what has those of a token."""
        with self._records.turn(self._records.holder(token)):
            yield

    def add(self, token: TokenRecord, pins: Mapping[PinRole, SecretBytes], holder: str = "") -> None:
        """Keep a new token, and its PINs in the same step; `holder` is empty while it is not known.

        Raises as `Store.add_token`; `Conflict` when another PIN of the holder is kept, `PinRejected` for one
        that it refused before.
        """
        holder = holder or token.name
        with self._records.turn(holder):
            self._records.add(token, holder, dict(self._new(holder, pins)))

    def forget(self, token: str) -> None:
        """A token is gone, from the store too; PINs that another one has stay."""
        self._records.forget(token)

    def in_use(self, token: str, role: PinRole) -> SecretBytes | None:
        """The PIN in use, sealed or from its source, None without one; not for tokens: see `presenting`."""
        return self._records.in_use(self._records.holder(token), role)

    @contextmanager
    def presenting(
        self, token: str, roles: Sequence[PinRole], read: ReadPins, *, taking: SecretBytes | None = None
    ) -> Iterator[Mapping[PinRole, SecretBytes | None]]:
        """Present PINs of a token, once: the block does it, and what it raises says what became of them.

        The first role is needed; those after it are None when they cannot be presented. `taking` is a PIN
        that the block has the token take in place of the first. Raises `PinRejected` for one that was
        refused, now or before; `PinBlocked`, also for the reserve; what `read` raises.
        """
        given = self._given(token, roles, read)
        if taking is not None:
            given[roles[0]] = replace(given[roles[0]], which=Presented.EXCHANGED)
        for role, candidate in given.items():
            self._mark(token, role, candidate, taking)
        try:
            yield {role: given[role].pin if role in given else None for role in roles}
        except (PinRejected, PinBlocked) as error:
            role = self._refused(token, roles, given, read, error)
            if isinstance(error, PinBlocked):
                raise
            raise rejected(token, role, self.record(token, role), error.retries_left) from error
        except TokenUnavailable:
            raise  # the answer is lost: the marks stay
        except VmTokenError:
            for role, candidate in given.items():
                self._unmark(token, role, candidate)
            raise
        for role, candidate in given.items():
            self._accepted(token, role, candidate, for_certain=role is roles[0])

    def try_all(
        self, token: str, role: PinRole, read: ReadPins, call: Callable[[SecretBytes | None], Result]
    ) -> Result:
        """Present a pending PIN and, when that is refused, the earlier one; raises as `presenting`."""
        while True:
            before = self.record(token, role)
            try:
                with self.presenting(token, (role,), read) as pins:
                    return call(pins[role])
            except PinRejected:
                if before.pending is None or not (before.sealed or before.source):
                    raise

    def propose(self, token: str, role: PinRole, pin: SecretBytes, *, again: bool = False) -> PinRecord:
        """Keep a PIN that is said to be the token's, to be presented next; returns what was known before.

        Raises `PinRejected` for one that the token refused before; `again` is the operator's word that it
        takes it now.
        """
        if not len(pin):
            raise InvalidRequest("The PIN is empty; give the one that the token has.")
        record = self.record(token, role)
        if self._is_refused(token, role, pin, record.refused) and not again:
            raise PinRejected(
                f"Token '{token}' refused this {role} PIN before, so it is not tried again; give another, or "
                "say --again if the token takes it now.",
                retries_left=record.tries_left or 0,
            )
        self._records.must_put(token, role, replace(record, pending=self._sealed(token, role, pin)))
        return record

    def withdraw(self, token: str, role: PinRole, earlier: PinRecord) -> None:
        """Forget a proposed PIN, unless the token has seen it and the answer was lost."""
        record = self.record(token, role)
        if record.presented is not Presented.PENDING:
            self._records.put(token, role, replace(record, pending=earlier.pending))

    def is_settled(self, token: str) -> bool:
        """Whether there is no doubt which user PIN is the token's."""
        return self.record(token, PinRole.USER).pending is None

    def settle(self, token: str, read: ReadPins) -> None:
        """Find out what became of PINs whose answer was lost, before others are given. Raises as `read`."""
        self.told(token, state := read())
        for role in PinRole:
            self._settle(token, role, _tries(state, role))

    def use_source(self, token: str, role: PinRole, source: Path) -> None:
        """Take the PIN from a file from now on; the one in use is wiped. Raises as `read_pin_source`."""
        if not source.is_absolute():
            raise InvalidRequest(f"The PIN source {source} is not an absolute path; give one.")
        read_pin_source(source)
        record = replace(self.record(token, role), sealed=None, accepted=False, rejected=False)
        self._records.must_put(token, role, replace(record, source=str(source)))

    def change(
        self, token: str, new: SecretBytes, read: ReadPins, call: Callable[[SecretBytes, SecretBytes], None]
    ) -> None:
        """Have the token take a new user PIN: `call` gives it the one in use and the new.

        Raises `Conflict` when it is not known which is in use, `PinMissing` without one, and as `presenting`.
        """
        self._check_settled(token)
        if self.in_use(token, PinRole.USER) is None:
            raise PinMissing(
                f"The user PIN of token '{token}' is not known here; give it with 'vmtokenctl token pin set "
                f"{token}', or unblock it."
            )
        with self.presenting(token, (PinRole.USER,), read, taking=new) as pins:
            old = pins[PinRole.USER]
            assert old is not None, "there is one"
            call(old, new)

    def unblock(
        self,
        token: str,
        code: SecretBytes | None,
        new: SecretBytes,
        read: ReadPins,
        call: Callable[[SecretBytes, SecretBytes], None],
    ) -> None:
        """Have the token take a new user PIN with all its tries: `call` gives it a code and the PIN.

        The code is the operator PIN that is kept here, if none is given; errors as `presenting`, about it.
        """
        with self._code(token, code, read) as given:
            earlier = self.record(token, PinRole.USER)
            pending = self._sealed(token, PinRole.USER, new)
            self._records.must_put(token, PinRole.USER, replace(earlier, pending=pending))
            try:
                call(given, new)
            except TokenUnavailable:
                raise  # the answer is lost: the pending PIN is tried at the next opening
            except VmTokenError:
                self._records.put(token, PinRole.USER, earlier)
                raise
            self._taken(token, PinRole.USER, refused=())

    def told(self, token: str, state: PinState) -> None:
        """The token told its counters; fewer tries than before are an alarm."""
        self._told(token, PinRole.USER, state.tries_left, state.tries)
        self._told(token, PinRole.OPERATOR, state.operator_tries_left, None)

    def refused_later(self, token: str, error: PinRejected) -> None:
        """An open token refused the user PIN that it took when it was opened."""
        with self.turn(token):
            pin = self.in_use(token, PinRole.USER)
            if pin is not None:
                self._wipe(token, PinRole.USER, Presented.CURRENT, error.retries_left, pin)

    # What is presented.

    def _given(self, token: str, roles: Sequence[PinRole], read: ReadPins) -> dict[PinRole, _Candidate]:
        chosen = self._chosen(token, roles)
        if not chosen:
            return {}
        self.told(token, state := read())
        if [role for role in roles if self._settle(token, role, _tries(state, role))]:
            chosen = self._chosen(token, roles)
        given = {}
        for role, (pin, which) in chosen.items():
            tries = _tries(state, role)
            if tries is None or tries > self._reserve:
                given[role] = _Candidate(pin, which, tries)
            elif role is roles[0]:
                raise too_few(token, role, tries)
        return given

    def _chosen(self, token: str, roles: Sequence[PinRole]) -> dict[PinRole, tuple[SecretBytes, Presented]]:
        """What could be presented, without asking the token anything."""
        chosen = {}
        problem: VmTokenError | None = None
        for role in reversed(roles):
            try:
                choice = self._choice(token, role)
            except VmTokenError as error:
                problem = error
                if role is roles[0]:
                    raise
            else:
                if choice is not None:
                    chosen[role] = choice
        if problem is not None and not chosen:
            raise problem  # the token may know a PIN by its URI, and must not spend it
        return chosen

    def _choice(self, token: str, role: PinRole) -> tuple[SecretBytes, Presented] | None:
        record = self.record(token, role)
        pending = self._records.pending(token, role)
        if pending is not None:
            return pending, Presented.PENDING
        if record.rejected:
            raise rejected(token, role, record)
        pin = self.in_use(token, role)
        if pin is None:
            return None
        refused = record.refused[:-1] if record.presented else record.refused
        if record.source and self._is_refused(token, role, pin, refused):
            raise rejected(token, role, record)
        return pin, Presented.CURRENT

    def _settle(self, token: str, role: PinRole, tries: int | None) -> bool:
        """What became of the PIN that was presented last, if the answer was lost; True if it was refused."""
        record = self.record(token, role)
        if record.presented is None:
            return False
        if tries is not None and record.tries_before is not None:
            lost = tries < record.tries_before
        else:  # nothing tells: a PIN that never worked is not worth another try
            alone = record.presented is Presented.PENDING and record.sealed is None
            lost = not record.accepted and (alone or record.presented is Presented.CURRENT)
        if lost:
            self._wipe(token, role, record.presented, tries)
        else:
            self._records.put(token, role, unmarked(record))
        return True

    @contextmanager
    def _code(self, token: str, by_hand: SecretBytes | None, read: ReadPins) -> Iterator[SecretBytes]:
        """What unblocks, presented once."""
        role = PinRole.OPERATOR
        if by_hand is not None:
            with self._by_hand(token, by_hand, read):
                yield by_hand
            return
        kept = self.in_use(token, role)
        if kept is None or len(kept) > _LONGEST_CODE:
            raise PinMissing(
                f"Nothing that is kept here unblocks token '{token}'; give its PUK, SO PIN or operator PIN "
                "with --code."
            )
        with self.presenting(token, (role,), read) as pins, self._counting(token, read):
            code = pins[role]
            assert code is not None, "there is one"
            yield code

    @contextmanager
    def _by_hand(self, token: str, code: SecretBytes, read: ReadPins) -> Iterator[None]:
        """A code that the operator gave; it is not kept, only its digest if it is refused."""
        role = PinRole.OPERATOR
        self.told(token, state := read())
        self._settle(token, role, state.operator_tries_left)
        record = self.record(token, role)
        if self._is_refused(token, role, code, record.refused):
            raise refused_code(token, record.tries_left)
        with self._counting(token, read):
            candidate = _Candidate(code, Presented.BY_HAND, state.operator_tries_left)
            self._mark(token, role, candidate, None)
            try:
                yield
            except PinRejected as error:
                self._wipe(token, role, Presented.BY_HAND, error.retries_left)
                raise refused_code(token, error.retries_left) from error
            except TokenUnavailable:
                raise
            except VmTokenError:
                self._unmark(token, role, candidate)
                raise
            self._unmark(token, role, candidate)

    @contextmanager
    def _counting(self, token: str, read: ReadPins) -> Iterator[None]:
        """Keep the reserve of a code; where the token tells no tries, those lost here are counted."""
        role = PinRole.OPERATOR
        told, known = read().operator_tries_left, self.record(token, role).tries_left
        left = known if told is None else told
        if left is not None and left <= self._reserve:
            raise too_few(token, role, left)
        if told is not None:
            yield
            return
        self._count(token, (left or _FEWEST) - 1)
        try:
            yield
        except (PinRejected, TokenUnavailable):
            raise
        except VmTokenError:
            self._count(token, left)
            raise
        self._count(token, None)

    def _count(self, token: str, left: int | None) -> None:
        role = PinRole.OPERATOR
        self._records.must_put(token, role, replace(self.record(token, role), tries_left=left))

    def _check_settled(self, token: str) -> None:
        if not self.is_settled(token):
            raise Conflict(
                f"Token '{token}' was given another user PIN, and has not shown yet whether it is the right "
                f"one; 'vmtokenctl token show {token}' says what keeps it from being opened."
            )

    def _new(self, holder: str, pins: Mapping[PinRole, SecretBytes]) -> Iterator[tuple[PinRole, PinRecord]]:
        """What was not kept so far."""
        for role, pin in pins.items():
            record = self._records.held(holder, role)
            if is_kept(record):
                self._check_same(holder, role, pin)
                continue
            if self._records.is_refused(holder, role, pin, record.refused):
                raise rejected(self._records.tokens(holder)[0], role, record)
            sealed = self._records.sealed(holder, role, pin)
            yield role, replace(record, sealed=sealed, accepted=False, rejected=False)

    def _check_same(self, holder: str, role: PinRole, pin: SecretBytes) -> None:
        kept = self._records.in_use(holder, role)
        if kept is None or not hmac.compare_digest(kept.reveal(), pin.reveal()):
            known = self._records.tokens(holder)[0]
            raise Conflict(
                f"The {role} PIN is known here from token '{known}' of the same card, and it is another one; "
                f"leave it out, or give another with {set_command(known, role)} first."
            )

    def _sealed(self, token: str, role: PinRole, pin: SecretBytes) -> bytes:
        return self._records.sealed(self._records.holder(token), role, pin)

    def _is_refused(self, token: str, role: PinRole, pin: SecretBytes, refused: Sequence[bytes]) -> bool:
        return self._records.is_refused(self._records.holder(token), role, pin, refused)

    # What became of it.

    def _mark(self, token: str, role: PinRole, candidate: _Candidate, taking: SecretBytes | None) -> None:
        """Before the token sees it: until there is an answer, the last digest is that of a PIN in doubt."""
        record = self.record(token, role)
        if candidate.which is Presented.EXCHANGED and taking is not None:
            record = replace(record, pending=self._sealed(token, role, taking))
        marked = replace(
            record,
            presented=candidate.which,
            tries_before=candidate.tries,
            refused=self._records.with_refused(token, role, candidate.pin),
        )
        self._records.must_put(token, role, marked)

    def _unmark(self, token: str, role: PinRole, candidate: _Candidate) -> None:
        """The token's answer was about something else."""
        record = unmarked(self.record(token, role))
        exchanged = candidate.which is Presented.EXCHANGED
        self._records.put(token, role, replace(record, pending=None) if exchanged else record)

    def _accepted(self, token: str, role: PinRole, candidate: _Candidate, *, for_certain: bool) -> None:
        record = unmarked(self.record(token, role))
        if candidate.which is Presented.EXCHANGED:
            self._taken(token, role, refused=())
            return
        if candidate.which is Presented.PENDING and for_certain:
            self._taken(token, role, refused=record.refused)
            return
        if for_certain:
            left = record.tries if candidate.tries is not None else record.tries_left
            record = replace(record, accepted=True, tries_left=left)
        self._records.put(token, role, record)

    def _taken(self, token: str, role: PinRole, refused: tuple[bytes, ...]) -> None:
        """The pending PIN is the token's. When it is a new one, those refused before may be right one day."""
        record = self.record(token, role)
        left = record.tries
        if left is None and role is PinRole.OPERATOR:
            left = record.tries_left  # of its code, which may be another secret
        taken = PinRecord(sealed=record.pending, accepted=True, refused=refused, tries=record.tries)
        self._records.put(token, role, replace(taken, tries_left=left, told_at=self._clock.now().timestamp()))

    def _refused(
        self,
        token: str,
        roles: Sequence[PinRole],
        given: Mapping[PinRole, _Candidate],
        read: ReadPins,
        error: PinRejected | PinBlocked,
    ) -> PinRole:
        """Wipe what was refused, and say which it was."""
        if not given and isinstance(error, PinRejected):  # one that the token's URI names
            role = PinRole.USER if PinRole.USER in roles else roles[0]
            self._records.put(token, role, replace(self.record(token, role), rejected=True))
            self._announce(token, role, error.retries_left)
            return role
        losers = self._losers(given, read, error)
        for role, candidate in given.items():
            if role in losers:
                left = error.retries_left if isinstance(error, PinRejected) else 0
                self._wipe(token, role, candidate.which, left)
            else:
                self._unmark(token, role, candidate)
        return next(iter(losers), roles[0])

    def _losers(
        self, given: Mapping[PinRole, _Candidate], read: ReadPins, error: PinRejected | PinBlocked
    ) -> Sequence[PinRole]:
        """Whose PIN was refused, by the counters; all in question when they do not tell.

        A PIN that is blocked now was refused if its counter fell: else it was not even tried.
        """
        known = [role for role, candidate in given.items() if candidate.tries is not None]
        rejected = isinstance(error, PinRejected)
        if rejected and len(given) == 1:
            return list(given)
        try:
            state = read()
        except VmTokenError:
            return list(given) if rejected else known
        fell = [role for role in known if (_tries(state, role) or 0) < (given[role].tries or 0)]
        if fell or not rejected:
            return fell
        return [role for role in given if role not in known] or list(given)

    def _wipe(
        self,
        token: str,
        role: PinRole,
        which: Presented,
        tries_left: int | None,
        pin: SecretBytes | None = None,
    ) -> None:
        """Forget a refused PIN; with the one in use goes one that the token was to take in its place."""
        record = self.record(token, role)
        if pin is not None:
            record = replace(record, refused=self._records.with_refused(token, role, pin))
        if which in (Presented.PENDING, Presented.EXCHANGED):
            record = replace(record, pending=None)
        if which in (Presented.CURRENT, Presented.EXCHANGED):
            record = replace(record, sealed=None, accepted=False)
        if which is not Presented.BY_HAND:
            record = replace(record, rejected=not is_kept(record))
        if tries_left is not None:
            record = replace(record, tries_left=tries_left, told_at=self._clock.now().timestamp())
        self._records.put(token, role, replace(record, presented=None, tries_before=None))
        self._announce(token, role, tries_left)

    def _told(self, token: str, role: PinRole, left: int | None, tries: int | None) -> None:
        if left is None:
            return
        record = self.record(token, role)
        before = record.tries_left
        known = replace(record, tries_left=left, tries=tries or max(record.tries or 0, left))
        fresh = replace(known, told_at=self._clock.now().timestamp())
        if known == record:
            self._records.note(token, role, fresh)  # only the time is new: not worth a write
            return
        self._records.put(token, role, fresh)
        if before is not None and left < before:
            facts = {"token": token, "pin": role.value, "tries_left": left, "tries_before": before}
            log.warning("tries of a PIN were lost", extra=facts)
            self._report("pin-tries-lost", facts)

    def _announce(self, token: str, role: PinRole, tries_left: int | None) -> None:
        facts = {"token": token, "pin": role.value, "tries_left": tries_left}
        log.error("a PIN was refused; it is wiped and not tried again", extra=facts)
        self._report("pin-rejected", facts)


def _tries(state: PinState, role: PinRole) -> int | None:
    return state.tries_left if role is PinRole.USER else state.operator_tries_left
