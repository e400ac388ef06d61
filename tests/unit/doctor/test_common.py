"""Clock, disk, dates, versions, permissions: each check finds what it is for, and says what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support.machines import NOON, STRANGER, complaints, machine, owner, put
from tests.support.sentences import is_sentence
from vmtoken.doctor import common
from vmtoken.doctor.finding import (
    Finding,
    Verdict,
    as_json,
    as_text,
    examine,
    exit_code,
    good,
    warning,
    wrong,
)
from vmtoken.doctor.machine import Account

WARNING, WRONG = Verdict.WARNING, Verdict.WRONG


@pytest.mark.parametrize(
    ("now", "synchronised", "expected"),
    [
        (NOON, "yes", []),
        (NOON, "no", [("clock", WARNING)]),
        (datetime(2020, 1, 1, tzinfo=UTC), "yes", [("clock", WRONG)]),
    ],
)
def test_clock(tmp_path: Path, now: datetime, synchronised: str, expected: list[tuple[str, Verdict]]) -> None:
    findings = list(common.clock(machine(tmp_path, {"timedatectl": f"{synchronised}\n"}, now)))
    assert complaints(findings) == expected


def test_clock_without_systemd_is_believed(tmp_path: Path) -> None:
    assert complaints(list(common.clock(machine(tmp_path)))) == []


@pytest.mark.parametrize(
    ("blocks", "files_free", "expected"),
    [(1 << 20, 1000, []), (100, 1000, [("disk", WRONG)]), (1 << 20, 0, [("disk", WRONG)])],
)
def test_disk(
    monkeypatch: pytest.MonkeyPatch, blocks: int, files_free: int, expected: list[tuple[str, Verdict]]
) -> None:
    status = SimpleNamespace(f_bavail=blocks, f_frsize=4096, f_favail=files_free, f_files=100_000)
    monkeypatch.setattr(os, "statvfs", lambda _: status)
    assert complaints(list(common.room(Path("/var/lib/vmtoken")))) == expected


@pytest.mark.parametrize(
    ("begins", "ends", "expected"),
    [
        (-1, 365, None),
        (-1, 29, WARNING),
        (-365, -1, WRONG),
        (1, 365, WRONG),
    ],
)
def test_certificate_dates(begins: int, ends: int, expected: Verdict | None) -> None:
    before, after = NOON + timedelta(days=begins), NOON + timedelta(days=ends)
    finding = common.certificate_dates("web01", after, NOON, "Renew it.", before)
    assert complaints([finding]) == ([("certificate", expected)] if expected else [])


def test_daemon_that_was_not_restarted_after_an_upgrade() -> None:
    assert complaints([common.versions("vmtoken-broker", "1.0", "1.1")]) == [("version", WARNING)]
    assert complaints([common.versions("vmtoken-broker", "1.1", "1.1")]) == []


def test_what_must_be_private(tmp_path: Path) -> None:
    file = put(tmp_path, "sealing.key", mode=0o600)
    user = owner(file)
    assert complaints([common.private("state", file, user, 0o600)]) == []
    assert complaints([common.private("state", file, STRANGER, 0o600)]) == [("state", WRONG)]
    file.chmod(0o640)
    finding = common.private("state", file, user, 0o600)
    assert complaints([finding]) == [("state", WRONG)]
    assert finding.cure == f"Run: chmod 0600 {file}"


@pytest.mark.parametrize(
    ("user", "mode", "allowed"),
    [
        (Account("owner", 1, frozenset()), 0o600, True),
        (Account("owner", 1, frozenset([2])), 0o060, False),
        (Account("member", 9, frozenset([2])), 0o060, True),
        (Account("member", 9, frozenset([2])), 0o606, False),
        (Account("other", 9, frozenset([9])), 0o006, True),
        (Account("other", 9, frozenset([9])), 0o004, False),
        (Account("root", 0, frozenset()), 0o000, True),
    ],
    ids=lambda value: value.name if isinstance(value, Account) else None,
)
def test_permissions_are_judged_as_the_kernel_does(user: Account, mode: int, allowed: bool) -> None:
    status = os.stat_result((0o100000 | mode, 0, 0, 1, 1, 2, 0, 0, 0, 0))
    assert user.may(status, 0o6) is allowed


def test_check_that_cannot_look_is_a_finding_and_the_others_are_made() -> None:
    def locked_room() -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied", "/var/lib/vmtoken")
        yield good("never", "reached")

    findings = examine([locked_room, lambda: [good("other", "Fine.")]])
    assert [finding.check for finding in findings] == ["locked-room", "other"]
    assert complaints(findings) == [("locked-room", WRONG)]


@pytest.mark.parametrize(
    ("findings", "code"),
    [([good("a", "Fine.")], 0), ([warning("a", "Soon.", "Do it.")], 0), ([wrong("a", "No.", "Do it.")], 1)],
)
def test_exit_code_is_1_when_something_is_wrong(findings: list[Finding], code: int) -> None:
    assert exit_code(findings) == code


def test_report_for_people_and_for_programs() -> None:
    findings = [good("clock", "Fine."), wrong("token", "Bad \x1b[31mname.", "Run: it")]
    text = as_text(findings)
    assert "\x1b" not in text
    assert "-> Run: it" in text
    assert text.endswith("1 wrong, 0 to look after, 2 checked.")
    assert json.loads(as_json(findings))[1] == {
        "check": "token",
        "verdict": "wrong",
        "text": "Bad \x1b[31mname.",
        "cure": "Run: it",
    }
    assert all(is_sentence(finding.text) for finding in findings)
