"""The host's sealing key: what the files of software elements are useless without.

Where systemd can keep credentials, the key lies on disk encrypted under the key of the host (its
TPM, if it has one); elsewhere in a file that its owner alone can read.
"""

from __future__ import annotations

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

_CREDENTIAL_NAME = "vmtoken-sealing-key"
_SYSTEMD_CREDS = ("/usr/bin/systemd-creds", "/bin/systemd-creds")
_TIMEOUT = 20.0
"""Seconds for systemd-creds; a TPM takes a few."""


def load_sealing_key(directory: Path) -> SecretBytes:
    """The sealing key kept in `directory`; made there when there is none yet.

    Raises `Conflict` when the kept key cannot be read any more: it must not be replaced silently.
    """
    credential, plain = directory / CREDENTIAL_FILE, directory / KEY_FILE
    if credential.exists():
        return _checked(_decrypt(credential), credential)
    if plain.exists():
        return _checked(read_private(plain), plain)
    return _make(credential, plain)


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
