"""`docs/install-xen.md`, done by an operator who types what it says; then reboot and upgrade.

The images have the product, so it is removed first. One test builds on another, as in the life of an
installation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from xenlab import DomU, Lab, Machine

from tests.xen.installing import ALL, APT_WITHIN, DOCUMENT, PACKAGES, Operator, make_bare, put_packages
from tests.xen.links import DOM0, HOME
from tests.xen.nginx import PORT as NGINX
from tests.xen.nginx import nginx
from tests.xen.residents import VISITOR, Application, Seen
from tests.xen.stage import server_command

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

NOT_HERE = ("where you build",)
"""The lab has built them."""

ELSEWHERE = ("A service domain", "Upgrading", "Saving and migrating")
"""Sections for after the first session; test_passthrough.py has the first."""

SERVER = "server.example"
"""As the document calls it, and its port: the VM's /etc/hosts says where."""

SERVER_PORT = 443
BOTH = ("vmtoken-broker", "vmtoken-agent")
MOST_EXPOSURE = 2.5
DEVICES = {
    "dom0": {"evtchn": "vmtoken", "gntalloc": "vmtoken", "xenbus": "vmtoken", "gntdev": "root"},
    "web01": {"evtchn": "vmtoken-agent", "gntdev": "vmtoken-agent", "xenbus": "vmtoken-agent"},
}
"""Groups of what is in /dev/xen, as the rules for udev have it; all else is root's."""


INSTALLATION = {block for block in DOCUMENT if block.place not in NOT_HERE and block.section not in ELSEWHERE}


@pytest.fixture(scope="module")
def web01(booted_lab: Lab) -> Iterator[DomU]:
    """The VM; it boots systemd while other things are done, and keeps what it writes."""
    domain = booted_lab.define("web01", systemd=True, persistent=True, memory=448)
    if domain.is_alive:
        domain.destroy()
    domain.create()
    yield domain
    domain.destroy()


@dataclass(frozen=True)
class Left:
    """What is left of the product in dom0."""

    removed: list[str]
    purged: list[str]
    units: str
    devices: dict[str, str]
    state: str
    """Of all of systemd."""


@pytest.fixture(scope="module")
def left(booted_lab: Lab, web01: DomU) -> Iterator[Left]:
    """After the broker has run in dom0, and all was removed, then purged; in the end dom0 has it again."""
    dom0 = booted_lab.dom0
    dom0.run(["systemctl", "enable", *BOTH])
    dom0.run(["systemctl", "start", BOTH[0]], seconds=APT_WITHIN)
    apt = f"DEBIAN_FRONTEND=noninteractive apt {{}} --yes {' '.join(ALL)}"
    dom0.sh(apt.format("remove"), seconds=APT_WITHIN)
    removed = _traces(dom0)
    dom0.sh(apt.format("purge"), seconds=APT_WITHIN)
    units = dom0.sh("systemctl list-units --all --plain --no-legend 'vmtoken*'")
    state = dom0.sh("systemctl is-system-running || true").strip()
    put_packages(dom0, ALL)
    yield Left(removed, _traces(dom0), units, _groups(dom0), state)
    dom0.sh(f"apt install --yes {PACKAGES}/vmtoken-*.deb", seconds=APT_WITHIN)
    dom0.run(["systemctl", "disable", "--now", *BOTH], seconds=APT_WITHIN)


@pytest.fixture(scope="module")
def operator(booted_lab: Lab, web01: DomU, left: Left) -> Iterator[Operator]:
    """The document was followed to the first session; the units run until the end."""
    dom0 = booted_lab.dom0
    operator = Operator(dom0, web01)
    web01.wait_until_up()
    make_bare(web01, "vmtoken-common", "vmtoken-agent")
    operator.follow("Installing on Xen", "in dom0", "in the VM")
    web01.sh(f"grep {SERVER} /etc/hosts || echo {DOM0} {SERVER} >> /etc/hosts")
    dom0.sh(f"cd {PACKAGES}; vmtokenctl ca init servers; vmtokenctl ca server servers {SERVER}")
    dom0.sh(f"cp {PACKAGES}/servers/ca.pem {PACKAGES}/servers-ca.pem")
    operator.follow("The domain", "in dom0")
    operator.follow("The first session", "in dom0")
    with _servers(dom0):
        yield operator
    dom0.sh(
        f"apt install --yes {PACKAGES}/vmtoken-*.deb", seconds=APT_WITHIN
    )  # with the agent, as in the image
    dom0.run(["systemctl", "disable", "--now", *BOTH], seconds=APT_WITHIN)


