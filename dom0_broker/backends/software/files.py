"""Files that nobody else may read, replaced in one step."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from vmtoken.errors import Conflict

_PRIVATE = 0o600


def write_atomically(path: Path, octets: bytes) -> None:
    """Replace the file: after a kill at any moment it holds the old octets or the new ones, whole.

    When this returns, they are on the disk. Raises `OSError`.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(temporary, octets)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def create_atomically(path: Path, octets: bytes) -> None:
    """As `write_atomically`, but raise `FileExistsError` if there is such a file already."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_new(temporary, octets)
        os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def read_private(path: Path) -> bytes:
    """The octets of a file; raise `Conflict` if others than its owner may read or write it."""
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & 0o077:
            raise Conflict(
                f"The file {path} can be read by others (mode {mode & 0o777:o}); run 'chmod 600 {path}'."
            )
        return file.read()


def sync_directory(directory: Path) -> None:
    """Make names that were created, replaced or removed last."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_new(path: Path, octets: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    with open(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(descriptor)
