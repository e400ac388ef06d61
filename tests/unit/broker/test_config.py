from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import Struct

from dom0_broker.config import BrokerConfig, check_directories, read_config, split_address
from dom0_broker.policy import read_policy
from vmtoken.settings import SettingsError, parse

DEPLOY = Path(__file__).parents[3] / "deploy"


def leaves(value: Struct, prefix: str = "") -> set[str]:
    names: set[str] = set()
    for name in value.__struct_fields__:
        inner = getattr(value, name)
        tables = inner if isinstance(inner, tuple) else (inner,)
        within = [leaves(each, f"{prefix}{name}.") for each in tables if isinstance(each, Struct)]
        names |= set().union(*within) if within else {prefix + name}
    return names


def test_file_that_is_deployed_has_every_option_with_its_default() -> None:
    text = (DEPLOY / "etc/broker.toml").read_text()
    assert parse(text, BrokerConfig, "broker.toml") == BrokerConfig()
    for name in leaves(BrokerConfig()):
        assert f"\n{name.rpartition('.')[2]} = " in text, name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[pcsc]]\nsokcet = ""', "unknown key 'pcsc\\[0\\].sokcet'; did you mean 'socket'"),
        ('[[pcsc]]\nreset_command = "usbreset"', r"pcsc\[0\].reset_command: expected `array`"),
        ("[[pcsc]]\n[[pcsc]]", "two entries with the same socket"),
    ],
)
def test_mistake_in_an_array_of_tables_is_said_where_it_is(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "broker.toml").write_text(text)
    with pytest.raises(SettingsError, match=said):
        read_config(tmp_path / "broker.toml")


def test_rules_that_are_deployed_deny_everything() -> None:
    assert [rule.text for rule in read_policy(DEPLOY / "policy.d").rules] == ["deny vm=* server=*"]


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:8441", ("127.0.0.1", 8441)),
        ("broker.example:1", ("broker.example", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_address(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "::1:443", "host:65536", "host:http"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        split_address(address)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text('state_dir = "s"\nruntime_dir = "/r"\n')
    config = read_config(tmp_path / "broker.toml")
    assert (config.state_dir, config.runtime_dir) == (tmp_path / "s", Path("/r"))
    assert config.audit_path == tmp_path / "s/audit/audit.jsonl"


@pytest.mark.parametrize("victim", ["broker.toml", "policy.d", "policy.d/10-a.policy"])
def test_what_others_can_write_is_not_trusted(tmp_path: Path, victim: str) -> None:
    (tmp_path / "broker.toml").write_text('state_dir = "s"\npolicy_dir = "policy.d"\n')
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "policy.d/10-a.policy").touch()
    check_directories(read_config(tmp_path / "broker.toml"))
    (tmp_path / victim).chmod(0o777)
    with pytest.raises(SettingsError, match="chmod go-w"):
        check_directories(read_config(tmp_path / "broker.toml"))


def test_state_directory_is_private(tmp_path: Path) -> None:
    (tmp_path / "broker.toml").write_text('state_dir = "s"\npolicy_dir = "policy.d"\n')
    (tmp_path / "policy.d").mkdir()
    (tmp_path / "s").mkdir(mode=0o750)
    with pytest.raises(SettingsError, match="chmod 0700"):
        check_directories(read_config(tmp_path / "broker.toml"))
