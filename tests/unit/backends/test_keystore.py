"""Sealed files: useless elsewhere, whole after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dom0_broker.backends.software import files
from dom0_broker.backends.software.keystore import Contents, Keystore, StoredIdentity, fresh_contents
from dom0_broker.backends.software.pin import StoredPin
from vmtoken.errors import AlreadyExists, Conflict, TokenNotFound, TokenUnavailable
from vmtoken.secret import SecretBytes

KEY = SecretBytes(bytes(32))
MARK = b"-- a private key --"


@pytest.fixture
def contents() -> Contents:
    pin = StoredPin(b"salt", b"digest", 3, 3)
    made = fresh_contents(pin, pin)
    return Contents(made.serial, pin, pin, (StoredIdentity(b"web01", MARK, (b"leaf",), (b"root",), "name"),))


@pytest.fixture
def path(tmp_path: Path, contents: Contents) -> Path:
    path = tmp_path / "web01.element"
    Keystore.create(path, KEY, contents)
    return path


def test_contents_come_back(path: Path, contents: Contents) -> None:
    assert Keystore.load(path, KEY).contents == contents


def test_file_is_for_its_owner_and_shows_nothing(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    octets = path.read_bytes()
    assert MARK not in octets
    assert b"web01" not in octets


def test_each_write_is_sealed_afresh(path: Path, contents: Contents) -> None:
    before = path.read_bytes()
    keystore = Keystore.load(path, KEY)
    keystore.save(contents)
    after = path.read_bytes()
    assert before[8:40] != after[8:40]
    assert before[40:] != after[40:]


def test_other_sealing_key_opens_nothing(path: Path) -> None:
    with pytest.raises(TokenUnavailable, match="another host"):
        Keystore.load(path, SecretBytes(bytes(31) + b"\x01"))


def test_file_of_one_element_does_not_pass_for_another(path: Path) -> None:
    stolen = path.rename(path.with_name("web02.element"))
    with pytest.raises(TokenUnavailable):
        Keystore.load(stolen, KEY)


def test_every_changed_octet_is_noticed(path: Path) -> None:
    octets = path.read_bytes()
    for index in range(len(octets)):
        changed = bytearray(octets)
        changed[index] ^= 1
        path.write_bytes(changed)
        with pytest.raises(TokenUnavailable):
            Keystore.load(path, KEY)


@pytest.mark.parametrize("size", [0, 7, 40, 56, -1])
def test_file_that_was_cut_off_is_noticed(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(TokenUnavailable):
        Keystore.load(path, KEY)


def test_file_that_others_can_read_is_not_used(path: Path) -> None:
    path.chmod(0o640)
    with pytest.raises(Conflict, match="chmod 600"):
        Keystore.load(path, KEY)


def test_missing_and_existing_elements_are_told_apart(path: Path, contents: Contents) -> None:
    with pytest.raises(TokenNotFound):
        Keystore.load(path.with_name("none.element"), KEY)
    with pytest.raises(AlreadyExists):
        Keystore.create(path, KEY, contents)
    assert Keystore.load(path, KEY).contents == contents


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_leaves_the_old_contents(
    path: Path, contents: Contents, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    keystore = Keystore.load(path, KEY)
    monkeypatch.setattr(os if step == "fsync" else Path, step, fail)
    with pytest.raises(OSError, match="Input/output"):
        keystore.save(Contents(contents.serial, contents.user_pin, contents.operator_pin))
    monkeypatch.undo()
    assert keystore.contents == contents
    assert Keystore.load(path, KEY).contents == contents
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_octets_are_on_the_disk_before_they_get_their_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (steps.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(Path, "replace", lambda old, new: (steps.append("replace"), replace(old, new))[1])
    files.write_atomically(path, b"octets")
    assert steps == ["fsync", "replace", "fsync"]


_WRITER = """
import sys
from pathlib import Path
from dom0_broker.backends.software.keystore import Keystore, Contents
from vmtoken.secret import SecretBytes
import msgspec
keystore = Keystore.load(Path(sys.argv[1]), SecretBytes(bytes(32)))
print("ready", flush=True)
count = 0
while True:
    count += 1
    identity = msgspec.structs.replace(keystore.contents.identities[0], chain=(str(count).encode() * 500,))
    keystore.save(msgspec.structs.replace(keystore.contents, identities=(identity,)))
"""


def test_file_is_whole_after_a_kill_at_any_moment(path: Path) -> None:
    for delay in (0.0, 0.003, 0.01, 0.02):
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        assert Keystore.load(path, KEY).contents.identities[0].private_key == MARK


def test_secrets_are_not_printed(contents: Contents) -> None:
    assert "private key" not in repr(contents)
    assert "private key" not in repr(contents.identities[0])
