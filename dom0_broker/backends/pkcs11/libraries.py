"""Which PKCS#11 module a URI means; a file that others can write is never loaded."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from vmtoken.errors import InvalidRequest

_NO_MODULE = "No PKCS#11 module is configured; name one in broker.toml, [pkcs11] modules."


def libraries_of(uri: Pkcs11Uri, configured: Sequence[Path]) -> list[Path]:
    """The modules to look in, checked: the one of module-path, those of module-name, or all configured ones.

    Raises `InvalidRequest` when there is none, or when it is not safe to load.
    """
    if uri.module_path is not None:
        chosen = [_absolute(uri.module_path)]
    elif uri.module_name is not None:
        chosen = [path for path in configured if _is_named(path, uri.module_name)]
        if not chosen:
            raise InvalidRequest(
                f"No PKCS#11 module in broker.toml, [pkcs11] modules, has the name '{uri.module_name}'."
            )
    else:
        chosen = list(configured)
        if not chosen:
            raise InvalidRequest(_NO_MODULE)
    return [checked_library(path) for path in chosen]


def checked_library(path: Path) -> Path:
    """The file that will be loaded, links followed. Raises `InvalidRequest` if others could change it."""
    try:
        real = path.resolve(strict=True)
        if not real.is_file():
            raise InvalidRequest(f"The PKCS#11 module {path} is not a file; give the path of the library.")
        for part in (real, *real.parents):
            _check_writers(path, part)
    except OSError as error:
        raise InvalidRequest(
            f"The PKCS#11 module {path} cannot be loaded ({error.strerror}); correct its path, or install it."
        ) from error
    return real


def _check_writers(module: Path, part: Path) -> None:
    status = part.stat()
    if status.st_uid not in {0, os.geteuid()}:
        raise InvalidRequest(
            f"The PKCS#11 module {module} is not loaded: {part} belongs to user {status.st_uid}, not to root."
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InvalidRequest(
            f"The PKCS#11 module {module} is not loaded: others can write {part}; run 'chmod go-w {part}'."
        )


def _absolute(path: str) -> Path:
    if not path.startswith("/"):
        raise InvalidRequest(
            f"The module-path '{path}' of the PKCS#11 URI is not absolute; give the whole path."
        )
    return Path(path)


def _is_named(path: Path, name: str) -> bool:
    """RFC 7512 section 2.3: no path and no suffix; a leading 'lib' is often left away too."""
    stem = path.name.partition(".so")[0]
    return name in {stem, stem.removeprefix("lib")}
