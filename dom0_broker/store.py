"""What the broker must still know after a crash: VMs, tokens, bindings, sealed PINs and what became of them.

SQLite in WAL mode with `synchronous=FULL`: a change is on the disk when the method returns, or
it never happened. Secrets come and go sealed; this file cannot open them.
"""

from __future__ import annotations

import enum
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from msgspec import msgpack

from dom0_broker.backends.base import NOTHING_KEPT, Kept
from dom0_broker.domains import DomainIdentity
from vmtoken.errors import AlreadyExists, Conflict, NotFound, VmTokenError

_SCHEMA: Final = (
    """
    CREATE TABLE vms (
        uuid TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        certificate_sha256 BLOB UNIQUE
    ) STRICT;
    CREATE TABLE tokens (
        name TEXT PRIMARY KEY,
        uri TEXT NOT NULL UNIQUE,
        sealed_user_pin BLOB,
        sealed_operator_pin BLOB
    ) STRICT;
    CREATE TABLE bindings (
        vm TEXT NOT NULL REFERENCES vms (uuid) ON DELETE CASCADE,
        name TEXT NOT NULL,
        token TEXT NOT NULL REFERENCES tokens (name),
        PRIMARY KEY (vm, name)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE enrolment_ca (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        certificate BLOB NOT NULL,
        sealed_key BLOB NOT NULL
    ) STRICT;
    """,
    """
    ALTER TABLE tokens ADD COLUMN chain BLOB NOT NULL DEFAULT x'90';
    ALTER TABLE tokens ADD COLUMN anchors BLOB NOT NULL DEFAULT x'90';
    """,
    """
    CREATE TABLE pooled_bindings (
        vm TEXT NOT NULL REFERENCES vms (uuid) ON DELETE CASCADE,
        name TEXT NOT NULL,
        token TEXT NOT NULL REFERENCES tokens (name),
        number INTEGER NOT NULL,
        PRIMARY KEY (vm, name, token)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO pooled_bindings SELECT vm, name, token, 1 FROM bindings;
    DROP TABLE bindings;
    ALTER TABLE pooled_bindings RENAME TO bindings;
    CREATE TABLE retired_tokens (
        number INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        uri TEXT NOT NULL,
        serial TEXT NOT NULL,
        certificate BLOB NOT NULL,
        key_destroyed INTEGER NOT NULL,
        retired INTEGER NOT NULL
    ) STRICT;
    """,
    """
    CREATE TABLE pins (
        token TEXT NOT NULL REFERENCES tokens (name) ON DELETE CASCADE,
        role TEXT NOT NULL,
        sealed BLOB,
        pending BLOB,
        source TEXT NOT NULL DEFAULT '',
        accepted INTEGER NOT NULL DEFAULT 0,
        rejected INTEGER NOT NULL DEFAULT 0,
        presented TEXT,
        tries_before INTEGER,
        refused BLOB NOT NULL DEFAULT x'90',
        tries_left INTEGER,
        tries INTEGER,
        told_at REAL,
        PRIMARY KEY (token, role)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO pins (token, role, sealed, accepted)
        SELECT name, 'user', sealed_user_pin, 1 FROM tokens WHERE sealed_user_pin IS NOT NULL;
    INSERT INTO pins (token, role, sealed, accepted)
        SELECT name, 'operator', sealed_operator_pin, 1 FROM tokens WHERE sealed_operator_pin IS NOT NULL;
    ALTER TABLE tokens DROP COLUMN sealed_user_pin;
    ALTER TABLE tokens DROP COLUMN sealed_operator_pin;
    """,
    """
    CREATE TABLE pin_holders (name TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
    INSERT INTO pin_holders SELECT name FROM tokens;
    ALTER TABLE tokens ADD COLUMN pin_holder TEXT REFERENCES pin_holders (name);
    UPDATE tokens SET pin_holder = name;
    CREATE TABLE held_pins (
        holder TEXT NOT NULL REFERENCES pin_holders (name) ON DELETE CASCADE,
        role TEXT NOT NULL,
        sealed BLOB,
        pending BLOB,
        source TEXT NOT NULL DEFAULT '',
        accepted INTEGER NOT NULL DEFAULT 0,
        rejected INTEGER NOT NULL DEFAULT 0,
        presented TEXT,
        tries_before INTEGER,
        refused BLOB NOT NULL DEFAULT x'90',
        tries_left INTEGER,
        tries INTEGER,
        told_at REAL,
        PRIMARY KEY (holder, role)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO held_pins SELECT * FROM pins;
    DROP TABLE pins;
    ALTER TABLE held_pins RENAME TO pins;
    """,
)
"""One script a version; a database of version n has had the first n scripts run. Lists of certificates and
digests are MessagePack arrays; 90 is the empty one. `number` is an order in time; times in Unix seconds."""

