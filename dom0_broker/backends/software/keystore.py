"""What a software element keeps: one sealed file.

The file is sealed with the host's sealing key (`dom0_broker.safe`); its name is authenticated, so that
one element's file does not pass for another's. An old copy of the file put back brings old retry
counters back: whoever can do that to the host's state directory is its root.
"""

from __future__ import annotations

import errno
import secrets
from pathlib import Path

import msgspec

from dom0_broker.backends.software.files import (
    create_atomically,
    read_private,
    sync_directory,
    write_atomically,
)
from dom0_broker.backends.software.pin import StoredPin
from dom0_broker.backends.software.piv_store import StoredPiv
from dom0_broker.safe import Safe, SealBroken
from vmtoken.errors import AlreadyExists, TokenNotFound, TokenUnavailable
from vmtoken.secret import SecretBytes

SERIAL_LENGTH = 8

_MAGIC = b"VMTOKEN1"
_OWNER = "vmtoken software element"


class StoredIdentity(msgspec.Struct, frozen=True):
    """One identity: a label, and what was personalised for it."""

    label: bytes
    private_key: bytes | None = None
    """PKCS#8, DER."""

    chain: tuple[bytes, ...] = ()
    anchors: tuple[bytes, ...] = ()
    server_name: str | None = None

    def __repr__(self) -> str:
        return f"StoredIdentity({self.label!r})"


class Contents(msgspec.Struct, frozen=True):
    """Everything that lasts. A change makes a new value, which `Keystore.save` keeps."""

    serial: bytes
    user_pin: StoredPin
    operator_pin: StoredPin
    identities: tuple[StoredIdentity, ...] = ()
    piv: StoredPiv | None = None
    """None for an element without the PIV application."""

    def __repr__(self) -> str:
        return f"Contents({self.serial.hex()})"


class Keystore:
    """The contents of one element, in memory and on disk."""

    def __init__(self, path: Path, sealing_key: SecretBytes, contents: Contents) -> None:
        self._path = path
        self._sealing_key = sealing_key
        self._contents = contents
        self._is_destroyed = False

    @classmethod
    def create(cls, path: Path, sealing_key: SecretBytes, contents: Contents) -> Keystore:
        """Make the file; raise `AlreadyExists`."""
        try:
            create_atomically(path, _seal(contents, sealing_key, path.name))
        except FileExistsError as error:
            raise AlreadyExists(
                f"There is a software element {path.stem!r} already; choose another name."
            ) from error
        return cls(path, sealing_key, contents)

    @classmethod
    def load(cls, path: Path, sealing_key: SecretBytes) -> Keystore:
        """Raises `TokenNotFound`, `Conflict` (the file's permissions) or `TokenUnavailable` (broken seal)."""
        try:
            octets = read_private(path)
        except FileNotFoundError as error:
            raise TokenNotFound(
                f"There is no software element {path.stem!r}; 'vmtokenctl token create' makes one."
            ) from error
        return cls(path, sealing_key, _unseal(octets, sealing_key, path.name))

    @property
    def contents(self) -> Contents:
        """As they were saved last."""
        return self._contents

    def save(self, contents: Contents) -> None:
        """Replace the contents; when this returns, they are on the disk. Raises `OSError`."""
        if self._is_destroyed:
            raise FileNotFoundError(errno.ENOENT, "the software element was destroyed")
        write_atomically(self._path, _seal(contents, self._sealing_key, self._path.name))
        self._contents = contents

    def destroy(self) -> None:
        """Remove the file; who still uses the element can save nothing any more."""
        self._is_destroyed = True
        self._path.unlink()
        sync_directory(self._path.parent)


def fresh_contents(user_pin: StoredPin, operator_pin: StoredPin, piv: StoredPiv | None = None) -> Contents:
    """An element without identities, with a serial number of its own."""
    return Contents(secrets.token_bytes(SERIAL_LENGTH), user_pin, operator_pin, piv=piv)


def _seal(contents: Contents, sealing_key: SecretBytes, name: str) -> bytes:
    plain = SecretBytes(msgspec.msgpack.encode(contents))
    return _MAGIC + Safe(sealing_key, _OWNER).seal(plain, name)


def _unseal(octets: bytes, sealing_key: SecretBytes, name: str) -> Contents:
    try:
        if not octets.startswith(_MAGIC):
            raise SealBroken(f"The file {name} is none of a software element.")
        plain = Safe(sealing_key, _OWNER).open(octets[len(_MAGIC) :], name)
        return msgspec.msgpack.decode(plain.reveal(), type=Contents)
    except (SealBroken, ValueError) as error:
        raise TokenUnavailable(
            f"The file {name} was sealed on another host or under another name, or is damaged; "
            "restore it from a backup."
        ) from error
