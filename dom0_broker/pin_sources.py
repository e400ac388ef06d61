"""PINs in files of the operator's own, such as systemd credentials: read at use, never stored."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from vmtoken.errors import Conflict, PinMissing
from vmtoken.secret import SecretBytes

_LONGEST: Final = 256
"""Octets of a PIN; PKCS#11 tokens take up to 255."""

_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
"""A FIFO or a device must not hold us up before it is seen to be one."""

_OTHERS: Final = 0o077
_OTHERS_OF_CREDENTIAL: Final = 0o037
"""The unit's user gets its credentials by an ACL, whose mask shows as the group's read bit."""


def read_pin_source(path: Path) -> SecretBytes:
    """The first line of the file. Raises `PinMissing` without one, `Conflict` when others may read it."""
    try:
        file = os.open(path, _FLAGS)
    except OSError as error:
        raise PinMissing(f"The PIN source {path} cannot be read ({error.strerror}); correct it.") from error
    try:
        _check(path, os.fstat(file))
        line = os.read(file, _LONGEST + 2).partition(b"\n")[0].removesuffix(b"\r")
    finally:
        os.close(file)
    if not 0 < len(line) <= _LONGEST:
        raise PinMissing(f"The PIN source {path} has no PIN of 1 to {_LONGEST} octets in its first line.")
    return SecretBytes(line)


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Conflict(f"The PIN source {path} is not a regular file; name one that holds the PIN.")
    if status.st_uid not in {0, os.geteuid()}:
        raise Conflict(f"The PIN source {path} belongs to user {status.st_uid}, not to root or the broker.")
    if status.st_mode & (_OTHERS_OF_CREDENTIAL if _is_credential(path) else _OTHERS):
        mode = stat.S_IMODE(status.st_mode)
        raise Conflict(f"The PIN source {path} is open to others (mode {mode:04o}); run 'chmod 0600 {path}'.")


def _is_credential(path: Path) -> bool:
    """Whether systemd put it there for this unit alone (systemd.exec(5), $CREDENTIALS_DIRECTORY)."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    return directory is not None and path.parent == Path(directory)