_BUSY_TIMEOUT = 5.0
"""Seconds; only a second broker on the same state directory, or an operator's sqlite3, makes us wait."""


class StoreError(Exception):
    """The database cannot be used; the message is one sentence for a person."""


@dataclass(frozen=True, slots=True)
class VmRecord:
    """A VM as stored."""

    identity: DomainIdentity
    certificate_sha256: bytes | None


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A token as stored."""

    name: str
    uri: str
    kept: Kept = NOTHING_KEPT


class PinRole(enum.StrEnum):
    """Which PIN of a token."""

    USER = "user"
    """Opens the token for handshakes."""

    OPERATOR = "operator"
    """Opens it for personalisation; the management key of a PIV card."""


class Presented(enum.StrEnum):
    """Which PIN a token was given, as long as its answer is not known."""

    CURRENT = "current"
    """The one in use."""

    PENDING = "pending"
    """The pending one, to see whether it is right."""

    EXCHANGED = "exchanged"
    """The one in use, so that the token takes the pending one in its place."""

    BY_HAND = "by-hand"
    """One that is not kept."""


@dataclass(frozen=True, slots=True)
class PinRecord:
    """A PIN as stored, and what is known of it; `dom0_broker.pins` says what follows from that."""

    sealed: bytes | None = None
    """The PIN in use."""

    pending: bytes | None = None
    """One that the token was, or is to be, asked to take; sealed."""

    source: str = ""
    """Path of a file that holds the PIN, which is then not stored."""

    accepted: bool = False
    """Whether the token has taken the one in use."""

    rejected: bool = False
    """Whether the token has refused it: it was wiped, and none is tried before there is another."""

    presented: Presented | None = None
    tries_before: int | None = None
    """Tries that were left when it was presented; None when the token does not tell."""

    refused: tuple[bytes, ...] = ()
    """Digests, under the host's sealing key, of PINs that the token has refused; oldest first."""

    tries_left: int | None = None
    """As the token told last; None when it never did."""

    tries: int | None = None
    """How many there are after a right PIN."""

    told_at: float | None = None
    """When `tries_left` was true; Unix time in seconds."""


NO_PIN: Final = PinRecord()


@dataclass(frozen=True, slots=True)
class BindingRecord:
    """A token as bound to a VM, under a name of the VM's own."""

    vm: uuid.UUID
    name: str
    token: str


@dataclass(frozen=True, slots=True)
class RetiredToken:
    """What stays of a token whose life has ended."""

    name: str
    uri: str
    serial: str
    certificate: bytes
    """The last leaf that it was seen with, DER; empty when there was none."""

    key_destroyed: bool
    retired: datetime


@dataclass(frozen=True, slots=True)
class CaRecord:
    """The enrolment CA: its certificate, DER, and its sealed key."""

    certificate: bytes
    sealed_key: bytes


