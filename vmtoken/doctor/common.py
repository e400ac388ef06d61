"""Checks of what dom0 and guests have in common: clock, disk, dates, versions."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from vmtoken.doctor.finding import Finding, good, warning, wrong
from vmtoken.doctor.machine import Account, Machine

RENEW_WITHIN: Final = timedelta(days=30)
"""Before the end of a certificate: an operator, and a CA, need some time."""

_LEAST_ROOM: Final = 64 << 20
"""Octets: the audit log must be written before a handshake is allowed."""

_BUILT: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""No version of this program was there earlier."""


def clock(machine: Machine) -> Iterator[Finding]:
    """Certificates of servers are judged by it."""
    now = machine.now
    if now < _BUILT:
        yield wrong(
            "clock", f"The clock says {now:%Y-%m-%d}, which is past.", "Set the clock, and keep it with NTP."
        )
        return
    synchronised = machine.output(["timedatectl", "show", "--property=NTPSynchronized", "--value"])
    if synchronised is not None and synchronised.strip() == "no":
        yield warning(
            "clock",
            f"The clock says {now:%Y-%m-%d %H:%M} UTC, and nothing keeps it right.",
            "Install systemd-timesyncd or chrony.",
        )
        return
    yield good("clock", f"The clock says {now:%Y-%m-%d %H:%M} UTC.")


def room(directory: Path) -> Iterator[Finding]:
    """Space on the disk of a directory."""
    status = os.statvfs(directory)
    free = status.f_bavail * status.f_frsize
    if free < _LEAST_ROOM or status.f_favail == 0 < status.f_files:
        yield wrong(
            "disk",
            f"The file system of {directory} is full: {free >> 20} MiB are left.",
            "Make room there; without an audit log no handshake is allowed.",
        )
    else:
        yield good("disk", f"{free >> 20} MiB are free in {directory}.")


def certificate_dates(
    name: str, not_after: datetime, now: datetime, renew: str, not_before: datetime | None = None
) -> Finding:
    """Whether a certificate is valid, and for long enough; `renew` is the cure."""
    if not_before is not None and now < not_before:
        cure = "Wait, or set the clock of this machine if it is wrong."
        return wrong(
            "certificate", f"The certificate of {name} is not valid before {not_before:%Y-%m-%d}.", cure
        )
    if now >= not_after:
        return wrong("certificate", f"The certificate of {name} ended on {not_after:%Y-%m-%d}.", renew)
    if now >= not_after - RENEW_WITHIN:
        return warning("certificate", f"The certificate of {name} ends on {not_after:%Y-%m-%d}.", renew)
    return good("certificate", f"The certificate of {name} is valid until {not_after:%Y-%m-%d}.")


def versions(program: str, running: str, installed: str) -> Finding:
    """A daemon that goes on with what was installed before."""
    if running != installed:
        text = f"{program} {running} runs, and {installed} is installed."
        return warning("version", text, f"Restart it: systemctl restart {program}")
    return good("version", f"{program} {running} runs, which is what is installed.")


def private(check: str, path: Path, owner: Account, mode: int) -> Finding:
    """A file or directory that must be its owner's alone; `mode` is what chmod should be given."""
    status = path.stat()
    if status.st_uid != owner.uid:
        cure = f"Run: chown {owner.name} {path}"
        return wrong(check, f"{path} belongs to user {status.st_uid}, not to {owner.name}.", cure)
    if stat.S_IMODE(status.st_mode) & 0o077:
        text = f"{path} is open to others (mode {stat.S_IMODE(status.st_mode):04o})."
        return wrong(check, text, f"Run: chmod {mode:04o} {path}")
    return good(check, f"{path} is {owner.name}'s alone.")
