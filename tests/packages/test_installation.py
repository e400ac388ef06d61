"""The packages on a clean Debian: installed, used, upgraded, removed, purged; one test after another."""

from __future__ import annotations

import json
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.debian import Chroot, Package

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def installed(system: Chroot, packages: dict[str, Package]) -> Chroot:
    system.install(list(packages.values()))
    return system


def test_both_ends_say_the_version_of_their_package(installed: Chroot, packages: dict[str, Package]) -> None:
    for program, package in (
        ("vmtoken-broker", "vmtoken-broker"),
        ("vmtokenctl", "vmtoken-broker"),
        ("vmtoken-agent", "vmtoken-agent"),
        ("vmtoken", "vmtoken-agent"),
    ):
        assert installed.run(program, "--version").split() == [program, packages[package].field("Version")]


def test_configuration_that_comes_with_the_packages_is_in_order(installed: Chroot) -> None:
    assert "in order" in installed.run("vmtoken-broker", "--check-config")
    assert "good" in installed.run("vmtoken-agent", "--check-config")


@pytest.mark.parametrize(
    ("path", "owner", "mode"),
    [
        ("/etc/vmtoken", "root", 0o755),
        ("/etc/vmtoken/policy.d", "root", 0o755),
        ("/etc/vmtoken/broker.toml", "root", 0o644),
        ("/var/lib/vmtoken", "vmtoken", 0o700),
        ("/run/vmtoken", "vmtoken", 0o755),
        ("/run/vmtoken-agent", "vmtoken-agent", 0o755),
    ],
)
def test_directories_belong_to(installed: Chroot, path: str, owner: str, mode: int) -> None:
    shown = installed.run("stat", "--format", "%U %a", path).split()
    assert shown == [owner, f"{mode:o}"]


def test_users_cannot_log_in(installed: Chroot) -> None:
    for user in ("vmtoken", "vmtoken-agent"):
        assert installed.run("getent", "passwd", user).strip().endswith("/usr/sbin/nologin")


def test_services_are_enabled(installed: Chroot) -> None:
    wanted = installed.path("/etc/systemd/system/multi-user.target.wants")
    assert {path.name for path in wanted.glob("vmtoken-*")} == {
        "vmtoken-broker.service",
        "vmtoken-agent.service",
    }


def test_programs_start_without_compiling_themselves(installed: Chroot) -> None:
    """Bytecode was made at the installation: the users of the services could not write it."""
    site = installed.path("/usr/lib/vmtoken/lib/python3.11/site-packages")
    for package in ("vmtoken", "dom0_broker", "guest_agent", "grpc"):
        assert list((site / package / "__pycache__").glob("*.pyc")), package


def test_environment_of_the_caller_does_not_reach_python(installed: Chroot) -> None:
    planted = installed.path("/tmp/planted")
    planted.mkdir()
    (planted / "sitecustomize.py").write_text("print('planted')")
    (planted / "argparse.py").write_text("print('planted')")
    said = installed.run("env", "PYTHONPATH=/tmp/planted", "PYTHONSTARTUP=/tmp/planted/argparse.py",
                         "sh", "-c", "cd /tmp/planted && vmtokenctl --version")  # fmt: skip
    assert "planted" not in said


def test_processes_of_device_libraries_find_their_packages(installed: Chroot) -> None:
    """pcscd's and the modules' processes are started with the interpreter of the broker."""
    for module in ("dom0_broker.backends.pcsc.child", "dom0_broker.backends.pkcs11.child"):
        installed.run("/usr/lib/vmtoken/bin/python3", "-I", "-c", f"import {module}, smartcard.scard, pkcs11")


def test_token_is_made_with_the_installed_programs(installed: Chroot) -> None:
    with _daemon(installed, "vmtoken", "vmtoken-broker", "/run/vmtoken/admin.sock"):
        installed.run("vmtokenctl", "vm", "add", "web01")
        installed.run("vmtokenctl", "token", "create", "web01-key")
        script = (
            "cd /root && vmtokenctl token csr web01-key --subject CN=web01 > web01.csr && "
            "vmtokenctl ca init lab && "
            "vmtokenctl ca sign lab web01.csr > web01.pem && "
            "vmtokenctl token install-cert web01-key web01.pem --trust lab/ca.pem && "
            "vmtokenctl vm bind web01 web01-key"
        )
        installed.run("sh", "-c", script)
        (token,) = json.loads(installed.run("vmtokenctl", "token", "list", "--json"))
        assert (token["name"], token["ready"], token["assurance"]) == ("web01-key", True, "software")


def test_agent_serves_every_user(installed: Chroot) -> None:
    """No Xen here, so it has no broker; it says so."""
    with _daemon(installed, "vmtoken-agent", "vmtoken-agent", "/run/vmtoken-agent/agent.sock"):
        said = installed.run(
            "setpriv", "--reuid=65534", "--clear-groups", "vmtoken", "status", succeeds=False
        )
        assert "agent   serving" in said
        assert "broker does not answer" in said


def test_newer_build_takes_over_what_there_was(
    installed: Chroot, packages: dict[str, Package], newer: list[Package]
) -> None:
    changed = installed.path("/etc/vmtoken/policy.d/10-example.policy")
    changed.write_text("allow vm=web01 server=localhost\n")
    installed.install(newer)
    assert changed.read_text() == "allow vm=web01 server=localhost\n"
    with _daemon(installed, "vmtoken", "vmtoken-broker", "/run/vmtoken/admin.sock"):
        (token,) = json.loads(installed.run("vmtokenctl", "token", "list", "--json"))
        assert token["ready"]
    assert installed.run("dpkg-query", "-W", "-f", "${Version}", "vmtoken-broker").endswith(".next")


def test_what_is_removed_leaves_keys_and_configuration(installed: Chroot) -> None:
    installed.run("dpkg", "--remove", "vmtoken-agent", "vmtoken-broker", "vmtoken-common")
    assert not installed.path("/usr/lib/vmtoken").exists(), "no bytecode stays behind"
    assert installed.path("/var/lib/vmtoken/broker.sqlite").exists()
    assert installed.path("/etc/vmtoken/broker.toml").exists()


def test_what_is_purged_leaves_nothing(installed: Chroot) -> None:
    installed.run("dpkg", "--purge", "vmtoken-agent", "vmtoken-broker", "vmtoken-common")
    left = [
        path for path in ("/var/lib/vmtoken", "/etc/vmtoken", "/run/vmtoken") if installed.path(path).exists()
    ]
    assert left == []


@contextmanager
def _daemon(system: Chroot, user: str, program: str, socket: str) -> Iterator[None]:
    """A service of the system, running as its user."""
    log = system.path(f"/root/{program}.log")
    with log.open("wb") as output:
        daemon = subprocess.Popen(system.command(program, user=user), stdout=output, stderr=output)
    try:
        _wait_for_socket(system.path(socket), daemon, log)
        yield
    finally:
        daemon.terminate()
        daemon.wait(60)


def _wait_for_socket(path: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and stat.S_ISSOCK(path.stat().st_mode)):
        assert daemon.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
