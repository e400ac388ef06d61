from __future__ import annotations

import re
from pathlib import Path

import pytest

from guest_agent.__main__ import main
from guest_agent.config import AgentConfig, TcpLink, UnixLink, load_config, parse_link
from vmtoken.settings import SettingsError, parse

DEPLOYED = Path(__file__).parents[3] / "deploy/etc/agent.toml"


def test_deployed_file_holds_every_option_with_its_default() -> None:
    text = DEPLOYED.read_text()
    assert load_config(DEPLOYED) == AgentConfig()
    enrolment = re.sub(r"^# (?=\[|[a-z_]+ = )", "", text, flags=re.MULTILINE)
    written = set(re.findall(r"^([a-z_]+) = ", enrolment, flags=re.MULTILINE))
    assert written == set(_options(AgentConfig))


def _options(kind: type) -> list[str]:
    names = {
        "BrokerSettings": ["link", "connect_timeout", "warm_streams", "handshakes"],
        "Enrolment": ["ca", "certificate", "key", "server_name"],
    }
    return [
        *names["BrokerSettings"],
        *names["Enrolment"],
        *AgentConfig().applications.__struct_fields__,
        *AgentConfig().sessions.__struct_fields__,
        *AgentConfig().log.__struct_fields__,
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[broker]\nlinc = 'unix:/a'", "unknown key 'broker.linc'; did you mean 'link'?"),
        (
            "[broker]\nlink = 'vsock:1'",
            "'vsock:1' is no link; write vchan:, vchan:DOMID, unix:/ABSOLUTE/PATH or tcp:HOST:PORT",
        ),
        ("[broker]\nlink = 'unix:relative'", "is no link"),
        ("[broker]\nlink = 'tcp:host:99999'", "is no link"),
        ("[broker]\nlink = 'tcp:host:443'", "needs the table [broker.enrolment]"),
        ("[broker.enrolment]\nca='a'\ncertificate='b'\nkey='c'", "this link needs none"),
        ("[broker]\nconnect_timeout = 0", "broker.connect_timeout: expected `float` > 0"),
        ("[applications]\nmode = 0o1777", "applications.mode: expected `int` <= 511"),
        ("[log]\nlevel = 'loud'", "log.level: invalid enum value 'loud'"),
    ],
)
def test_mistake_is_told_in_one_sentence(text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse(text, AgentConfig, "agent.toml")
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("agent.toml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("unix:/run/b.sock", UnixLink(Path("/run/b.sock"))),
        ("tcp:dom0.example:7443", TcpLink("dom0.example", 7443)),
        ("tcp:[fd00::1]:7443", TcpLink("fd00::1", 7443)),
    ],
)
def test_links(text: str, link: object) -> None:
    assert parse_link(text) == link


def test_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = _tcp_config(tmp_path)
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(SettingsError, match="may be read by others; run 'chmod 600"):
        load_config(path)
    (tmp_path / "key").chmod(0o600)
    assert load_config(path).broker.enrolment is not None


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = _tcp_config(tmp_path)
    (tmp_path / "ca").unlink()
    with pytest.raises(SettingsError, match=r"broker\.enrolment\.ca: .*/ca: No such file"):
        load_config(path)


def test_check_config_and_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check-config", "--config", str(DEPLOYED)]) == 0
    bad = tmp_path / "agent.toml"
    bad.write_text("[applications]\nsokket = '/a'")
    assert main(["--check-config", "--config", str(bad)]) == 2
    assert main(["--config", str(tmp_path / "missing.toml")]) == 2
    output = capsys.readouterr()
    assert output.out == f"{DEPLOYED}: good\n"
    assert "unknown key 'applications.sokket'; did you mean 'socket'?" in output.err
    assert "missing.toml: cannot be read (No such file or directory)." in output.err


def _tcp_config(directory: Path) -> Path:
    for name in ("ca", "certificate", "key"):
        (directory / name).touch(mode=0o600)
    path = directory / "agent.toml"
    path.write_text(
        "[broker]\nlink = 'tcp:dom0.example:7443'\n[broker.enrolment]\n"
        + "".join(f"{name} = '{directory / name}'\n" for name in ("ca", "certificate", "key"))
    )
    return path