class Store:
    """The database. Methods block until the disk has it; any thread may call them.

    A change that the disk does not take raises `VmTokenError`, and nothing has changed.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        try:
            self._database = _open(path)
        except sqlite3.Error as error:
            raise StoreError(f"The database {path} cannot be used: {error}.") from error

    def close(self) -> None:
        """Close the database. May be called twice."""
        with self._lock:
            self._database.close()

    def vms(self) -> list[VmRecord]:
        """All VMs, by name."""
        rows = self._rows("SELECT uuid, name, certificate_sha256 FROM vms ORDER BY name")
        return [VmRecord(DomainIdentity(uuid.UUID(row[0]), row[1]), row[2]) for row in rows]

    def tokens(self) -> list[TokenRecord]:
        """All tokens, by name."""
        rows = self._rows("SELECT name, uri, chain, anchors FROM tokens ORDER BY name")
        return [
            TokenRecord(name, uri, Kept(_octets(chain), _octets(anchors)))
            for name, uri, chain, anchors in rows
        ]

    def pins(self) -> dict[tuple[str, PinRole], PinRecord]:
        """All PINs, by holder and role."""
        rows = self._rows(f"SELECT holder, role, {_PIN_COLUMNS} FROM pins")  # noqa: S608
        return {(holder, PinRole(role)): _pin_record(values) for holder, role, *values in rows}

    def pin_holders(self) -> dict[str, str]:
        """What holds the PINs of each token, by its name; `dom0_broker.pin_records` says more."""
        return dict(self._rows("SELECT name, pin_holder FROM tokens"))

    def bindings(self) -> list[BindingRecord]:
        """All bindings, by VM and name, tokens of one name in the order in which they were bound."""
        rows = self._rows("SELECT vm, name, token FROM bindings ORDER BY vm, name, number")
        return [BindingRecord(uuid.UUID(vm), name, token) for vm, name, token in rows]

    def retired_tokens(self) -> list[RetiredToken]:
        """Tokens that have been, the latest first."""
        columns = "name, uri, serial, certificate, key_destroyed, retired"
        rows = self._rows(f"SELECT {columns} FROM retired_tokens ORDER BY number DESC")  # noqa: S608
        return [
            RetiredToken(name, uri, serial, leaf, bool(destroyed), datetime.fromtimestamp(retired, UTC))
            for name, uri, serial, leaf, destroyed, retired in rows
        ]

    def enrolment_ca(self) -> CaRecord | None:
        """The enrolment CA, None before the first start with TCP."""
        rows = self._rows("SELECT certificate, sealed_key FROM enrolment_ca")
        return CaRecord(*rows[0]) if rows else None

    def add_vm(self, vm: DomainIdentity) -> None:
        """Raises `AlreadyExists` when name or UUID is taken."""
        with self._change(taken=f"There is a VM '{vm.name}' or one of UUID {vm.uuid} already.") as database:
            database.execute("INSERT INTO vms (uuid, name) VALUES (?, ?)", (str(vm.uuid), vm.name))

    def remove_vm(self, vm: uuid.UUID) -> None:
        """Remove a VM and its bindings. Raises `NotFound`."""
        with self._change() as database:
            _one(database.execute("DELETE FROM vms WHERE uuid = ?", (str(vm),)), f"There is no VM {vm}.")

    def enroll_vm(self, vm: uuid.UUID, certificate_sha256: bytes) -> None:
        """Pin a certificate to a VM; an earlier one is forgotten. Raises `NotFound`."""
        with self._change() as database:
            change = "UPDATE vms SET certificate_sha256 = ? WHERE uuid = ?"
            _one(database.execute(change, (certificate_sha256, str(vm))), f"There is no VM {vm}.")

    def add_token(
        self, token: TokenRecord, pins: Mapping[PinRole, PinRecord] | None = None, holder: str = ""
    ) -> None:
        """Raises `AlreadyExists` when name or URI is taken. `holder` of the PINs is the token by itself."""
        with self._change(taken=f"There is a token '{token.name}' or one at {token.uri}.") as database:
            kept = (msgpack.encode(token.kept.chain), msgpack.encode(token.kept.anchors))
            insert = "INSERT INTO tokens (name, uri, chain, anchors) VALUES (?, ?, ?, ?)"
            database.execute(insert, (token.name, token.uri, *kept))
            _hold(database, token.name, holder or token.name)
            _put_pins(database, holder or token.name, pins or {})

    def remove_token(self, name: str) -> None:
        """With PINs that no other token has. Raises `NotFound`, and `Conflict` while a VM has it."""
        with self._change(bound=f"Token '{name}' is bound to a VM; unbind it first.") as database:
            _delete_token(database, name)

    def put_pins(self, holder: str, pins: Mapping[PinRole, PinRecord]) -> None:
        """Keep what is known of PINs of a holder, all in one step. Raises `NotFound`."""
        with self._change(absent=f"There is no token that has its PINs from '{holder}'.") as database:
            _put_pins(database, holder, pins)

    def move_pins(self, token: str, holder: str, pins: Mapping[PinRole, PinRecord]) -> None:
        """A token's PINs are those of a holder from now on; what is known of these. Raises `NotFound`."""
        with self._change() as database:
            _hold(database, token, holder)
            _put_pins(database, holder, pins)

    def keep_certificates(self, name: str, kept: Kept) -> None:
        """For a token that cannot keep them itself. Raises `NotFound`."""
        values = (msgpack.encode(kept.chain), msgpack.encode(kept.anchors), name)
        with self._change() as database:
            change = "UPDATE tokens SET chain = ?, anchors = ? WHERE name = ?"
            _one(database.execute(change, values), f"There is no token '{name}'.")

    def retire_token(self, token: RetiredToken) -> None:
        """Forget a token and its bindings, and remember that it was. Raises `NotFound`."""
        with self._change() as database:
            database.execute("DELETE FROM bindings WHERE token = ?", (token.name,))
            _delete_token(database, token.name)
            retired = int(token.retired.timestamp())
            facts = (token.name, token.uri, token.serial, token.certificate, token.key_destroyed, retired)
            database.execute("INSERT INTO retired_tokens VALUES (NULL, ?, ?, ?, ?, ?, ?)", facts)

    def bind(self, binding: BindingRecord) -> None:
        """Raises `AlreadyExists` when the VM has that token so already, `NotFound` without VM or token."""
        taken = f"The VM has token '{binding.token}' as '{binding.name}' already."
        with self._change(taken=taken, absent=f"There is no token '{binding.token}'.") as database:
            vm, name = str(binding.vm), binding.name
            last = "SELECT COALESCE(MAX(number), 0) FROM bindings WHERE vm = ? AND name = ?"
            (number,) = database.execute(last, (vm, name)).fetchone()
            database.execute(
                "INSERT INTO bindings VALUES (?, ?, ?, ?)", (vm, name, binding.token, number + 1)
            )

    def unbind(self, vm: uuid.UUID, name: str, token: str | None = None) -> None:
        """All tokens of a name, or one of them. Raises `NotFound`."""
        with self._change() as database:
            which = "vm = ? AND name = ? AND token = IFNULL(?, token)"
            change = database.execute(f"DELETE FROM bindings WHERE {which}", (str(vm), name, token))  # noqa: S608
            if not change.rowcount:
                what = f"token '{token}' as '{name}'" if token else f"token '{name}'"
                raise NotFound(f"The VM has no {what}.")

    def keep_enrolment_ca(self, ca: CaRecord) -> None:
        """Raises `AlreadyExists` when there is one: every VM would have to be enrolled again."""
        with self._change(taken="There is an enrolment CA already.") as database:
            database.execute("INSERT INTO enrolment_ca VALUES (1, ?, ?)", (ca.certificate, ca.sealed_key))

    def _rows(self, query: str) -> list[Any]:
        with self._lock:
            return self._database.execute(query).fetchall()

    @contextmanager
    def _change(self, *, taken: str = "", bound: str = "", absent: str = "") -> Iterator[sqlite3.Connection]:
        """A transaction; constraints that fail become our errors."""
        with self._lock:
            try:
                with self._database:
                    self._database.execute("BEGIN IMMEDIATE")
                    yield self._database
            except sqlite3.IntegrityError as error:
                if error.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY:
                    raise (Conflict(bound) if bound else NotFound(absent)) from error
                raise AlreadyExists(taken) from error
            except sqlite3.Error as error:
                raise VmTokenError(f"The database cannot be changed: {error}.") from error


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            database.execute(f"PRAGMA {pragma}")
        path.chmod(0o600)
        _migrate(database)
    except BaseException:
        database.close()
        raise
    return database


