"""The units give the programs what they need, and nothing else."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from tests.support.debian import run
from tests.support.servers import ROOT
from tests.support.tools import tool

SYSTEMD = ROOT / "deploy/systemd"
UNITS = ("vmtoken-broker", "vmtoken-agent", "vmtoken-domains@")
MOST_EXPOSURE = 2.5


@pytest.mark.parametrize("name", UNITS)
def test_exposure_is_low(name: str) -> None:
    analyze = tool("systemd-analyze")
    report = run(analyze, "security", "--offline=yes", "--no-pager", SYSTEMD / f"{name}.service")
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", report)
    assert exposure, report
    wanting = "\n".join(line for line in report.splitlines() if line.startswith("✗"))
    assert float(exposure[1]) <= MOST_EXPOSURE, (
        f"{name} is exposed: {exposure[1]}; what costs most:\n{wanting}"
    )


@pytest.mark.parametrize("name", UNITS)
def test_systemd_understands_the_unit(name: str, tmp_path: Path) -> None:
    """With programs that exist, since these are not installed here."""
    unit = (SYSTEMD / f"{name}.service").read_text()
    known = tmp_path / f"{name}.service"
    known.write_text(re.sub(r"^(Exec\w+=)([-+]*)(vmtoken|udevadm)\S*", r"\1\2true", unit, flags=re.MULTILINE))
    complaints = run(tool("systemd-analyze"), "verify", "--man=no", "--recursive-errors=no", known)
    assert name not in complaints


@pytest.mark.parametrize(
    ("name", "user", "directory"),
    [("vmtoken-broker", "vmtoken", "vmtoken"), ("vmtoken-agent", "vmtoken-agent", "vmtoken-agent")],
)
def test_daemon_is_watched_and_restarted_as_a_user_of_its_own(name: str, user: str, directory: str) -> None:
    service = _service(SYSTEMD / f"{name}.service")
    expected = {
        "Type": "notify",
        "User": user,
        "RuntimeDirectory": directory,
        "Restart": "on-failure",
        "RestartPreventExitStatus": "2",
        "LimitCORE": "0",
        "CapabilityBoundingSet": "",
    }
    assert {key: service.get(key) for key in expected} == expected
    assert int(service["WatchdogSec"]) > 10, "the event loop says once a second or so that it turns"


def test_processes_of_device_libraries_outlive_the_drain() -> None:
    """By default systemd would send SIGTERM to every process of the unit at once."""
    assert _service(SYSTEMD / "vmtoken-broker.service")["KillMode"] == "mixed"


def test_broker_has_no_network_and_the_drop_in_gives_it_one() -> None:
    service = _service(SYSTEMD / "vmtoken-broker.service")
    assert service["PrivateNetwork"] == "yes"
    assert service["RestrictAddressFamilies"] == "AF_UNIX"
    drop_in = _service(SYSTEMD / "drop-ins/tcp.conf")
    assert drop_in["PrivateNetwork"] == "no"
    assert "AF_INET AF_INET6" in drop_in["RestrictAddressFamilies"]


def test_agent_sees_the_users_of_its_applications() -> None:
    """In a namespace of users, SO_PEERCRED gives the same number for all but root."""
    assert "PrivateUsers" not in _service(SYSTEMD / "vmtoken-agent.service")


@pytest.mark.parametrize(
    ("rules", "group", "devices"),
    [
        ("71-vmtoken-broker.rules", "vmtoken", ["evtchn", "gntalloc", "xenbus"]),
        ("70-vmtoken-agent.rules", "vmtoken-agent", ["evtchn", "gntdev", "xenbus"]),
    ],
)
def test_only_the_devices_of_vchans_are_given_to_the_users(
    rules: str, group: str, devices: list[str]
) -> None:
    lines = [
        line for line in (ROOT / "deploy/udev" / rules).read_text().splitlines() if not line.startswith("#")
    ]
    names = "|".join(f"xen/{device}" for device in devices)
    assert lines == [f'KERNEL=="{names}", GROUP="{group}", MODE="0660"']
    unit = (SYSTEMD / f"{re.sub(r'^[0-9]+-|.rules$', '', rules)}.service").read_text()
    assert re.findall(r"^DeviceAllow=/dev/xen/(\w+) rw$", unit, flags=re.MULTILINE) == devices


def _service(path: Path) -> dict[str, str]:
    """The options of a unit; those that are given more than once are not asked for here."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(path.read_text())
    return dict(parser["Service"])
