"""pin-source of a PKCS#11 URI (RFC 7512 section 2.4): the file that holds the PIN; no command is ever run."""

from __future__ import annotations

from pathlib import Path

from dom0_broker.pin_sources import read_pin_source
from vmtoken.errors import InvalidRequest
from vmtoken.secret import SecretBytes


def pin_file(pin_source: str) -> Path:
    """The file that a pin-source names. Raises `InvalidRequest` for anything else: no command is run."""
    if pin_source.startswith("|"):
        raise InvalidRequest(
            "A pin-source that is a command is not run; give a file, as in file:/etc/token.pin."
        )
    scheme, colon, path = pin_source.partition(":")
    if not colon:
        path = pin_source
    elif scheme.lower() != "file":
        raise InvalidRequest("A pin-source is a file here, as in file:/etc/token.pin; correct the URI.")
    path = path.removeprefix("//localhost").removeprefix("//")
    if not path.startswith("/"):
        raise InvalidRequest("The file of a pin-source has an absolute path, as in file:/etc/token.pin.")
    return Path(path)


def read_pin(pin_source: str) -> SecretBytes:
    """The PIN, read now. Raises `InvalidRequest`, and what `read_pin_source` raises."""
    return read_pin_source(pin_file(pin_source))
