"""Directories that are made once from their inputs, and made anew only when an input changes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_KEPT = 2
"""Entries of a name that stay, the last used ones: today's and one to go back to; one takes up to 600 MB."""


def user_cache() -> Path:
    """Where entries live that every checkout of a user can share."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "vmtoken" / "xen-lab"


def digest(parts: Iterable[str | bytes | Path]) -> str:
    """Name a set of inputs: text as it is, files by content, directories by all that is below them."""
    total = hashlib.sha256()
    for part in parts:
        for chunk in _chunks(part):
            total.update(len(chunk).to_bytes(8, "big") + chunk)
    return total.hexdigest()[:16]


def _chunks(part: str | bytes | Path) -> Iterator[bytes]:
    if isinstance(part, bytes):
        yield part
    elif isinstance(part, str):
        yield part.encode()
    elif part.is_dir():
        for path in sorted(part.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield str(path.relative_to(part)).encode()
                yield path.read_bytes()
    else:
        yield part.read_bytes()


def cached(parent: Path, name: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory `name-key` below `parent`; `build` fills it when it is not there yet."""
    parent.mkdir(parents=True, exist_ok=True)
    entry = parent / f"{name}-{key}"
    with _locked(parent / f"{name}.lock"):
        if not entry.exists():
            _build(entry, build)
        os.utime(entry)
        _make_room(parent, name)
    return entry


def _build(entry: Path, build: Callable[[Path], None]) -> None:
    """Fill a directory beside the entry and rename it: an entry is whole or it is not there."""
    unfinished = entry.with_name(f".{entry.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        build(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.rename(entry)


def _make_room(parent: Path, name: str) -> None:
    newest_first = sorted(parent.glob(f"{name}-*"), key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in newest_first[_KEPT:]:
        shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