def test_what_was_removed_leaves_state_and_configuration(left: Left) -> None:
    by_debian = "/systemd/"  # units that are enabled stay so until they are purged
    assert {path for path in left.removed if by_debian not in path} == {"/etc/vmtoken", "/var/lib/vmtoken"}


def test_what_was_purged_leaves_nothing(left: Left) -> None:
    assert left.purged == []
    assert left.units == ""
    assert set(left.devices.values()) == {"root"}
    assert left.state == "running"


def test_document_leads_to_a_first_session(operator: Operator) -> None:
    page = operator.first_session()
    assert "Subject: CN=web01" in page
    assert operator.followed == INSTALLATION


@pytest.mark.parametrize(
    ("place", "unit", "user"),
    [("dom0", "vmtoken-broker", "vmtoken"), ("web01", "vmtoken-agent", "vmtoken-agent")],
)
def test_unit_runs_without_any_privilege_and_comes_back(
    operator: Operator, place: str, unit: str, user: str
) -> None:
    machine = operator.dom0 if place == "dom0" else operator.vm
    before = _running(machine, unit)
    assert before.user == user
    assert before.capabilities == 0
    assert _exposure(machine, unit) <= MOST_EXPOSURE
    machine.run(["systemctl", "kill", "--signal=KILL", unit])
    machine.wait_until(
        f"systemctl is-active {unit} && test $({_MAIN_PID} {unit}) != {before.pid}", APT_WITHIN
    )
    machine.run(["systemctl", "restart", unit], seconds=APT_WITHIN)
    assert _running(machine, unit).user == user
    assert "Subject: CN=web01" in operator.first_session()


def test_broker_is_reached_over_vchan_and_listens_on_no_port(operator: Operator) -> None:
    broker = _running(operator.dom0, "vmtoken-broker")
    for family in ("tcp", "tcp6"):
        (_header,) = operator.dom0.read(f"/proc/{broker.pid}/net/{family}").splitlines()
    (vm,) = json.loads(operator.dom0.sh("vmtokenctl vm list --json"))
    assert (vm["domain"], vm["domid"], vm["agent"]) == ("running", operator.vm.domid, True)
    listening = operator.vm.sh("awk '$4 == \"0A\" { print $2 }' /proc/net/tcp /proc/net/tcp6").split()
    assert [int(address.rpartition(":")[2], 16) for address in listening] == [7], "the lab's own agent"


@pytest.mark.parametrize("place", ["dom0", "web01"])
def test_devices_belong_to_the_groups_that_were_promised(operator: Operator, place: str) -> None:
    groups = _groups(operator.dom0 if place == "dom0" else operator.vm)
    assert groups.get("privcmd", "root") == "root"
    assert groups == {**dict.fromkeys(groups, "root"), **DEVICES[place]}


def test_rebooted_vm_has_its_token_again(operator: Operator) -> None:
    operator.vm.reboot()
    operator.vm.wait_until("systemctl is-active vmtoken-agent", APT_WITHIN)
    assert "Subject: CN=web01" in operator.first_session()


def test_saved_vm_goes_on_with_its_agent(operator: Operator) -> None:
    before = _running(operator.vm, "vmtoken-agent")
    operator.follow("Saving and migrating", "in dom0")
    operator.vm.restore(f"{PACKAGES}/web01.save")
    assert _running(operator.vm, "vmtoken-agent") == before
    assert "Subject: CN=web01" in operator.first_session()


