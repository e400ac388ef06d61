"""One record a decision, in a chain: every line holds the SHA-256 of the line before it.

A line is a JSON object. Whoever changes, removes or moves a line breaks the chain at that place, and
`verify` says where. The end of the chain is kept in a file beside the log, so that lines
missing at the end are seen too; an operator who notes that head elsewhere needs not trust the file.
Records never hold secrets.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dom0_broker.domains import DomainIdentity
from vmtoken.clock import Clock
from vmtoken.errors import VmTokenError

GENESIS: Final = "0" * 64
"""What stands for the record before the first."""

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
_TAIL: Final = 1 << 20
"""Octets; far more than the longest record, so that the last line is found from the end."""

_MOST_NOTES: Final = 10_000
"""While the log cannot be written; the oldest are lost then."""

Fields = Mapping[str, str | int | bool | None]


class AuditError(Exception):
    """The log cannot be used; the message is one sentence for a person."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain."""

    sequence: int
    digest: str

    def line(self) -> str:
        """As kept in the file beside the log."""
        return f"{self.sequence} {self.digest}\n"

    @classmethod
    def parse(cls, line: str) -> Head:
        """Raises `ValueError`."""
        sequence, digest = line.split()
        return cls(int(sequence), digest)


class AuditLog:
    """Appends records; any thread may. `append` returns when the record is where `sync` wants it.

    `sync_always` waits for the disk, and threads that wait together share one fsync.
    Otherwise `sync` is to be called now and then. A file moved away by logrotate is noticed,
    and the chain goes on in a new one.
    """

    def __init__(self, path: Path, clock: Clock, *, sync_always: bool = False) -> None:
        self._path = path
        self._clock = clock
        self._sync_always = sync_always
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._synced = 0
        self._head = Head(0, GENESIS)
        self._file = self._head_file = -1
        try:
            self._open()
        except OSError as error:
            raise AuditError(f"The audit log {path} cannot be opened ({error.strerror}).") from error

    @property
    def head(self) -> Head:
        """The end of the chain."""
        return self._head

    @property
    def path(self) -> Path:
        """Where the log is."""
        return self._path

    def append(self, event: str, fields: Fields) -> Head:
        """Write a record. Raises `AuditError`; what was to be recorded must then not happen."""
        with self._lock:
            head = self._append(event, fields)
        if self._sync_always:
            self._sync_up_to(head.sequence)
        return head

    def sync(self) -> None:
        """Force everything written so far to the disk."""
        self._sync_up_to(self._head.sequence)

    def follow(self) -> None:
        """Go on in a new file if the log was moved away."""
        with self._sync_lock, self._lock:
            self._follow()

    def close(self) -> None:
        """Force everything to the disk and close. May be called twice."""
        if self._file < 0:
            return
        self.sync()
        with self._lock:
            os.close(self._file)
            os.close(self._head_file)
            self._file = self._head_file = -1

    def _append(self, event: str, fields: Fields) -> Head:
        sequence = self._head.sequence + 1
        record = {
            "sequence": sequence,
            "previous": self._head.digest,
            "time": self._clock.now().isoformat(timespec="microseconds"),
            "event": event,
            **{name: value for name, value in fields.items() if value is not None},
        }
        line = json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode()
        self._write(line + b"\n")
        self._head = Head(sequence, hashlib.sha256(line).hexdigest())
        os.pwrite(self._head_file, self._head.line().encode().ljust(96), 0)
        return self._head

    def _write(self, line: bytes) -> None:
        """Whole lines only: a part that a full disk took is taken back."""
        end = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise AuditError(f"The audit log {self._path} cannot be written ({error.strerror}).") from error
        if written != len(line):
            os.ftruncate(self._file, end)
            raise AuditError(f"The audit log {self._path} cannot be written (no space left).")

    def _sync_up_to(self, sequence: int) -> None:
        """Group commit: one thread syncs for all that wrote before it began."""
        with self._sync_lock:
            if self._synced >= sequence or self._file < 0:
                return
            written = self._head.sequence
            try:
                os.fdatasync(self._file)
            except OSError as error:
                raise AuditError(f"The audit log {self._path} did not reach the disk.") from error
            self._synced = written

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._head_file = os.open(head_path(self._path), _FLAGS, 0o600)
        try:
            fcntl.flock(self._head_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._head_file)
            raise AuditError(f"Another broker writes to the audit log {self._path}.") from error
        self._file = os.open(self._path, _FLAGS | os.O_APPEND, 0o600)
        self._resume()

    def _resume(self) -> None:
        """Find the end of the chain; keep a torn last line aside and say so in the log."""
        torn = self._take_torn_line()
        kept = self._kept_head()
        last = _last_line(self._file)
        self._head = _head_of(last, self._path) if last else (kept or self._head)
        if torn:
            digest = hashlib.sha256(torn).hexdigest()
            self._append("torn-line", {"octets": len(torn), "sha256": digest})
        if kept is not None and kept.sequence > self._head.sequence and not torn:
            missing = kept.sequence - self._head.sequence
            self._append("records-missing", {"count": missing, "expected": kept.digest})

    def _take_torn_line(self) -> bytes:
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, _TAIL, max(0, size - _TAIL))
        torn = tail[tail.rfind(b"\n") + 1 :]
        if torn:
            aside = self._path.with_name(self._path.name + ".torn")
            with open(aside, "ab", opener=_private) as file:
                file.write(torn + b"\n")
                os.fsync(file.fileno())
            os.ftruncate(self._file, size - len(torn))
        return torn

    def _kept_head(self) -> Head | None:
        try:
            return Head.parse(os.pread(self._head_file, 96, 0).decode("ascii"))
        except ValueError:
            return None

    def _follow(self) -> None:
        try:
            moved = not os.path.samestat(os.fstat(self._file), self._path.stat())
        except FileNotFoundError:
            moved = True
        if moved:
            os.fdatasync(self._file)
            os.close(self._file)
            self._file = os.open(self._path, _FLAGS | os.O_APPEND, 0o600)


