"""Everything that a vchan needs, taken away one by one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.fakes.xenstored import FakeXenstored
from tests.support.directories import short_directory
from tests.support.machines import STRANGER, complaints, machine, owner, put
from vmtoken.doctor import xen
from vmtoken.doctor.finding import Verdict

WARNING, WRONG = Verdict.WARNING, Verdict.WRONG


@pytest.mark.parametrize(
    ("kind", "expected"), [("xen", []), ("kvm", [("xen", WRONG)]), (None, [("xen", WRONG)])]
)
def test_hypervisor(tmp_path: Path, kind: str | None, expected: list[tuple[str, Verdict]]) -> None:
    if kind is not None:
        put(tmp_path, "/sys/hypervisor/type", f"{kind}\n")
        put(tmp_path, "/sys/hypervisor/version/major", "4\n")
        put(tmp_path, "/sys/hypervisor/version/minor", "17\n")
    findings = list(xen.hypervisor(machine(tmp_path)))
    assert complaints(findings) == expected
    assert expected or "Xen 4.17" in findings[0].text


@pytest.mark.parametrize("names", [xen.BROKER_DEVICES, xen.AGENT_DEVICES])
def test_devices_that_are_missing_name_their_module(tmp_path: Path, names: tuple[str, ...]) -> None:
    findings = list(xen.devices(machine(tmp_path), names, STRANGER))
    assert complaints(findings) == [("device", WRONG)] * 3
    assert "modprobe xen-evtchn" in findings[0].cure


def test_devices_that_the_user_may_not_open(tmp_path: Path) -> None:
    device = put(tmp_path, "/dev/xen/evtchn", mode=0o660)
    user = owner(device)
    assert complaints(list(xen.devices(machine(tmp_path), ["evtchn"], user))) == []
    findings = list(xen.devices(machine(tmp_path), ["evtchn"], STRANGER))
    assert complaints(findings) == [("device", WRONG)]
    assert "udevadm trigger" in findings[0].cure


def test_library() -> None:
    missing = list(xen.library(lambda: "libxenvchan is not installed.", lambda: ""))
    assert complaints(missing) == [("libxenvchan", WRONG)]
    assert complaints(list(xen.library(lambda: None, lambda: "libxenvchan.so.4.17"))) == []


@pytest.mark.parametrize(
    ("vms", "expected"), [(10, []), (100, [("grants", WARNING)]), (200, [("grants", WRONG)])]
)
def test_grants(vms: int, expected: list[tuple[str, Verdict]]) -> None:
    assert complaints(list(xen.grants(vms, 9, 1024))) == expected


async def test_everything_is_looked_at_on_xen(tmp_path: Path) -> None:
    put(tmp_path, "/sys/hypervisor/type", "xen\n")
    found = await xen.everything(
        machine(tmp_path), xen.BROKER_DEVICES, STRANGER, [lambda: xen.grants(200, 9, 1024)]
    )
    looked_at = {finding.check for finding in found}
    assert looked_at == {"xen", "device", "libxenvchan", "grants", "xenstore"}


async def test_xenstore_that_answers_says_who_we_are(tmp_path: Path) -> None:
    store = FakeXenstored(short_directory())
    _lead(tmp_path, await store.socket(0))
    finding = await xen.xenstore(machine(tmp_path))
    assert (complaints([finding]), finding.text) == ([], "xenstore answers; this is domain 0.")
    await store.close()


async def test_xenstore_that_is_not_there(tmp_path: Path) -> None:
    assert complaints([await xen.xenstore(machine(tmp_path))]) == [("xenstore", WRONG)]


async def test_xenstored_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xen, "_PATIENCE", 0.05)
    path = short_directory() / "socket"
    _lead(tmp_path, path)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        finding = await xen.xenstore(machine(tmp_path))
    assert complaints([finding]) == [("xenstore", WRONG)]
    assert "has not answered" in finding.text


def _lead(root: Path, socket: Path) -> None:
    """To where xenstored listens on this machine, whose own path may be too long for a socket."""
    (root / "run/xenstored").mkdir(parents=True)
    (root / "run/xenstored/socket").symlink_to(socket)
