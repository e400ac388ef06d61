"""sandbox.py UNIT COMMAND...: runs a command under the system calls that a unit allows, without systemd.

Of systemd.exec(5): NoNewPrivileges, SystemCallFilter with its groups as systemd-analyze expands them,
MemoryDenyWriteExecute and RestrictAddressFamilies, as a filter of seccomp(2). For x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06
"""Instructions of classic BPF: LD|W|ABS, ALU|AND|K, JMP|JEQ|K, RET|K (linux/bpf_common.h)."""

_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
"""SECCOMP_RET_ALLOW, _KILL_PROCESS, _ERRNO (linux/seccomp.h)."""

_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
"""Offsets in struct seccomp_data; an argument has eight octets, the low four first."""

_X86_64 = 0xC000003E
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_WRITE, _EXEC = 2, 4
_HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


def main() -> None:
    unit, *command = sys.argv[1:]
    program = list(filter_of(Path(unit).read_text()))
    octets = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(octets)
    described = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _FILTER, described, 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")
    os.execvp(command[0], command)


def filter_of(unit: str) -> Iterator[Instruction]:
    """The filter for a unit: first what is refused for its arguments, then the calls that are allowed."""
    yield from ((_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, _X86_64), (_RETURN, 0, 0, _KILL))
    yield (_LOAD, 0, 0, _NUMBER)
    if "MemoryDenyWriteExecute=yes" in unit:
        yield from _refused("mmap", 2, _WRITE | _EXEC)
        yield from _refused("mprotect", 2, _EXEC)
        yield from _refused("pkey_mprotect", 2, _EXEC)
    yield from _families(re.findall(r"^RestrictAddressFamilies=(.*)$", unit, flags=re.MULTILINE))
    for number in sorted(_allowed(unit)):
        yield (_EQUAL, 0, 1, number)
        yield (_RETURN, 0, 0, _ALLOW)
    yield (_RETURN, 0, 0, _ERROR | errno.EPERM)


def _refused(name: str, argument: int, bits: int) -> Iterator[Instruction]:
    """A call is refused when all of `bits` are in an argument."""
    yield (_EQUAL, 0, 5, _numbers()[name])
    yield (_LOAD, 0, 0, _ARGUMENTS + 8 * argument)
    yield (_AND, 0, 0, bits)
    yield (_EQUAL, 0, 1, bits)
    yield (_RETURN, 0, 0, _ERROR | errno.EPERM)
    yield (_LOAD, 0, 0, _NUMBER)


def _families(lines: list[str]) -> Iterator[Instruction]:
    """Sockets of other families are refused."""
    families = [getattr(socket, name) for line in lines for name in line.split()]
    if not families:
        return
    yield (_EQUAL, 0, len(families) + 3, _numbers()["socket"])
    yield (_LOAD, 0, 0, _ARGUMENTS)
    for index, family in enumerate(families):
        yield (_EQUAL, len(families) - index, 0, family)
    yield (_RETURN, 0, 0, _ERROR | errno.EAFNOSUPPORT)
    yield (_LOAD, 0, 0, _NUMBER)


def _allowed(unit: str) -> set[int]:
    """Lines take effect one after another; the first that allows makes it a list of what is allowed."""
    names: set[str] = set()
    for line in re.findall(r"^SystemCallFilter=(.*)$", unit, flags=re.MULTILINE):
        listed = {name for word in line.removeprefix("~").split() for name in _expanded(word)}
        names = names - listed if line.startswith("~") else names | listed
    return {_numbers()[name] for name in names if name in _numbers()}


@cache
def _expanded(word: str) -> frozenset[str]:
    if not word.startswith("@"):
        return frozenset([word])
    shown = subprocess.run(
        ["systemd-analyze", "syscall-filter", "--no-pager", word], capture_output=True, text=True, check=True
    )
    members = [line.strip() for line in shown.stdout.splitlines()[1:] if line.strip()]
    return frozenset(name for member in members if not member.startswith("#") for name in _expanded(member))


@cache
def _numbers() -> dict[str, int]:
    return {
        match[1]: int(match[2])
        for match in re.finditer(r"^#define __NR_(\w+) (\d+)$", _HEADER.read_text(), flags=re.MULTILINE)
    }


if __name__ == "__main__":
    main()