class AuditNotes:
    """Records of what had no effect, such as refusals: kept for a moment, then written by `flush`.

    Refusals of one kind are counted and written as one record, so that a VM that asks in a tight loop
    fills no disk. `add` and `refuse` are for the event loop, `flush` for another thread.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._notes: deque[tuple[str, Fields]] = deque(maxlen=_MOST_NOTES)
        self._refusals: Counter[tuple[str, str, str, str]] = Counter()

    def add(self, event: str, fields: Fields) -> None:
        """Keep a record until the next flush."""
        at = self._clock.now().isoformat(timespec="microseconds")
        with self._lock:
            self._notes.append((event, {**fields, "at": at}))

    def refuse(self, vm: DomainIdentity, token: str, error: VmTokenError) -> None:
        """Count a handshake that was not begun."""
        with self._lock:
            self._refusals[vm.name, str(vm.uuid), token, error.reason] += 1

    def flush(self, log: AuditLog) -> None:
        """Write what is kept. Raises `AuditError`, and keeps what is not written."""
        with self._lock:
            refusals, self._refusals = self._refusals, Counter()
            for (vm, vm_uuid, token, reason), count in refusals.items():
                fields = {"vm": vm, "vm_uuid": vm_uuid, "token": token or None, "outcome": reason}
                self._notes.append(("handshake-refused", {**fields, "count": count}))
        while self._notes:
            log.append(*self._notes[0])
            self._notes.popleft()


def head_path(log: Path) -> Path:
    """Where the head of a log is kept."""
    return log.with_name(log.name + ".head")


@dataclass(frozen=True, slots=True)
class Verified:
    """A chain without a break."""

    files: int
    records: int
    first: int
    head: Head


def verify(log: Path) -> Verified:
    """Check a log and its rotated files (`.1`, `-20261123`, `.gz`) from the oldest on.

    Raises `AuditError` that names file and line of the first record that was changed, moved,
    inserted, or that follows removed ones, and says when lines are missing at the end.
    """
    kept = _kept_head(log)
    chain = _Chain(kept)
    files = _in_order(log)
    for file in files:
        with _opened(file) as lines:
            for number, line in enumerate(lines, start=1):
                chain.follow(line, f"{file}:{number}")
    chain.check_end(log, kept)
    return Verified(len(files), chain.records, chain.first, chain.head)


class _Chain:
    """The chain as read so far."""

    def __init__(self, kept: Head) -> None:
        self.head = Head(0, GENESIS)
        self.records = 0
        self.first = 1
        self.digest_of_kept: str | None = None
        self._kept = kept

    def follow(self, line: bytes, place: str) -> None:
        record = _record(line, place)
        sequence, previous = record["sequence"], record["previous"]
        if self.records == 0 and sequence > 1:
            self.first, self.head = sequence, Head(sequence - 1, previous)
        if sequence != self.head.sequence + 1:
            raise AuditError(f"{place}: record {sequence} follows record {self.head.sequence}.")
        if previous != self.head.digest:
            raise AuditError(
                f"{place}: record {sequence} does not fit record {sequence - 1}: one was changed."
            )
        self.head = Head(sequence, hashlib.sha256(line.rstrip(b"\n")).hexdigest())
        self.records += 1
        if sequence == self._kept.sequence:
            self.digest_of_kept = self.head.digest

    def check_end(self, log: Path, kept: Head) -> None:
        """`kept` is the head as it was before the log was read; the broker may have gone on since."""
        if kept.sequence > self.head.sequence:
            missing = kept.sequence - self.head.sequence
            raise AuditError(f"{log}: ends at record {self.head.sequence}; {missing} after it were removed.")
        if self.digest_of_kept not in (None, kept.digest):
            raise AuditError(f"{log}: record {kept.sequence} was changed.")
        if self.head.sequence > _settled_head(log, self.head.sequence).sequence:
            raise AuditError(f"{log}: has records after {kept.sequence} that the broker did not write.")


def _kept_head(log: Path) -> Head:
    try:
        return Head.parse(head_path(log).read_text("ascii"))
    except (OSError, ValueError) as error:
        raise AuditError(f"{head_path(log)}: missing or damaged: the log's end is unknown.") from error


def _settled_head(log: Path, sequence: int) -> Head:
    """The head, after the moment that a broker at work needs from the line to the head."""
    for _ in range(10):
        if (kept := _kept_head(log)).sequence >= sequence:
            break
        time.sleep(0.01)
    return kept


def _record(line: bytes, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise AuditError(f"{place}: is not a record.") from error
    if not (
        line.endswith(b"\n")
        and isinstance(record, dict)
        and isinstance(record.get("sequence"), int)
        and isinstance(record.get("previous"), str)
    ):
        raise AuditError(f"{place}: is not a record.")
    return record


def _in_order(log: Path) -> list[Path]:
    """The log and its rotated files, by the number of their first record."""
    numbered = []
    for file in log.parent.glob(f"{log.name}*"):
        if file.name.removeprefix(log.name) not in {".head", ".torn"} and file.stat().st_size:
            with _opened(file) as lines:
                numbered.append((_record(next(lines), f"{file}:1")["sequence"], file))
    return [file for _, file in sorted(numbered)]


@contextmanager
def _opened(file: Path) -> Iterator[Iterator[bytes]]:
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
        yield iter(lines)


def _last_line(file: int) -> bytes:
    size = os.fstat(file).st_size
    tail = os.pread(file, _TAIL, max(0, size - _TAIL))
    return tail[tail.rfind(b"\n", 0, -1) + 1 : -1]


def _head_of(line: bytes, path: Path) -> Head:
    sequence = _record(line + b"\n", f"{path}, last line")["sequence"]
    return Head(sequence, hashlib.sha256(line).hexdigest())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
