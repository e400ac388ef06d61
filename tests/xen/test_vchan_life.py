"""Links over vchan on a real Xen: agents, brokers and domains end in every way, and come back."""

from __future__ import annotations

import signal
import uuid

import pytest
from xenlab import DomU, Lab

from tests.xen.links import HOME, READY_WITHIN, Broker, nodes, probe_in, wait_for_channel
from tests.xen.residents import Application, Residents
from tests.xen.stage import Stage

ITS_TOKENS = {"tokens": ["identity"]}


def test_an_agent_reaches_its_broker(broker: Broker, web01: DomU, residents: Residents) -> None:
    assert residents.application(web01, "web01").do("tokens") == ITS_TOKENS
    shown = broker.vm(web01)
    assert (shown["domain"], shown["agent"], shown["domid"]) == ("running", True, web01.domid)


@pytest.mark.parametrize(
    "signal_number",
    [
        pytest.param(signal.SIGTERM, marks=pytest.mark.long, id="stopped"),
        pytest.param(signal.SIGKILL, id="killed"),
    ],
)
def test_an_agent_that_ended_is_followed_by_another(
    web01: DomU, residents: Residents, signal_number: int
) -> None:
    residents.application(web01, "web01")
    residents.agent("web01").signal(signal_number)
    residents.agent("web01").wait()
    assert residents.application(web01, "web01").do("tokens") == ITS_TOKENS


@pytest.mark.long
def test_a_reboot_changes_the_domid_and_not_the_vm(broker: Broker, own: DomU) -> None:
    before = own.domid
    with probe_in(own):
        pass
    own.reboot()
    assert own.domid != before
    with probe_in(own):
        shown = broker.vm(own)
    assert (shown["domid"], shown["agent"]) == (own.domid, True)


@pytest.mark.long
def test_an_unlinked_domain_is_saved_and_restored_with_its_agent(
    stage: Stage, broker: Broker, own: DomU
) -> None:
    """Its domid is another and its channel a new one, which the agent finds that was there before."""
    before = own.domid
    with stage.lasting_agent(own) as agent:
        broker.wait_for_agent(own)
        broker.control("vm", "unlink", own.name)
        assert broker.vm(own)["domain"] == "running, unlinked"
        own.save("/root/own.save")
        own.restore("/root/own.save")
        assert own.domid != before
        own.run(["vmtoken", "--socket", f"{HOME}/agent.sock", "list"], seconds=READY_WITHIN)
        own.sh(f"kill -0 {agent}")
        shown = broker.vm(own)
        assert (shown["domid"], shown["agent"]) == (own.domid, True)
    own.wait_until(f"! kill -0 {agent}", 60)


@pytest.mark.long
def test_a_domain_that_is_saved_with_its_link_open_has_to_boot_anew(
    lab: Lab, broker: Broker, own: DomU, web01: DomU, residents: Residents
) -> None:
    """Linux does not get over it (docs/install-xen.md); the broker and other VMs do."""
    before = own.domid
    with probe_in(own):
        own.save("/root/own.save")
    broker.wait_for_record("domain-gone", before)
    own.restore("/root/own.save")
    shown = broker.vm(own)
    assert (shown["domain"], shown["domid"], shown["agent"]) == ("running", own.domid, False)
    assert residents.application(web01, "web01").do("tokens") == ITS_TOKENS
    own.destroy()
    assert "(null)" not in lab.dom0.sh("xl list"), "grants of ours keep a dead domain"
    lab.prepare(own.name)
    with probe_in(lab.domu(own.name)):
        assert broker.vm(own)["agent"] is True


@pytest.mark.long
def test_a_domid_that_another_vm_has_now_is_that_vm(lab: Lab, broker: Broker, own: DomU) -> None:
    """`xl save -D` keeps the domid; in the file is the configuration, which gets another VM's UUID."""
    heir, domid = uuid.uuid4(), own.domid
    broker.control("vm", "add", "heir", "--uuid", str(heir))
    with probe_in(own):
        assert broker.vm(own)["agent"] is True
    own.save("/root/own.save", "-D")
    broker.wait_for_record("domain-gone", domid)
    appeared = broker.records("domain-appeared", domid)
    lab.dom0.sh(f"LC_ALL=C sed -i 's/{own.uuid}/{heir}/g' /root/own.save")
    own.restore("/root/own.save")
    broker.wait_for_record("domain-appeared", domid, more_than=appeared)
    assert {vm["name"]: vm["domid"] for vm in broker.vms()}.items() >= {"heir": domid, "own": None}.items()
    own.destroy()


def test_a_destroyed_domain_leaves_nothing_behind(lab: Lab, broker: Broker, own: DomU) -> None:
    domid = own.domid
    with probe_in(own):
        own.destroy()
    broker.wait_for_record("domain-gone", domid)
    lab.dom0.wait_until(f"! xenstore-exists /local/domain/0/data/vmtoken/{domid}", 30)
    assert broker.vm(own)["domain"] == "gone"
    assert "(null)" not in lab.dom0.sh("xl list"), "grants of ours keep a dead domain"


@pytest.mark.long
def test_a_domain_that_shuts_down_is_gone(lab: Lab, broker: Broker, own: DomU) -> None:
    domid = own.domid
    own.shut_down()
    broker.wait_for_record("domain-gone", domid)
    assert str(domid) not in nodes(lab.dom0)


@pytest.mark.long
def test_a_paused_domain_is_let_go_and_comes_back(
    broker: Broker, web01: DomU, applications: dict[str, Application]
) -> None:
    web01.pause()
    try:
        assert broker.vm(web01)["domain"] == "paused"
        broker.wait_for_agent(web01, connected=False)
    finally:
        web01.unpause()
    assert applications["web01"].do("tokens") == ITS_TOKENS


@pytest.mark.long
def test_agents_that_come_and_go_leave_nothing_behind(
    broker: Broker, web01: DomU, residents: Residents
) -> None:
    residents.move_out("web01")
    with probe_in(web01):
        pass
    wait_for_channel(broker.machine, web01.domid)
    before = broker.descriptors
    for _ in range(5):
        with probe_in(web01):
            pass
    wait_for_channel(broker.machine, web01.domid)
    assert broker.descriptors <= before


@pytest.mark.long
def test_a_broker_in_a_service_domain_serves_other_domains(
    lab: Lab, own: DomU, web01: DomU, residents: Residents
) -> None:
    residents.move_out("web01")
    with (
        lab.dom0.start(["vmtoken-domains", "--to", own.name]),
        Broker.running(own) as broker,
    ):
        broker.know(web01)
        with probe_in(web01):
            assert str(web01.domid) in nodes(own, own.domid)
            assert broker.vm(web01)["agent"] is True
    lab.dom0.sh(f"xenstore-rm /local/domain/{web01.domid}/vmtoken")


def test_configuration_of_a_domain_makes_it_known(lab: Lab, broker: Broker) -> None:
    paper = lab.define("paper")
    lab.dom0.write(paper.config_path, paper.config)
    broker.control("vm", "add", "--from-config", paper.config_path)
    shown = broker.vm(paper)
    assert (shown["uuid"], shown["domain"]) == (str(paper.uuid), "gone")
