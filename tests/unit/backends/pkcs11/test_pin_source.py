"""pin-source of a PKCS#11 URI: a file, and nothing that runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from dom0_broker.backends.pkcs11.pin_source import pin_file, read_pin
from vmtoken.errors import Conflict, InvalidRequest
from vmtoken.secret import SecretBytes


@pytest.mark.parametrize(
    "source",
    ["file:/etc/token.pin", "file:///etc/token.pin", "FILE://localhost/etc/token.pin", "/etc/token.pin"],
)
def test_file_has_many_names(source: str) -> None:
    assert pin_file(source) == Path("/etc/token.pin")


@pytest.mark.parametrize(
    "source",
    ["|/usr/lib/pinomatic", "token.pin", "file:token.pin", "file://host/etc/token.pin", "https://x/pin", ""],
)
def test_anything_else_is_refused(source: str) -> None:
    with pytest.raises(InvalidRequest):
        pin_file(source)


def test_pin_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "token.pin"
    path.touch(0o600)
    for pin in (b"1234", b"567890"):
        path.write_bytes(pin + b"\n")
        assert read_pin(f"file:{path}") == SecretBytes(pin)


def test_credential_of_the_unit_shows_its_acl_as_group_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd.exec(5): the unit's user gets in by an ACL, whose mask is where the group's bits are."""
    path = tmp_path / "token.pin"
    path.touch(0o600)
    path.write_bytes(b"1234")
    path.chmod(0o440)
    with pytest.raises(Conflict, match="open to others"):
        read_pin(f"file:{path}")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert read_pin(f"file:{path}") == SecretBytes(b"1234")
    path.chmod(0o444)
    with pytest.raises(Conflict, match="open to others"):
        read_pin(f"file:{path}")
