"""The machine that is looked at: its files below a root, its programs, its users, its clock."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from vmtoken.clock import Clock, SystemClock

_PATIENCE: Final = 10.0
"""Seconds for a program that only says its version, or what a unit is like."""


@dataclass(frozen=True, slots=True)
class Account:
    """A user and the groups that it is in."""

    name: str
    uid: int
    gids: frozenset[int]

    @classmethod
    def of(cls, name: str, also_in: Sequence[str] = ()) -> Account:
        """The user of this name; our own where there is none, as in a trial without packages."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            return cls.own()
        groups = os.getgrouplist(name, entry.pw_gid)
        return cls(name, entry.pw_uid, frozenset(groups) | {grp.getgrnam(each).gr_gid for each in also_in})

    @classmethod
    def own(cls) -> Account:
        """Who we are."""
        return cls(str(os.geteuid()), os.geteuid(), frozenset([os.getegid(), *os.getgroups()]))

    def may(self, status: os.stat_result, bits: int) -> bool:
        """Whether the permissions of a file give this user all of `bits`, such as `0o6` to read and write."""
        mode = stat.S_IMODE(status.st_mode)
        if self.uid in {0, status.st_uid}:
            return self.uid == 0 or mode >> 6 & bits == bits
        shift = 3 if status.st_gid in self.gids else 0
        return mode >> shift & bits == bits


def _output(command: Sequence[str]) -> str | None:
    """What a program writes; None when there is none, it fails, or takes too long."""
    try:
        ended = subprocess.run(  # noqa: S603 - fixed commands of ours
            command, capture_output=True, text=True, timeout=_PATIENCE, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine, or one that a test makes."""

    root: Path = Path("/")
    output: Callable[[Sequence[str]], str | None] = _output
    clock: Clock = field(default_factory=SystemClock)

    def path(self, path: Path | str) -> Path:
        """A file of it."""
        return self.root / str(path).lstrip("/")

    def text(self, path: str) -> str | None:
        """What is in a small file, without the line end; None without it."""
        try:
            return self.path(path).read_text().strip()
        except OSError:
            return None

    @property
    def now(self) -> datetime:
        """The time of day."""
        return self.clock.now()
