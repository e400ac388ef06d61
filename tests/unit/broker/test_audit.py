from __future__ import annotations

import gzip
import hashlib
import json
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_broker.audit import GENESIS, AuditError, AuditLog, AuditNotes, Head, head_path, verify
from dom0_broker.domains import DomainIdentity
from vmtoken.clock import SystemClock
from vmtoken.errors import QuotaExceeded

CLOCK = SystemClock()


def written(path: Path, count: int = 5) -> Path:
    """A log with so many records."""
    log = AuditLog(path, CLOCK)
    for number in range(count):
        log.append("test", {"number": number, "absent": None})
    log.close()
    return path


def test_every_record_holds_the_digest_of_the_line_before(tmp_path: Path) -> None:
    lines = written(tmp_path / "audit.jsonl").read_bytes().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["sequence"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["number"] for record in records] == [0, 1, 2, 3, 4]
    assert "absent" not in records[0]
    digests = [hashlib.sha256(line).hexdigest() for line in lines]
    assert [record["previous"] for record in records] == [GENESIS, *digests[:-1]]
    assert head_path(tmp_path / "audit.jsonl").read_text().split() == ["5", digests[-1]]
    assert verify(tmp_path / "audit.jsonl").head == Head(5, digests[-1])


def test_chain_goes_on_after_reopening(tmp_path: Path) -> None:
    written(written(tmp_path / "audit.jsonl"))
    assert verify(tmp_path / "audit.jsonl").records == 10


@pytest.mark.parametrize(
    "tamper",
    [
        lambda lines: [*lines[:2], lines[2].replace(b'"number":2', b'"number":7'), *lines[3:]],
        lambda lines: [*lines[:4], lines[4].replace(b'"number":4', b'"number":7')],
        lambda lines: lines[:2] + lines[3:],
        lambda lines: lines[:-1],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [lines[0], lines[2], lines[1], *lines[3:]],
        lambda lines: [*lines[:3], b"not json\n", *lines[3:]],
        lambda lines: [*lines[:-1], lines[-1].rstrip()],
        lambda lines: [],
    ],
    ids=["edit", "edit last", "remove", "truncate", "repeat", "swap", "insert", "torn", "empty"],
)
def test_tampering_is_found(tmp_path: Path, tamper: Callable[[list[bytes]], list[bytes]]) -> None:
    path = written(tmp_path / "audit.jsonl")
    path.write_bytes(b"".join(tamper(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(AuditError, match=r"audit\.jsonl"):
        verify(path)


def test_tampering_is_located(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"number":2', b'"number":7'))
    with pytest.raises(AuditError, match=r"audit\.jsonl:4: record 4 does not fit record 3: one was changed"):
        verify(path)


@given(st.data())
def test_any_change_of_an_octet_is_found(data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        path = written(Path(directory) / "audit.jsonl", 4)
        octets = bytearray(path.read_bytes())
        position = data.draw(st.integers(0, len(octets) - 1))
        octets[position] ^= data.draw(st.integers(1, 255))
        path.write_bytes(octets)
        with pytest.raises(AuditError):
            verify(path)


@given(st.data())
def test_any_other_order_or_choice_of_records_is_found(data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        path = written(Path(directory) / "audit.jsonl", 5)
        lines = path.read_bytes().splitlines(keepends=True)
        chosen = data.draw(st.lists(st.sampled_from(lines), max_size=7).filter(lambda these: these != lines))
        beginning_removed = chosen and chosen == lines[-len(chosen) :]
        path.write_bytes(b"".join(chosen))
        if beginning_removed:  # as after a rotation whose older file is elsewhere: it is said where it begins
            assert verify(path).first == 6 - len(chosen)
        else:
            with pytest.raises(AuditError):
                verify(path)


def test_torn_last_line_is_kept_aside_and_noted(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl")
    with path.open("ab") as file:
        file.write(b'{"sequence":6,"prev')
    written(path, 1)
    assert verify(path).records == 7
    assert (tmp_path / "audit.jsonl.torn").read_bytes() == b'{"sequence":6,"prev\n'
    noted = json.loads(path.read_bytes().splitlines()[5])
    assert (noted["event"], noted["octets"]) == ("torn-line", 19)


def test_records_lost_with_the_power_are_noted_at_the_next_start(tmp_path: Path) -> None:
    path = written(tmp_path / "audit.jsonl")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    AuditLog(path, CLOCK).close()
    noted = json.loads(path.read_bytes().splitlines()[3])
    assert (noted["event"], noted["count"]) == ("records-missing", 2)
    assert verify(path).records == 4


@pytest.mark.parametrize("compress", [False, True])
def test_chain_goes_through_rotated_files(tmp_path: Path, *, compress: bool) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, CLOCK)
    log.append("test", {})
    log.append("test", {})
    rotated = path.rename(tmp_path / "audit.jsonl.1")
    log.append("test", {})  # still into the file that was moved, as logrotate expects
    log.follow()
    log.append("test", {})
    log.close()
    if compress:
        (tmp_path / "audit.jsonl.1.gz").write_bytes(gzip.compress(rotated.read_bytes()))
        rotated.unlink()
    verified = verify(path)
    assert (verified.files, verified.records, verified.first) == (2, 4, 1)


def test_second_broker_on_the_same_log_is_refused(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", CLOCK)
    with pytest.raises(AuditError, match="Another broker"):
        AuditLog(tmp_path / "audit.jsonl", CLOCK)
    log.close()


def test_many_threads_write_one_chain(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", CLOCK, sync_always=True)
    threads = [threading.Thread(target=lambda: [log.append("test", {}) for _ in range(25)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert verify(tmp_path / "audit.jsonl").records == 200


def test_log_that_cannot_be_written_refuses(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", CLOCK)
    file, full = os.dup(log._file), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)
    with pytest.raises(AuditError, match="cannot be written"):
        log.append("test", {})
    os.dup2(file, log._file)
    log.append("test", {})
    log.close()
    os.close(file)
    os.close(full)
    assert verify(tmp_path / "audit.jsonl").records == 1


def test_refusals_of_one_kind_become_one_record(tmp_path: Path) -> None:
    notes = AuditNotes(CLOCK)
    web01 = DomainIdentity(uuid.UUID(int=1), "web01")
    for _ in range(1000):
        notes.refuse(web01, "web", QuotaExceeded("too many"))
    notes.add("handshake-failed", {"outcome": "aborted"})
    log = AuditLog(tmp_path / "audit.jsonl", CLOCK)
    notes.flush(log)
    notes.flush(log)
    log.close()
    first, second = map(json.loads, (tmp_path / "audit.jsonl").read_bytes().splitlines())
    assert (first["event"], second["event"]) == ("handshake-failed", "handshake-refused")
    assert (second["vm"], second["outcome"], second["count"]) == ("web01", "QUOTA_EXCEEDED", 1000)


def test_notes_wait_for_a_log_that_can_be_written(tmp_path: Path) -> None:
    notes = AuditNotes(CLOCK)
    log = AuditLog(tmp_path / "audit.jsonl", CLOCK)
    notes.add("first", {})
    notes.add("second", {})
    file, full = os.dup(log._file), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)
    with pytest.raises(AuditError):
        notes.flush(log)
    os.dup2(file, log._file)
    notes.flush(log)
    log.close()
    os.close(file)
    os.close(full)
    lines = (tmp_path / "audit.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["first", "second"]


def test_log_is_for_its_owner_only(tmp_path: Path) -> None:
    written(tmp_path / "audit" / "audit.jsonl")
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "audit").iterdir()} == {0o600}
