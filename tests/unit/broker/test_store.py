from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dom0_broker.backends.base import NOTHING_KEPT, Kept
from dom0_broker.domains import DomainIdentity
from dom0_broker.store import (
    NO_PIN,
    BindingRecord,
    CaRecord,
    PinRecord,
    PinRole,
    Presented,
    RetiredToken,
    Store,
    StoreError,
    TokenRecord,
    VmRecord,
)
from vmtoken.errors import AlreadyExists, Conflict, NotFound, VmTokenError

WEB01 = DomainIdentity(uuid.UUID(int=1), "web01")
WEB02 = DomainIdentity(uuid.UUID(int=2), "web02")
MOMENT = datetime(2026, 11, 26, 5, 0, tzinfo=UTC)
TOKEN = TokenRecord("web", "soft:web")
PIN = PinRecord(
    sealed=b"sealed pin",
    pending=b"another sealed pin",
    source="/etc/pin",
    accepted=True,
    presented=Presented.PENDING,
    tries_before=3,
    refused=(b"digest", b"another digest"),
    tries_left=2,
    tries=3,
    told_at=1e9,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "broker.sqlite")
    yield store
    store.close()


def test_everything_is_there_again_after_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path / "broker.sqlite")
    store.add_vm(WEB01)
    store.enroll_vm(WEB01.uuid, b"\x11" * 32)
    store.add_token(TOKEN, {PinRole.OPERATOR: NO_PIN})
    store.put_pins("web", {PinRole.USER: PIN})
    store.bind(BindingRecord(WEB01.uuid, "login", "web"))
    store.keep_enrolment_ca(CaRecord(b"certificate", b"sealed key"))
    store.close()
    again = Store(tmp_path / "broker.sqlite")
    assert again.vms() == [VmRecord(WEB01, b"\x11" * 32)]
    assert again.tokens() == [TOKEN]
    assert again.pins() == {("web", PinRole.USER): PIN, ("web", PinRole.OPERATOR): NO_PIN}
    assert again.bindings() == [BindingRecord(WEB01.uuid, "login", "web")]
    assert again.enrolment_ca() == CaRecord(b"certificate", b"sealed key")
    again.close()


def test_names_uuids_and_uris_are_unique(store: Store) -> None:
    store.add_vm(WEB01)
    store.add_token(TOKEN)
    store.bind(BindingRecord(WEB01.uuid, "web", "web"))
    store.keep_enrolment_ca(CaRecord(b"certificate", b"sealed key"))
    for again in (
        lambda: store.add_vm(DomainIdentity(uuid.UUID(int=9), "web01")),
        lambda: store.add_vm(DomainIdentity(WEB01.uuid, "other")),
        lambda: store.add_token(TokenRecord("web", "soft:other")),
        lambda: store.add_token(TokenRecord("other", "soft:web")),
        lambda: store.bind(BindingRecord(WEB01.uuid, "web", "web")),
        lambda: store.keep_enrolment_ca(CaRecord(b"certificate", b"sealed key")),
    ):
        with pytest.raises(AlreadyExists):
            again()


def test_what_is_not_there_cannot_be_changed(store: Store) -> None:
    for change in (
        lambda: store.remove_vm(WEB01.uuid),
        lambda: store.enroll_vm(WEB01.uuid, b"\x11" * 32),
        lambda: store.remove_token("web"),
        lambda: store.put_pins("web", {PinRole.USER: PIN}),
        lambda: store.unbind(WEB01.uuid, "web"),
        lambda: store.bind(BindingRecord(WEB01.uuid, "web", "web")),
    ):
        with pytest.raises(NotFound):
            change()


def test_vm_takes_its_bindings_with_it_and_a_bound_token_stays(store: Store) -> None:
    store.add_vm(WEB01)
    store.add_token(TOKEN)
    store.bind(BindingRecord(WEB01.uuid, "web", "web"))
    with pytest.raises(Conflict):
        store.remove_token("web")
    store.remove_vm(WEB01.uuid)
    assert store.bindings() == []
    store.put_pins("web", {PinRole.USER: PIN})
    store.remove_token("web")
    assert store.tokens() == []
    assert store.pins() == {}


def test_tokens_of_one_name_are_a_pool_in_the_order_of_binding(store: Store) -> None:
    store.add_vm(WEB01)
    for token in ("card-2", "card-1", "card-3"):
        store.add_token(TokenRecord(token, f"soft:{token}"))
        store.bind(BindingRecord(WEB01.uuid, "web", token))
    assert [each.token for each in store.bindings()] == ["card-2", "card-1", "card-3"]
    store.unbind(WEB01.uuid, "web", "card-2")
    assert [each.token for each in store.bindings()] == ["card-1", "card-3"]
    with pytest.raises(NotFound, match="no token 'card-2' as 'web'"):
        store.unbind(WEB01.uuid, "web", "card-2")
    store.unbind(WEB01.uuid, "web")
    assert store.bindings() == []