def test_open_sessions_do_not_notice_an_upgrade_of_the_broker(operator: Operator, tmp_path: Path) -> None:
    dom0 = operator.dom0
    put_packages(dom0, ALL, next_build=tmp_path)
    known, before = _known(dom0), _running(dom0, "vmtoken-broker").pid
    with _application(operator.vm) as application:
        versions = ("1.2", "1.3") * 2
        wish = {"server_name": SERVER, "no_resumption": True}
        sessions = [application.open(NGINX, version, **wish) for version in versions]
        expected = [Seen("web01", f"TLSv{version}", resumed=False) for version in versions]
        rounds = 0
        with ThreadPoolExecutor() as pool:
            upgrade = pool.submit(operator.follow, "Upgrading", "in dom0")
            while not upgrade.done():
                assert [application.seen(session) for session in sessions] == expected
                rounds += 1
            upgrade.result()
        assert rounds > 2
        assert [application.seen(session) for session in sessions] == expected
        for version in versions[:2]:
            new = application.open(NGINX, version, **wish)
            assert application.seen(new).client == "web01"
    assert _known(dom0) == known
    assert dom0.sh("dpkg-query --show --showformat '${Version}' vmtoken-broker").endswith(".next")
    assert _running(dom0, "vmtoken-broker").pid != before
    dom0.run(["vmtokenctl", "doctor"])


# What an operator looks at.


@dataclass(frozen=True)
class Running:
    """The main process of a unit."""

    pid: int
    user: str
    capabilities: int


_MAIN_PID = "systemctl show --property=MainPID --value"


def _running(machine: Machine, unit: str) -> Running:
    machine.run(["systemctl", "is-active", unit])
    pid = int(machine.sh(f"{_MAIN_PID} {unit}"))
    status = machine.read(f"/proc/{pid}/status").decode()
    users = re.search(r"^Uid:\s(.*)$", status, re.MULTILINE)
    capabilities = re.findall(r"^Cap(?:Prm|Eff|Bnd|Amb):\s(\w+)$", status, re.MULTILINE)
    assert users
    (number,) = set(users[1].split())
    name = machine.sh(f"getent passwd {number}").partition(":")[0]
    return Running(pid, name, max(int(each, 16) for each in capabilities))


def _exposure(machine: Machine, unit: str) -> float:
    report = machine.sh(f"systemd-analyze security --no-pager {unit}.service")
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", report)
    assert exposure, report
    return float(exposure[1])


def _groups(machine: Machine) -> dict[str, str]:
    """The group of each device of Xen that others than root may open."""
    listed = machine.sh("stat --format '%n %a %U %G' /dev/xen/*").splitlines()
    groups = {}
    for path, mode, owner, group in map(str.split, listed):
        assert (owner, mode) == ("root", "600" if group == "root" else "660"), path
        groups[path.removeprefix("/dev/xen/")] = group
    return groups


def _traces(machine: Machine) -> list[str]:
    """Files that are named after us, but those that Debian keeps of what it has removed and the lab's own."""
    pruned = " -o ".join(
        f"-path {path}" for path in ("/root", "/var/lib/dpkg", "/var/log", "/var/cache", "/tmp")
    )
    find = rf"find / /run -xdev \( {pruned} \) -prune -o -name '*vmtoken*' -prune -print"
    return machine.sh(find).split()


def _known(dom0: Machine) -> list[object]:
    """Tokens and VMs, as their lists show them."""
    tokens = json.loads(dom0.sh("vmtokenctl token list --json"))
    vms = json.loads(dom0.sh("vmtokenctl vm list --json"))
    return [
        [(token["name"], token["uri"], token["ready"]) for token in tokens],
        [(vm["name"], vm["uuid"], vm["tokens"]) for vm in vms],
    ]


# What is there beside the product.


@contextmanager
def _servers(dom0: Machine) -> Iterator[None]:
    """OpenSSL and nginx, which trust the CA of the document and ask for a certificate of it."""
    dom0.sh(
        f"rm -rf {HOME}; mkdir -p {HOME}; cd {PACKAGES}; cp -r servers {HOME}/ca; cp lab/ca.pem {HOME}/ca"
    )
    with dom0.start(server_command(SERVER_PORT), directory=HOME) as server, nginx(dom0):
        server.wait_for("ACCEPT")
        yield


@contextmanager
def _application(vm: DomU) -> Iterator[Application]:
    with vm.start_python(VISITOR, "/run/vmtoken-agent/agent.sock") as process:
        yield Application(process)