def _migrate(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > len(_SCHEMA):
        raise StoreError(
            f"The database is of version {version}, made by a newer broker; this one knows {len(_SCHEMA)}."
        )
    for number, script in enumerate(_SCHEMA[version:], start=version + 1):
        database.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")


_PIN_COLUMNS: Final = ", ".join(field.name for field in fields(PinRecord))
_PUT_PIN: Final = f"""
    INSERT OR REPLACE INTO pins (holder, role, {_PIN_COLUMNS})
    VALUES ({", ".join("?" * (2 + len(fields(PinRecord))))})
"""  # noqa: S608


_FORGET_HOLDERS: Final = "DELETE FROM pin_holders WHERE name NOT IN (SELECT pin_holder FROM tokens)"


def _hold(database: sqlite3.Connection, token: str, holder: str) -> None:
    database.execute("INSERT OR IGNORE INTO pin_holders VALUES (?)", (holder,))
    change = database.execute("UPDATE tokens SET pin_holder = ? WHERE name = ?", (holder, token))
    _one(change, f"There is no token '{token}'.")
    database.execute(_FORGET_HOLDERS)


def _put_pins(database: sqlite3.Connection, holder: str, pins: Mapping[PinRole, PinRecord]) -> None:
    for role, pin in pins.items():
        database.execute(_PUT_PIN, (holder, role, *_pin_values(pin)))


def _delete_token(database: sqlite3.Connection, name: str) -> None:
    _one(database.execute("DELETE FROM tokens WHERE name = ?", (name,)), f"There is no token '{name}'.")
    database.execute(_FORGET_HOLDERS)


def _pin_values(pin: PinRecord) -> list[Any]:
    values = asdict(pin) | {"refused": msgpack.encode(pin.refused)}
    return [values[field.name] for field in fields(PinRecord)]


def _pin_record(columns: Sequence[Any]) -> PinRecord:
    values = dict(zip((field.name for field in fields(PinRecord)), columns, strict=True))
    for flag in ("accepted", "rejected"):
        values[flag] = bool(values[flag])
    if values["presented"] is not None:
        values["presented"] = Presented(values["presented"])
    return PinRecord(**values | {"refused": _octets(values["refused"])})


def _octets(encoded: bytes) -> tuple[bytes, ...]:
    return msgpack.decode(encoded, type=tuple[bytes, ...])


def _one(cursor: sqlite3.Cursor, absent: str) -> None:
    if cursor.rowcount != 1:
        raise NotFound(absent)
