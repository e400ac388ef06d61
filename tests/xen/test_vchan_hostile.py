"""Guests that do not behave, on a real Xen: they harm nobody else, and what they did is in the audit log."""

from __future__ import annotations

import pytest
from xenlab import DomU, Lab

from tests.xen.hostile import COMES_AND_GOES, FLOODS, NEVER_READS, OPEN, SENDS_ON, STOPS_READING
from tests.xen.links import Broker, wait_for_channel
from tests.xen.residents import Application, Residents

_SPOILED = {
    "producer": "control.write.shr[1] = 0x7FFF_FFFF",
    "consumer": "control.write.shr[0] = 0x8000_0001",
    "live": "ctypes.memset(control.ring + 20, 77, 1)",
}
"""`struct vchan_interface`: two rings of two indexes, two orders of 16 bits, then `cli_live` at octet 20."""

SPOILED, FLOODED, SENT_ON = "the shared page holds", "say nothing", "of a processor to read"
UNREAD, RESTLESS = "is not read", "comes and goes"
"""Of the reasons that the audit log has for a `link-violation`."""

GROWTH = 8192
"""KiB that the broker may grow by."""


@pytest.fixture
def evil(lab: Lab, residents: Residents) -> DomU:
    """A domain without an agent, whose channel is there for whatever a test runs in it."""
    residents.move_out("web02")
    return lab.domu("web02")


@pytest.fixture
def good(web01: DomU, residents: Residents) -> Application:
    """An application of a VM that has a link and uses it."""
    return residents.application(web01, "web01")


@pytest.mark.parametrize("what", sorted(_SPOILED))
def test_garbage_in_the_shared_page_is_seen(broker: Broker, evil: DomU, good: Application, what: str) -> None:
    spoil = f"{OPEN}\n{_SPOILED[what]}\nnotify()\ntime.sleep(2)\n"
    before = broker.records("link-violation", evil.domid, SPOILED)
    with evil.start_python(spoil, str(evil.domid), "patient") as guest:
        guest.wait_for("open")
        broker.wait_for_record("link-violation", evil.domid, SPOILED, more_than=before)
        serves(good)


def test_a_flood_of_notifications_keeps_nobody_out(broker: Broker, evil: DomU, good: Application) -> None:
    before = broker.records("link-violation", evil.domid, FLOODED)
    with evil.start_python(FLOODS, str(evil.domid), "patient") as guest:
        guest.wait_for("open")
        for _ in range(5):
            serves(good)
        broker.wait_for_record("link-violation", evil.domid, FLOODED, more_than=before)


def test_a_guest_that_sends_without_end_keeps_nobody_out(
    broker: Broker, evil: DomU, good: Application
) -> None:
    memory, told = broker.memory, broker.records("link-violation", evil.domid, SENT_ON)
    with evil.start_python(SENDS_ON, str(evil.domid), "patient") as guest:
        guest.wait_for("open")
        for _ in range(5):
            serves(good)
        broker.wait_for_record("link-violation", evil.domid, SENT_ON, more_than=told)
    assert broker.memory < memory + GROWTH


def test_a_guest_that_sends_junk_and_never_reads_keeps_nobody_out(
    broker: Broker, evil: DomU, good: Application
) -> None:
    memory = broker.memory
    with evil.start_python(NEVER_READS, str(evil.domid), "patient") as guest:
        guest.wait_for("open")
        for _ in range(5):
            serves(good)
    assert broker.memory < memory + GROWTH


@pytest.mark.long
def test_a_guest_that_stops_reading_is_let_go(broker: Broker, evil: DomU, good: Application) -> None:
    """Its heartbeat is missed, and what was sent to it is not taken."""
    before = broker.records("link-violation", evil.domid, UNREAD)
    with evil.start_python(STOPS_READING, str(evil.domid), "patient") as guest:
        guest.wait_for("open")
        broker.wait_for_record("link-violation", evil.domid, UNREAD, more_than=before, seconds=120)
        serves(good)


