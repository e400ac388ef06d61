"""Links over vchan on a real Xen: agents, brokers and domains end in every way, and come back."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from xenlab import DomU, Lab

from tests.xen.links import HOME, PROGRAMS, Broker, nodes, probe_in


@pytest.fixture(scope="module")
def running_broker(booted_lab: Lab) -> Iterator[Broker]:
    with Broker.running(booted_lab.dom0) as broker:
        yield broker


@pytest.fixture
def broker(lab: Lab, running_broker: Broker) -> Broker:
    return running_broker


@pytest.fixture
def web01(lab: Lab, broker: Broker) -> DomU:
    domain = lab.domu("web01")
    broker.know(domain)
    return domain


@pytest.fixture
def own(lab: Lab, broker: Broker) -> Iterator[DomU]:
    """A domU that a test may do anything to."""
    domain = lab.create("own")
    broker.know(domain)
    yield domain
    if domain.is_alive:
        domain.destroy()


def test_an_agent_reaches_its_broker(broker: Broker, web01: DomU) -> None:
    with probe_in(web01) as probe:
        assert probe.ask() == "[]"
        shown = broker.vm(web01)
        assert (shown["domain"], shown["agent"], shown["domid"]) == ("running", True, web01.domid)


def test_a_killed_agent_makes_room_for_the_next(broker: Broker, web01: DomU) -> None:
    for _ in range(2):
        with probe_in(web01) as probe:
            probe.ask()
            probe.process.signal(signal.SIGKILL)


def test_a_killed_broker_is_found_again(lab: Lab) -> None:
    domain = lab.domu("web02")
    with Broker.running(lab.dom0) as first, probe_in(domain) as probe:
        first.know(domain)
        probe.ask()
        first.process.signal(signal.SIGKILL)
        first.process.wait()
        assert str(domain.domid) in nodes(lab.dom0), "nobody was there to remove it"
        with Broker.running(lab.dom0, afresh=False):
            probe.ask()
    assert nodes(lab.dom0) == []


def test_a_destroyed_domain_leaves_nothing_behind(lab: Lab, broker: Broker, own: DomU) -> None:
    domid = own.domid
    with probe_in(own) as probe:
        probe.ask()
        own.destroy()
    broker.wait_for_record("domain-gone", domid)
    lab.dom0.wait_until(f"! xenstore-exists /local/domain/0/data/vmtoken/{domid}", 30)
    assert broker.vm(own)["domain"] == "gone"
    assert "(null)" not in lab.dom0.sh("xl list"), "grants of ours keep a dead domain"


def test_a_domain_that_shuts_down_is_gone(broker: Broker, own: DomU) -> None:
    domid = own.domid
    own.shut_down()
    broker.wait_for_record("domain-gone", domid)


def test_a_reboot_changes_the_domid_and_not_the_vm(broker: Broker, own: DomU) -> None:
    before = own.domid
    with probe_in(own) as probe:
        probe.ask()
    own.reboot()
    assert own.domid != before
    with probe_in(own) as probe:
        probe.ask()
    assert broker.vm(own)["domid"] == own.domid


def test_a_paused_domain_is_let_go_and_comes_back(lab: Lab, broker: Broker, web01: DomU) -> None:
    with probe_in(web01) as probe:
        probe.ask()
        web01.pause()
        try:
            assert broker.vm(web01)["domain"] == "paused"
            control = f"vmtokenctl --config {HOME}/broker.toml vm list --json"
            lab.dom0.wait_until(f"! {control} | grep -q '\"agent\": true'", 90)
        finally:
            web01.unpause()
        assert probe.ask() == "[]"


def test_a_saved_domain_is_the_same_vm_when_restored(broker: Broker, own: DomU) -> None:
    with probe_in(own) as probe:
        probe.ask()
    own.save("/root/own.save")
    own.restore("/root/own.save")
    with probe_in(own) as probe:
        probe.ask()


def test_agents_that_come_and_go_leave_nothing_behind(broker: Broker, web01: DomU) -> None:
    with probe_in(web01) as probe:
        probe.ask()
    before = broker.descriptors()
    for _ in range(10):
        with probe_in(web01) as probe:
            probe.ask()
    assert broker.descriptors() <= before + 2
    assert nodes(broker.machine).count(str(web01.domid)) == 1


def test_a_broker_in_a_service_domain_serves_other_domains(lab: Lab, own: DomU) -> None:
    web02 = lab.domu("web02")
    with (
        lab.dom0.start([f"{PROGRAMS}/vmtoken-domains", "--to", own.name]),
        Broker.running(own) as broker,
        probe_in(web02) as probe,
    ):
        broker.know(web02)
        assert probe.ask() == "[]"
        assert str(web02.domid) in nodes(own, own.domid)
        assert broker.vm(web02)["agent"] is True
    lab.dom0.sh(f"xenstore-rm /local/domain/{web02.domid}/vmtoken")
