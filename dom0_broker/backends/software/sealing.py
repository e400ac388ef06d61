"""The host's sealing key: what the files of software elements are useless without.

Where systemd can keep credentials, the key lies on disk encrypted under the key of the host (its
TPM, if it has one); elsewhere in a file that its owner alone can read. A unit of systemd may be given the key
(LoadCredentialEncrypted=), since only root can have credentials decrypted: then no file here holds it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import subprocess
from pathlib import Path

from dom0_broker.backends.software.files import read_private, write_atomically
from vmtoken.errors import Conflict
from vmtoken.secret import SecretBytes

log = logging.getLogger(__name__)

SEALING_KEY_LENGTH = 32
"""Octets: an AES-256 key."""

CREDENTIAL_FILE = "sealing.cred"
KEY_FILE = "sealing.key"
DIGEST_FILE = "sealing.sha256"
"""Says which key the unit was given when the state was made."""

_CREDENTIAL_NAME = "vmtoken-sealing-key"
_SYSTEMD_CREDS = ("/usr/bin/systemd-creds", "/bin/systemd-creds")
_TIMEOUT = 20.0
"""Seconds for systemd-creds; a TPM takes a few."""


def load_sealing_key(directory: Path) -> SecretBytes:
    """The sealing key kept in `directory`; made there when there is none yet.

    Raises `Conflict` when the kept key cannot be read any more: it must not be replaced silently.
    """
    credential, plain, digest = (directory / name for name in (CREDENTIAL_FILE, KEY_FILE, DIGEST_FILE))
    if credential.exists():
        return _checked(_decrypt(credential), credential)
    if plain.exists():
        return _checked(read_private(plain), plain)
    given = _given()
    if given is not None or digest.exists():
        return _same_as_before(given, digest)
    return _make(credential, plain)


def _given() -> SecretBytes | None:
    """The key that systemd gave to the unit, if it did."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    path = Path(directory or "/nonexistent") / _CREDENTIAL_NAME
    return _checked(path.read_bytes(), path) if path.exists() else None


def _same_as_before(given: SecretBytes | None, digest: Path) -> SecretBytes:
    """The key given, if it is the one that the state was made with; a new state remembers it."""
    if given is None:
        raise Conflict(
            f"What is sealed in {digest.parent} needs the credential {_CREDENTIAL_NAME}, and systemd "
            "gave the unit none; restore it in /etc/credstore.encrypted, or make the elements anew."
        )
    fingerprint = hashlib.sha256(given.reveal()).hexdigest().encode()
    if not digest.exists():
        write_atomically(digest, fingerprint)
        log.info("sealing key given by systemd", extra={"credential": _CREDENTIAL_NAME})
    if digest.read_bytes() != fingerprint:
        raise Conflict(
            f"The credential {_CREDENTIAL_NAME} is not the one that {digest.parent} was sealed with; "
            "restore it in /etc/credstore.encrypted, or make the elements anew."
        )
    return given


def _make(credential: Path, plain: Path) -> SecretBytes:
    key = SecretBytes(secrets.token_bytes(SEALING_KEY_LENGTH))
    encrypted = _encrypt(key)
    if encrypted is None:
        write_atomically(plain, key.reveal())
        log.info("sealing key kept in a file", extra={"path": str(plain)})
    else:
        write_atomically(credential, encrypted)
        log.info("sealing key kept as a systemd credential", extra={"path": str(credential)})
    return key


def _encrypt(key: SecretBytes) -> bytes | None:
    """The key under the key of the host; None where systemd cannot do that."""
    tool = _tool()
    if tool is None or os.geteuid() != 0:
        return None
    try:
        encrypted = _run(tool, "encrypt", key.reveal())
        works = _run(tool, "decrypt", encrypted) == key.reveal()
    except (OSError, subprocess.SubprocessError) as error:
        log.info("systemd-creds cannot be used here", extra={"error": type(error).__name__})
        return None
    return encrypted if works else None


def _decrypt(credential: Path) -> bytes:
    tool = _tool()
    if tool is None:
        raise Conflict(f"The file {credential} needs systemd-creds, which is not installed; install systemd.")
    try:
        return _run(tool, "decrypt", credential.read_bytes())
    except (OSError, subprocess.SubprocessError) as error:
        raise Conflict(
            f"The file {credential} cannot be decrypted by systemd-creds: it was made on another host, or "
            "the key of this host was replaced; restore that key, or delete the software elements and make "
            "them anew."
        ) from error


def _run(tool: str, verb: str, octets: bytes) -> bytes:
    command = [tool, "--quiet", f"--name={_CREDENTIAL_NAME}", verb, "-", "-"]
    return subprocess.run(  # noqa: S603 - a fixed command without a shell
        command, input=octets, capture_output=True, check=True, timeout=_TIMEOUT
    ).stdout


def _tool() -> str | None:
    return next((path for path in _SYSTEMD_CREDS if os.access(path, os.X_OK)), None)


def _checked(octets: bytes, path: Path) -> SecretBytes:
    if len(octets) != SEALING_KEY_LENGTH:
        raise Conflict(
            f"The file {path} does not hold a sealing key of {SEALING_KEY_LENGTH} octets; restore it."
        )
    return SecretBytes(octets)