def test_a_guest_that_opens_hundreds_of_channels_gets_one(
    broker: Broker, evil: DomU, good: Application
) -> None:
    crowd = f"""{OPEN}
refused = 0
for _ in range(300):
    try:
        libxenvchan.open_client(0, f"/local/domain/0/data/vmtoken/{{domid}}")
    except OSError:
        refused += 1
print("refused", refused, flush=True)
"""
    wait_for_channel(broker.machine, evil.domid)
    before = broker.memory, broker.descriptors
    with evil.start_python(crowd, str(evil.domid), "patient") as guest:
        assert guest.wait_for("refused (3..)")[1] == "300"
        serves(good)
    wait_for_channel(broker.machine, evil.domid)
    assert broker.memory < before[0] + GROWTH
    assert broker.descriptors <= before[1]


def test_a_guest_that_comes_and_goes_in_a_tight_loop_has_to_wait(
    broker: Broker, evil: DomU, good: Application
) -> None:
    wait_for_channel(broker.machine, evil.domid)
    before = broker.descriptors
    told = broker.records("link-violation", evil.domid, RESTLESS)
    with evil.start_python(COMES_AND_GOES, str(evil.domid), "patient") as guest:
        guest.wait_for("open")
        serves(good)
        assert int(guest.wait_for(r"came (\d+)")[1]) < 50
        broker.wait_for_record("link-violation", evil.domid, RESTLESS, more_than=told)
    wait_for_channel(broker.machine, evil.domid)
    assert broker.descriptors <= before


def test_a_guest_that_rewrites_its_own_nodes_changes_nothing(
    broker: Broker, evil: DomU, good: Application
) -> None:
    """All that it may write to is its own `data`; the broker takes nothing from there."""
    rewrite = """
import asyncio, sys
from vmtoken.transport.xenstore import Xenstore

async def main():
    store = await Xenstore.connect()
    for path in ("data/vmtoken/domains/0", "data/vm", "data/name"):
        await store.write(f"/local/domain/{sys.argv[1]}/{path}", b"web01")
    for path in ("vm", "name", "domid", "vmtoken/broker-domid"):
        try:
            await store.write(f"/local/domain/{sys.argv[1]}/{path}", b"0")
        except PermissionError:
            print("refused", flush=True)

asyncio.run(main())
"""
    assert evil.python(rewrite, str(evil.domid)).split() == ["refused"] * 4
    shown = broker.vm(evil)
    assert (shown["domain"], shown["domid"]) == ("running", evil.domid)
    serves(good)


def test_another_domain_cannot_come_in(lab: Lab, evil: DomU, good: Application) -> None:
    assert evil.python(OPEN, str(lab.domu("web01").domid), "once").strip() == "refused 13"
    serves(good)


def test_a_guest_cannot_serve_where_others_look_for_their_broker(lab: Lab, evil: DomU) -> None:
    serve = """
import sys
from vmtoken.transport import libxenvchan
try:
    libxenvchan.open_server(int(sys.argv[1]), sys.argv[2], read_size=4096, write_size=4096)
except OSError as error:
    print(f"refused {error.errno}")
"""
    victim = lab.domu("web01").domid
    for owner in (0, victim):
        path = f"/local/domain/{owner}/data/vmtoken/{victim}"
        assert "refused" in evil.python(serve, str(victim), path)


@pytest.mark.long
def test_a_second_domain_with_the_uuid_of_a_first_gets_no_link_and_takes_none_away(
    lab: Lab, broker: Broker, web01: DomU, good: Application
) -> None:
    copy = lab.create("copy", identity=web01.uuid)
    try:
        broker.wait_for_record("domain-refused", copy.domid)
        assert copy.python(OPEN, str(copy.domid), "once").startswith("refused")
        assert broker.vm(web01)["domid"] == web01.domid
    finally:
        copy.destroy()
    assert broker.vm(web01)["domid"] == web01.domid, "libxl has removed /vm/UUID with the copy"
    serves(good)


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


def serves(application: Application) -> None:
    """Its VM gets answers from the broker."""
    assert application.do("tokens") == {"tokens": ["identity"]}
