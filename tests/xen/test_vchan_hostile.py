"""Guests that do not behave, on a real Xen: they harm nobody else, and what they did is in the audit log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from xenlab import DomU, Lab

from tests.xen.links import Broker, probe_in

_OPEN = """
import ctypes, sys, time
from vmtoken.transport import libxenvchan
domid, what = sys.argv[1:3]
for attempt in range(600):
    try:
        vchan = libxenvchan.open_client(0, f"/local/domain/0/data/vmtoken/{domid}")
        break
    except OSError as error:
        print(f"refused {error.errno}", flush=True)
        if what == "once":
            sys.exit()
        time.sleep(0.1)
control = vchan._control.contents
events = ctypes.CDLL("libxenevtchn.so.1")
events.xenevtchn_notify.argtypes = (ctypes.c_void_p, ctypes.c_uint32)

def notify():
    events.xenevtchn_notify(control.event, control.event_port)

print("open", flush=True)
"""

_SPOILED = {
    "producer": "control.write.shr[1] = 0x7FFF_FFFF",
    "consumer": "control.write.shr[0] = 0x8000_0001",
    "live": "ctypes.memset(control.ring + 20, 77, 1)",
}
"""`struct vchan_interface`: two rings of two indexes, two orders of 16 bits, then `cli_live` at octet 20."""


@pytest.fixture(scope="module")
def running_broker(booted_lab: Lab) -> Iterator[Broker]:
    with Broker.running(booted_lab.dom0) as broker:
        yield broker


@pytest.fixture
def broker(lab: Lab, running_broker: Broker) -> Broker:
    return running_broker


@pytest.fixture
def evil(lab: Lab, broker: Broker) -> DomU:
    domain = lab.domu("web02")
    broker.know(domain)
    return domain


@pytest.fixture
def good(lab: Lab, broker: Broker) -> DomU:
    domain = lab.domu("web01")
    broker.know(domain)
    return domain


@pytest.mark.parametrize("what", sorted(_SPOILED))
def test_garbage_in_the_shared_page_is_seen(broker: Broker, evil: DomU, good: DomU, what: str) -> None:
    spoil = f"{_OPEN}\n{_SPOILED[what]}\nnotify()\ntime.sleep(2)\n"
    before = violations(broker, evil.domid)
    with probe_in(good) as probe, evil.start_python(spoil, str(evil.domid), "patient") as guest:
        probe.ask()
        guest.wait_for("open")
        log = "/root/vchan/state/audit/audit.jsonl"
        wanted = f"test $(grep -c 'link-violation.*\"domid\":{evil.domid}[,}}]' {log}) -gt {before}"
        broker.machine.wait_until(wanted, 60)
        probe.ask()


def test_a_flood_of_notifications_delays_nobody(broker: Broker, evil: DomU, good: DomU) -> None:
    flood = f"{_OPEN}\nend = time.monotonic() + 20\nwhile time.monotonic() < end:\n    notify()\n"
    with probe_in(good) as probe, evil.start_python(flood, str(evil.domid), "patient") as guest:
        probe.ask()
        guest.wait_for("open")
        for _ in range(5):
            probe.ask(20)
        broker.control("status")


def test_a_guest_that_writes_and_never_reads_fills_its_own_ring(
    broker: Broker, evil: DomU, good: DomU
) -> None:
    flood = f"{_OPEN}\nwhile True:\n    vchan.write(bytes(65536)) or time.sleep(0.001)\n"
    with probe_in(good) as probe, evil.start_python(flood, str(evil.domid), "patient") as guest:
        probe.ask()
        before = memory(broker)
        guest.wait_for("open")
        for _ in range(5):
            probe.ask(20)
        assert memory(broker) < before + 8192, "the broker grew by more than 8 MiB"


def test_another_domain_cannot_come_in(evil: DomU, good: DomU) -> None:
    with probe_in(good) as probe:
        probe.ask()
        assert evil.python(_OPEN, str(good.domid), "once").strip() == "refused 13"
        probe.ask()


def test_a_guest_cannot_serve_where_others_look_for_their_broker(evil: DomU, good: DomU) -> None:
    serve = """
import sys
from vmtoken.transport import libxenvchan
try:
    libxenvchan.open_server(int(sys.argv[1]), sys.argv[2], read_size=4096, write_size=4096)
except OSError as error:
    print(f"refused {error.errno}")
"""
    for owner in (0, good.domid):
        path = f"/local/domain/{owner}/data/vmtoken/{good.domid}"
        assert "refused" in evil.python(serve, str(good.domid), path)


def test_a_second_domain_with_the_uuid_of_a_first_gets_no_link(lab: Lab, broker: Broker, good: DomU) -> None:
    copy = lab.create("copy", identity=good.uuid)
    try:
        broker.wait_for_record("domain-refused", copy.domid)
        assert copy.python(_OPEN, str(copy.domid), "once").strip() == "refused 13"
        assert broker.vm(good)["domid"] == good.domid
    finally:
        copy.destroy()


def test_servers_past_the_limit_of_grants_are_errors(lab: Lab) -> None:
    """libxenvchan's way out of a server that it cannot make frees what it never allocated."""
    source = """
from vmtoken.transport import libxenvchan
libxenvchan.grant_limit = lambda: 1 << 30     # the kernel's own limit is what is tested
opened, refused = [], 0
for number in range(60):
    try:
        path = f"/local/domain/0/data/limit/{number}"
        opened.append(libxenvchan.open_server(0, path, read_size=65536, write_size=65536))
    except OSError:
        refused += 1
for vchan in opened:
    vchan.close()
print("refused", refused)
"""
    assert int(lab.dom0.python(source).split()[-1]) > 0


def violations(broker: Broker, domid: int) -> int:
    log = "/root/vchan/state/audit/audit.jsonl"
    return int(broker.machine.sh(f"grep -c 'link-violation.*\"domid\":{domid}[,}}]' {log} || true"))


def memory(broker: Broker) -> int:
    """Resident, KiB."""
    return int(broker.machine.sh(f"awk '/VmRSS/{{print $2}}' /proc/{broker.process.pid}/status"))
