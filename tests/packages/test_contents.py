"""What is in the packages, and what must not be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.debian import NAMES, Package, run
from tests.support.tools import tool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_MACHINE_PATHS = re.compile(rb"/(?:work|root|home|tmp/pip-)[/A-Za-z0-9_.-]+|/build/deb/")
_SITE = "/usr/lib/vmtoken/lib/python3.11/site-packages"


@pytest.mark.parametrize(
    ("name", "paths"),
    [
        (
            "vmtoken-common",
            ["/usr/lib/vmtoken/bin/python3", f"{_SITE}/vmtoken/__init__.py", f"{_SITE}/grpc/__init__.py"],
        ),
        (
            "vmtoken-broker",
            [
                "/usr/bin/vmtoken-broker",
                "/usr/bin/vmtokenctl",
                "/usr/bin/vmtoken-domains",
                "/etc/vmtoken/broker.toml",
                "/etc/vmtoken/policy.d/90-default.policy",
                "/lib/systemd/system/vmtoken-broker.service",
                "/lib/udev/rules.d/71-vmtoken-broker.rules",
                "/usr/share/polkit-1/rules.d/70-vmtoken-broker.rules",
                "/usr/lib/sysusers.d/vmtoken-broker.conf",
                "/usr/lib/tmpfiles.d/vmtoken-broker.conf",
                "/usr/share/man/man8/vmtoken-broker.8.gz",
                "/usr/share/man/man8/vmtokenctl.8.gz",
                "/usr/share/man/man8/vmtoken-domains.8.gz",
                "/usr/share/bash-completion/completions/vmtokenctl",
                "/usr/share/zsh/vendor-completions/_vmtokenctl",
                "/usr/share/doc/vmtoken-broker/examples/tcp.conf",
                f"{_SITE}/dom0_broker/__init__.py",
                f"{_SITE}/smartcard/__init__.py",
                f"{_SITE}/pkcs11/__init__.py",
            ],
        ),
        (
            "vmtoken-agent",
            [
                "/usr/bin/vmtoken-agent",
                "/usr/bin/vmtoken",
                "/etc/vmtoken/agent.toml",
                "/lib/systemd/system/vmtoken-agent.service",
                "/lib/udev/rules.d/70-vmtoken-agent.rules",
                "/usr/share/man/man8/vmtoken-agent.8.gz",
                "/usr/share/man/man1/vmtoken.1.gz",
                "/usr/share/bash-completion/completions/vmtoken",
                f"{_SITE}/guest_agent/__init__.py",
            ],
        ),
    ],
)
def test_package_holds(packages: dict[str, Package], name: str, paths: list[str]) -> None:
    held = {entry.path for entry in packages[name].entries}
    assert [path for path in paths if path not in held] == []


def test_guest_has_nothing_of_the_card_side_but_the_library(packages: dict[str, Package]) -> None:
    held = [entry.path for name in ("vmtoken-common", "vmtoken-agent") for entry in packages[name].entries]
    assert [path for path in held if re.search(r"/(dom0_broker|smartcard|pkcs11)/", path)] == []


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_root_s_and_writable_by_root_alone(packages: dict[str, Package], name: str) -> None:
    for entry in packages[name].entries:
        assert entry.owner == "root/root", entry
        assert entry.mode.startswith("l") or (entry.mode[5], entry.mode[8]) == ("-", "-"), entry
        assert "s" not in entry.mode.lower(), entry


@pytest.mark.parametrize("name", NAMES)
def test_only_programs_can_be_executed(packages: dict[str, Package], name: str) -> None:
    executable = [entry.path for entry in packages[name].entries if entry.mode.startswith("-rwx")]
    assert all(path.startswith("/usr/bin/") for path in executable)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_was_left_over(packages: dict[str, Package], name: str) -> None:
    """No bytecode of the machine that built it, no development files."""
    unwanted = re.compile(r"__pycache__|\.pyc$|direct_url\.json|/\.|\.orig$|/tests?/$")
    assert [entry.path for entry in packages[name].entries if unwanted.search(entry.path)] == []


@pytest.mark.parametrize("name", NAMES)
def test_no_path_of_the_machine_that_built_it_is_inside(
    packages: dict[str, Package], name: str, tmp_path: Path
) -> None:
    """In what we made: our own code, and pyscard, the one extension that is compiled here."""
    unpacked = packages[name].unpack(tmp_path)
    ours = re.compile(
        r"(.*/site-packages/(vmtoken|dom0_broker|guest_agent|smartcard)|etc|lib|usr/bin|usr/share)/"
    )
    files = [
        path for path in unpacked.rglob("*") if path.is_file() and ours.match(str(path.relative_to(tmp_path)))
    ]
    found = {str(path): _MACHINE_PATHS.findall(path.read_bytes()) for path in files}
    assert {path: hits for path, hits in found.items() if hits} == {}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("vmtoken-common", ["python3 (>= 3.11)", "python3 (<< 3.12)", "libc6"]),
        ("vmtoken-broker", ["vmtoken-common (= ", "libpcsclite1", "systemd-standalone-sysusers"]),
        ("vmtoken-agent", ["vmtoken-common (= ", "systemd-standalone-tmpfiles"]),
    ],
)
def test_package_depends_on(packages: dict[str, Package], name: str, wanted: list[str]) -> None:
    depends = packages[name].field("Depends")
    assert [each for each in wanted if each not in depends] == []


def test_configuration_survives_upgrades(packages: dict[str, Package]) -> None:
    files = [line for name in NAMES[1:] for line in packages[name].control_file("conffiles").splitlines()]
    assert sorted(files) == [
        "/etc/vmtoken/agent.toml",
        "/etc/vmtoken/broker.toml",
        "/etc/vmtoken/policy.d/10-example.policy",
        "/etc/vmtoken/policy.d/90-default.policy",
    ]


def test_lintian_has_no_errors(packages: dict[str, Package]) -> None:
    said = run(
        tool("lintian"), "--fail-on", "none", *(package.path for package in packages.values()), seconds=600
    )
    assert [line for line in said.splitlines() if line.startswith("E:")] == []