def test_retired_token_is_forgotten_and_remembered(store: Store) -> None:
    store.add_vm(WEB01)
    store.add_token(TOKEN)
    store.bind(BindingRecord(WEB01.uuid, "login", "web"))
    retired = RetiredToken("web", "soft:web", "0102", b"leaf", key_destroyed=True, retired=MOMENT)
    store.retire_token(retired)
    assert (store.tokens(), store.bindings(), store.retired_tokens()) == ([], [], [retired])
    with pytest.raises(NotFound):
        store.retire_token(retired)
    store.add_token(TOKEN)  # the name is free again
    store.retire_token(replace(retired, key_destroyed=False))
    assert [each.key_destroyed for each in store.retired_tokens()] == [False, True]


def test_database_of_an_older_broker_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    database = sqlite3.connect(path)
    database.executescript(_VERSION_1)
    database.close()
    with contextlib.closing(Store(path)) as store:
        assert store.tokens() == [TokenRecord("card", "soft:card")]
        assert store.pins() == {("card", PinRole.USER): PinRecord(sealed=b"sealed", accepted=True)}
        assert store.bindings() == [BindingRecord(WEB01.uuid, "web", "card")]
        store.add_token(TOKEN)
        store.bind(BindingRecord(WEB01.uuid, "web", "web"))
        store.remove_vm(WEB01.uuid)
        assert store.bindings() == []


_VERSION_1 = f"""
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
    INSERT INTO vms VALUES ('{WEB01.uuid}', 'web01', NULL);
    INSERT INTO tokens VALUES ('card', 'soft:card', x'7365616c6564', NULL);
    INSERT INTO bindings VALUES ('{WEB01.uuid}', 'web', 'card');
    PRAGMA user_version = 1;
"""


def test_database_is_for_its_owner_only(store: Store, tmp_path: Path) -> None:
    store.add_vm(WEB01)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_database_of_a_newer_broker_is_left_alone(tmp_path: Path) -> None:
    Store(tmp_path / "broker.sqlite").close()
    database = sqlite3.connect(tmp_path / "broker.sqlite")
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="newer broker"):
        Store(tmp_path / "broker.sqlite")


def test_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "broker.sqlite").write_bytes(b"something else " * 100)
    with pytest.raises(StoreError, match="cannot be used"):
        Store(tmp_path / "broker.sqlite")


def test_full_disk_changes_nothing(store: Store) -> None:
    store.add_token(TOKEN)
    store._database.execute("PRAGMA max_page_count = 1")  # SQLite keeps what there is, and takes no page more
    with pytest.raises(VmTokenError, match="full"):
        store.add_token(TokenRecord("big", "soft:big", Kept((b"x" * 100_000,))))
    assert store.tokens() == [TOKEN]
    store.keep_certificates("web", NOTHING_KEPT)


_WRITER = """
    import sys, uuid
    from pathlib import Path
    from dom0_broker.domains import DomainIdentity
    from dom0_broker.store import BindingRecord, PinRecord, PinRole, Store, TokenRecord

    store = Store(Path(sys.argv[1]))
    number = len(store.vms())
    while True:
        number += 1
        vm = DomainIdentity(uuid.UUID(int=number), f"vm{number}")
        store.add_vm(vm)
        pins = {PinRole.USER: PinRecord(sealed=b"x" * 2000)}
        store.add_token(TokenRecord(f"token{number}", f"soft:{number}"), pins)
        store.bind(BindingRecord(vm.uuid, "token", f"token{number}"))
        print(number, flush=True)
"""


def test_killed_in_the_middle_of_writes_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "broker.sqlite"
    acknowledged = 0
    for _ in range(4):
        command = [sys.executable, "-c", textwrap.dedent(_WRITER), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(5):
                acknowledged = int(writer.stdout.readline())
            os.kill(writer.pid, signal.SIGKILL)
            acknowledged = max([acknowledged, *map(int, writer.stdout.read().split())])
        store = Store(path)
        numbers = {record.identity.uuid.int for record in store.vms()}
        bound = {binding.vm.int for binding in store.bindings()}
        assert set(range(1, acknowledged + 1)) <= bound <= numbers
        assert len(numbers) <= acknowledged + 1
        store.close()
        check = sqlite3.connect(path)
        assert check.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        check.close()
        # what the killed writer had begun is taken up by the next one
        _complete(path, numbers - bound)


def _complete(path: Path, unbound: set[int]) -> None:
    store = Store(path)
    tokens = {token.name for token in store.tokens()}
    for number in unbound:
        if f"token{number}" not in tokens:
            store.add_token(TokenRecord(f"token{number}", f"soft:{number}"))
        store.bind(BindingRecord(uuid.UUID(int=number), "token", f"token{number}"))
    store.close()
