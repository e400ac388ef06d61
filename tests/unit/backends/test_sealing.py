"""The host's sealing key: kept by systemd where it can, in a private file elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from dom0_broker.backends.software import sealing
from dom0_broker.backends.software.sealing import CREDENTIAL_FILE, DIGEST_FILE, KEY_FILE, load_sealing_key
from vmtoken.errors import Conflict

FAKE_TOOL = """#!/bin/sh
# What systemd-creds does, with a rotation for a cipher.
[ "$1" = --quiet ] && [ "$2" = --name=vmtoken-sealing-key ] || exit 2
case $3 in
    encrypt) printf sealed:; od -An -v -tx1 | tr -d ' \\n' | tr 0-9a-f 1-9a-f0 ;;
    decrypt) tail -c +8 | tr 1-9a-f0 0-9a-f | sed 's/../\\\\x&/g' | { read -r octets; printf "$octets"; } ;;
esac
"""


@pytest.fixture
def no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "_SYSTEMD_CREDS", ())


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tool = tmp_path / "systemd-creds"
    tool.write_text(FAKE_TOOL.replace("#!/bin/sh", "#!/bin/bash"))
    tool.chmod(0o755)
    monkeypatch.setattr(sealing, "_SYSTEMD_CREDS", (str(tool),))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return tool


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The credential as systemd shows it to the unit, beside a tool that the unit's user cannot use."""
    directory = tmp_path / "credentials"
    directory.mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    monkeypatch.setattr(sealing, "_SYSTEMD_CREDS", ())
    credential = directory / "vmtoken-sealing-key"
    credential.write_bytes(bytes(range(32)))
    return credential


@pytest.fixture
def state(tmp_path: Path) -> Path:
    state = tmp_path / "state"
    state.mkdir()
    return state


@pytest.mark.usefixtures("no_systemd")
def test_key_is_made_once_in_a_private_file(state: Path) -> None:
    key = load_sealing_key(state)
    assert len(key) == 32
    assert (state / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert load_sealing_key(state) == key


@pytest.mark.usefixtures("no_systemd")
def test_file_that_others_can_read_is_not_used(state: Path) -> None:
    load_sealing_key(state)
    (state / KEY_FILE).chmod(0o644)
    with pytest.raises(Conflict, match="chmod 600"):
        load_sealing_key(state)


@pytest.mark.usefixtures("no_systemd")
def test_damaged_key_is_not_replaced(state: Path) -> None:
    load_sealing_key(state)
    (state / KEY_FILE).write_bytes(b"short")
    with pytest.raises(Conflict, match="32 octets"):
        load_sealing_key(state)
    assert (state / KEY_FILE).read_bytes() == b"short"


@pytest.mark.usefixtures("tool")
def test_key_is_a_credential_where_systemd_keeps_them(state: Path) -> None:
    key = load_sealing_key(state)
    assert [file.name for file in state.iterdir()] == [CREDENTIAL_FILE]
    assert (state / CREDENTIAL_FILE).read_bytes().startswith(b"sealed:")
    assert key.reveal() not in (state / CREDENTIAL_FILE).read_bytes()
    assert load_sealing_key(state) == key


def test_credential_of_another_host_is_not_replaced(state: Path, tool: Path) -> None:
    load_sealing_key(state)
    tool.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(Conflict, match="another host"):
        load_sealing_key(state)
    assert (state / CREDENTIAL_FILE).exists()


def test_credential_without_systemd_says_what_is_missing(
    state: Path, tool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_sealing_key(state)
    monkeypatch.setattr(sealing, "_SYSTEMD_CREDS", ())
    with pytest.raises(Conflict, match="install systemd"):
        load_sealing_key(state)


def test_tool_that_fails_leads_to_the_file(state: Path, tool: Path) -> None:
    tool.write_text("#!/bin/sh\nexit 1\n")
    load_sealing_key(state)
    assert [file.name for file in state.iterdir()] == [KEY_FILE]


def test_key_that_systemd_gives_is_in_no_file(state: Path, given: Path) -> None:
    key = load_sealing_key(state)
    assert key.reveal() == given.read_bytes() == load_sealing_key(state).reveal()
    assert [file.name for file in state.iterdir()] == [DIGEST_FILE]
    assert key.reveal() not in (state / DIGEST_FILE).read_bytes()


def test_key_that_systemd_gave_before_is_not_replaced(state: Path, given: Path) -> None:
    load_sealing_key(state)
    given.write_bytes(bytes(32))
    with pytest.raises(Conflict, match="not the one"):
        load_sealing_key(state)
    given.unlink()
    with pytest.raises(Conflict, match="gave the unit none"):
        load_sealing_key(state)
    assert [file.name for file in state.iterdir()] == [DIGEST_FILE]


def test_key_in_a_file_goes_on_when_the_unit_is_given_another(
    state: Path, given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    key = load_sealing_key(state)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(given.parent))
    assert load_sealing_key(state) == key
