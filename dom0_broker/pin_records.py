"""What is kept of PINs, in memory and on the disk, by what holds them.

A holder is what has the PINs and counts their tries: a software element, an application on a card, a PKCS#11
token. Several tokens can be keys of one holder, and then have one record. As long as a holder is not known,
because the card was never seen, its name is that of its only token; others have a colon in theirs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from dom0_broker.pin_sources import read_pin_source
from dom0_broker.safe import Safe
from dom0_broker.store import NO_PIN, PinRecord, PinRole, Presented, Store, TokenRecord
from vmtoken.errors import VmTokenError
from vmtoken.secret import SecretBytes

log = logging.getLogger(__name__)

_MOST_REFUSED: Final = 256
"""Digests of refused PINs kept for each PIN of a holder: more than anybody gives while it stays the same."""


class PinRecords:
    """One record a holder and role, reached through any of its tokens. Any thread may call the methods."""

    def __init__(self, store: Store, safe: Safe) -> None:
        self._store = store
        self._safe = safe
        self._holders = store.pin_holders()
        self._records = store.pins()
        self._turns: dict[str, threading.RLock] = {}

    def of(self, token: str, role: PinRole) -> PinRecord:
        """What is known of a PIN."""
        return self.held(self.holder(token), role)

    def held(self, holder: str, role: PinRole) -> PinRecord:
        """As `of`, by the holder."""
        return self._records.get((holder, role), NO_PIN)

    def holder(self, token: str) -> str:
        """What has the PINs of a token; the token's own name while that is not known."""
        return self._holders.get(token, token)

    def tokens(self, holder: str) -> list[str]:
        """The tokens that share the PINs of a holder, by name."""
        return sorted(token for token, its in list(self._holders.items()) if its == holder)

    @contextmanager
    def turn(self, holder: str) -> Iterator[None]:
        """Wait until nobody else gives PINs to a holder; a thread that has the turn may take it again."""
        with self._turns.setdefault(holder, threading.RLock()):
            yield

    def add(self, token: TokenRecord, holder: str, records: Mapping[PinRole, PinRecord]) -> None:
        """Keep a new token and what is new of its PINs. Raises as `Store.add_token`."""
        self._store.add_token(token, records, holder)
        self._adopt(token.name, holder, records)

    def forget(self, token: str) -> None:
        """A token is gone, from the store too; the last one of a holder takes its PINs with it."""
        holder = self._holders.pop(token, token)
        if not self.tokens(holder):
            for role in PinRole:
                self._records.pop((holder, role), None)

    def move(self, token: str, holder: str) -> None:
        """What has the PINs of a token is known now. Raises `VmTokenError`, and nothing has changed."""
        with self.turn(holder):
            earlier = self.holder(token)
            mine = {
                role: self._records[earlier, role] for role in PinRole if (earlier, role) in self._records
            }
            moved = {role: self._moved(record, earlier, holder, role) for role, record in mine.items()}
            self._store.move_pins(token, holder, moved)
            self._adopt(token, holder, moved)
            for role in mine:
                del self._records[earlier, role]

    def must_put(self, token: str, role: PinRole, record: PinRecord) -> None:
        """What cannot be kept does not happen: raises `VmTokenError`, and nothing has changed."""
        holder = self.holder(token)
        self._store.put_pins(holder, {role: record})
        self._records[holder, role] = record

    def put(self, token: str, role: PinRole, record: PinRecord) -> None:
        """What has happened counts until the next start even if the disk does not take it."""
        holder = self.note(token, role, record)
        try:
            self._store.put_pins(holder, {role: record})
        except VmTokenError as error:
            log.error("what became of a PIN cannot be kept", extra={"token": token, "because": error.message})  # noqa: TRY400

    def note(self, token: str, role: PinRole, record: PinRecord) -> str:
        """Keep in memory what is not worth a write; the holder."""
        holder = self.holder(token)
        self._records[holder, role] = record
        return holder

    def in_use(self, holder: str, role: PinRole) -> SecretBytes | None:
        """The PIN in use, sealed or from its source, None without one. Raises as `read_pin_source`."""
        record = self.held(holder, role)
        if record.source:
            return read_pin_source(Path(record.source))
        return self._opened(record.sealed, holder, role)

    def pending(self, token: str, role: PinRole) -> SecretBytes | None:
        """The PIN that the holder was, or is to be, asked to take."""
        holder = self.holder(token)
        return self._opened(self.held(holder, role).pending, holder, role)

    def sealed(self, holder: str, role: PinRole, pin: SecretBytes) -> bytes:
        """For the record."""
        return self._safe.seal(pin, _purpose(holder, role))

    def is_refused(self, holder: str, role: PinRole, pin: SecretBytes, refused: Sequence[bytes]) -> bool:
        """Whether a PIN is one of those; some were refused when each token had a record of its own."""
        return any(digest in refused for digest in self._digests(holder, role, pin))

    def with_refused(self, token: str, role: PinRole, pin: SecretBytes) -> tuple[bytes, ...]:
        """The digests of refused PINs and, last, that of another one."""
        holder = self.holder(token)
        digest, *earlier = self._digests(holder, role, pin)
        others = [each for each in self.held(holder, role).refused if each not in {digest, *earlier}]
        return (*others[1 - _MOST_REFUSED :], digest)

    def _adopt(self, token: str, holder: str, records: Mapping[PinRole, PinRecord]) -> None:
        self._holders[token] = holder
        self._records.update({(holder, role): record for role, record in records.items()})

    def _moved(self, record: PinRecord, earlier: str, holder: str, role: PinRole) -> PinRecord:
        """The record of a token as one of its holder, which may have one already."""
        sealed, pending = (self._opened(each, earlier, role) for each in (record.sealed, record.pending))
        mine = replace(
            record,
            sealed=None if sealed is None else self.sealed(holder, role, sealed),
            pending=None if pending is None else self.sealed(holder, role, pending),
        )
        if (holder, role) not in self._records:
            return mine
        first, second = sorted((mine, self._records[holder, role]), key=_worth, reverse=True)
        pin = self._opened(first.sealed, holder, role)
        digests = () if pin is None else (*self._digests(holder, role, pin), self._digest(earlier, role, pin))
        return _merged(first, second, digests)

    def _opened(self, sealed: bytes | None, holder: str, role: PinRole) -> SecretBytes | None:
        return None if sealed is None else self._safe.open(sealed, _purpose(holder, role))

    def _digests(self, holder: str, role: PinRole, pin: SecretBytes) -> list[bytes]:
        """That of the holder first, then those from the time when each token had a record of its own."""
        names = [holder, *(token for token in self.tokens(holder) if token != holder)]
        return [self._digest(name, role, pin) for name in names]

    def _digest(self, name: str, role: PinRole, pin: SecretBytes) -> bytes:
        return self._safe.digest(pin, _purpose(name, role))


