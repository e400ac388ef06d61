"""Directories that are made once from their inputs, and made anew only when an input changes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_UNUSED_AFTER = 3 * 24 * 3600
"""Seconds: what no checkout has asked for in three days makes room; an entry takes up to a gigabyte."""


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
        _make_room(parent, name, entry)
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


def _make_room(parent: Path, name: str, entry: Path) -> None:
    for other in parent.glob(f"{name}-*"):
        if other != entry and time.time() - other.stat().st_mtime > _UNUSED_AFTER:
            shutil.rmtree(other, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