def unmarked(record: PinRecord) -> PinRecord:
    """The answer is known, and the last digest is not that of a refused PIN."""
    if record.presented is None:
        return record
    return replace(record, presented=None, tries_before=None, refused=record.refused[:-1])


def is_kept(record: PinRecord) -> bool:
    """Whether there is a PIN, right or not."""
    return record.sealed is not None or record.pending is not None or bool(record.source)


def _worth(record: PinRecord) -> tuple[bool, bool, float]:
    return is_kept(record) and record.accepted, is_kept(record), record.told_at or 0.0


def _merged(first: PinRecord, second: PinRecord, digests: Sequence[bytes]) -> PinRecord:
    """One record of two for the same PIN. Of two PINs the one that was taken last stays, and only that.

    `digests` are those of the first one's PIN. If it was refused as the second's, it is wiped; if that is in
    doubt, the doubt stays.
    """
    told = max(first, second, key=lambda each: each.told_at or 0.0)
    refused = unmarked(second).refused
    doubted = second.refused[len(refused) :]
    others = [each for each in doubted if each not in digests]
    merged = replace(
        first,
        refused=(*refused, *others, *first.refused)[-_MOST_REFUSED:],
        tries_left=told.tries_left,
        tries=told.tries,
        told_at=told.told_at,
    )
    if any(each in digests for each in refused):
        return replace(unmarked(merged), sealed=None, accepted=False, rejected=first.pending is None)
    if first.presented is None and any(each in digests for each in doubted):
        marked = replace(merged, presented=Presented.CURRENT, tries_before=second.tries_before)
        return replace(marked, refused=(*merged.refused[1 - _MOST_REFUSED :], digests[0]))
    return merged


def _purpose(holder: str, role: PinRole) -> str:
    return f"{role} PIN of token {holder}"
