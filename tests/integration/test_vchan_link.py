"""Broker and agent over vchan: domains come and go, brokers and agents die, guests misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from dom0_broker.administration import Residence
from dom0_broker.app import App
from dom0_broker.audit import verify
from dom0_broker.config import BrokerConfig, VchanConfig
from dom0_broker.domains import DomainIdentity
from dom0_broker.publisher import Publisher
from dom0_broker.vchan_links import Xen
from guest_agent import vchan_relay
from guest_agent.broker_client import BrokerClient, Flight, HandshakeWish
from guest_agent.config import BrokerSettings
from tests.fakes.vchan import FakeHypervisor
from tests.fakes.xenstored import FakeXenstored
from tests.support.broker_app import WEB01, WEB02, Cards, broker_config, populate
from tests.support.directories import short_directory
from tests.support.waiting import eventually
from vmtoken.errors import BrokerUnavailable, Conflict
from vmtoken.transport.vchan import link_path
from vmtoken.transport.xenstore import Xenstore

SERVICE = DomainIdentity(uuid.UUID(int=99), "keys")


@dataclass
class Host:
    """A machine with Xen, its toolstack, and a broker in dom0 or in a domain of its own."""

    config: BrokerConfig
    store: FakeXenstored = field(init=False)
    hypervisor: FakeHypervisor = field(init=False)
    broker_domid: int = 0

    def __post_init__(self) -> None:
        self.store = FakeXenstored(short_directory())
        self.hypervisor = FakeHypervisor(self.store)

    @contextlib.asynccontextmanager
    async def broker(self) -> AsyncIterator[App]:
        place = await self.store.socket(self.broker_domid)
        xen = Xen(
            connect=lambda: Xenstore.connect([place]),
            open_server=self.hypervisor.machine(self.broker_domid).open_server,
        )
        app = App(self.config, backends=Cards().backend_for, xen=xen)
        await app.start()
        try:
            yield app
        finally:
            await app.stop()

    @contextlib.asynccontextmanager
    async def agent(
        self, domid: int, *, patience: float = 10.0, link: str = "vchan:"
    ) -> AsyncIterator[BrokerClient]:
        place = await self.store.socket(domid)
        xen = vchan_relay.Xen(
            connect=lambda: Xenstore.connect([place]), open_client=self.hypervisor.machine(domid).open_client
        )
        client = BrokerClient(BrokerSettings(link=link, connect_timeout=patience), xen=xen)
        try:
            yield client
        finally:
            await client.close()

    def records(self, event: str) -> list[dict[str, object]]:
        """Of the audit log of a broker that has stopped."""
        verify(self.config.audit_path)
        lines = self.config.audit_path.read_text().splitlines()
        return [record for record in map(json.loads, lines) if record["event"] == event]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    config = replace(
        broker_config(tmp_path), vchan=VchanConfig(enabled=True, read_ring=4096, write_ring=4096)
    )
    populate(config, WEB01, WEB02, tokens={"one": [WEB01], "two": [WEB02]})
    host = Host(config)
    yield host
    await host.store.close()
    assert not host.hypervisor.ends, "a channel is still open"


async def names_of(agent: BrokerClient) -> list[str]:
    return [token.name for token in await agent.tokens(10)]


async def test_each_vm_has_its_own_tokens_over_its_own_channel(host: Host) -> None:
    first, second = (host.store.create_domain(vm.name, vm.uuid) for vm in (WEB01, WEB02))
    async with host.broker() as app, host.agent(first) as web01, host.agent(second) as web02:
        assert await names_of(web01) == ["one"]
        assert await names_of(web02) == ["two"]
        async with web01.handshake() as handshake:
            flight = await handshake.start(HandshakeWish(server_name="server.example", port=443), 10)
        assert isinstance(flight, Flight)
        assert app.links.residence(WEB01) is not None
        assert app.links.residence(WEB01).domid == first  # type: ignore[union-attr]
        assert app.links.residence(WEB01).connected  # type: ignore[union-attr]
    assert [record["domid"] for record in host.records("domain-appeared")] == [first, second]


async def test_a_domain_that_starts_after_the_broker_is_served(host: Host) -> None:
    async with host.broker():
        domid = host.store.create_domain(WEB01.name, WEB01.uuid)
        async with host.agent(domid) as agent:
            assert await names_of(agent) == ["one"]


async def test_a_vm_made_known_while_its_domain_runs_is_served(host: Host) -> None:
    vm = DomainIdentity(uuid.UUID(int=3), "web03")
    domid = host.store.create_domain(vm.name, vm.uuid)
    async with host.broker() as app, host.agent(domid) as agent:
        waiting = asyncio.create_task(agent.tokens(10))
        await asyncio.sleep(0.05)
        assert link_path(0, domid) not in host.store.nodes
        await app.administration.add(vm.name, str(vm.uuid))
        assert await waiting == []
        await app.administration.remove(vm.name)
        assert link_path(0, domid) not in host.store.nodes


async def test_an_agent_waits_for_a_broker_that_restarts(host: Host) -> None:
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.agent(domid) as agent:
        async with host.broker():
            assert await names_of(agent) == ["one"]
        assert link_path(0, domid) not in host.store.nodes
        asking = asyncio.create_task(names_of(agent))
        await asyncio.sleep(0.1)
        assert not asking.done()
        async with host.broker():
            assert await asking == ["one"]


async def test_nodes_that_a_killed_broker_left_are_gone_after_the_start(host: Host) -> None:
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    for each in (domid, 99):
        host.store.toolstack_write(f"{link_path(0, each)}/ring-ref", b"8")
    async with host.broker(), host.agent(domid) as agent:
        assert await names_of(agent) == ["one"]
        assert link_path(0, 99) not in host.store.nodes


async def test_without_a_broker_the_agent_says_so_in_time(host: Host) -> None:
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.agent(domid, patience=0.3) as agent:
        with pytest.raises(BrokerUnavailable):
            await agent.tokens(10)


async def test_an_agent_that_is_killed_makes_room_for_the_next(host: Host) -> None:
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker():
        for _ in range(3):
            async with host.agent(domid) as agent:
                assert await names_of(agent) == ["one"]
                page = host.hypervisor.pages[link_path(0, domid)]
                assert page.client is not None
                page.client.kill()


async def test_a_domain_that_dies_silently_loses_its_channel(host: Host) -> None:
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker() as app:
        agent = host.hypervisor.machine(domid)
        await eventually(lambda: f"{link_path(0, domid)}/event-channel" in host.store.nodes)
        end = agent.open_client(0, link_path(0, domid))
        await eventually(lambda: app.links.residence(WEB01).connected)  # type: ignore[union-attr]
        end.vanish()
        host.store.destroy_domain(domid)
        await eventually(lambda: not host.hypervisor.ends)
        assert link_path(0, domid) not in host.store.nodes
        assert app.links.residence(WEB01).domid is None  # type: ignore[union-attr]
    assert [record["domid"] for record in host.records("domain-gone")] == [domid]


async def test_a_reboot_gives_the_vm_another_domid_and_the_same_tokens(host: Host) -> None:
    first = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker():
        async with host.agent(first) as agent:
            assert await names_of(agent) == ["one"]
        host.store.destroy_domain(first)
        second = host.store.create_domain(WEB01.name, WEB01.uuid)
        async with host.agent(second) as agent:
            assert await names_of(agent) == ["one"]


async def test_an_unlinked_vm_has_no_channel_until_it_is_linked_again(host: Host) -> None:
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker() as app, host.agent(domid) as agent:
        assert await names_of(agent) == ["one"]
        await app.administration.unlink(WEB01.name)
        assert not host.hypervisor.ends
        assert app.links.residence(WEB01) == Residence(domid, connected=False, unlinked=True)
        asking = asyncio.create_task(names_of(agent))
        await asyncio.sleep(0.1)
        assert not asking.done()
        await app.administration.link(WEB01.name)
        assert await asking == ["one"]
    assert [len(host.records(event)) for event in ("vm-unlinked", "vm-linked")] == [1, 1]


async def test_an_unlinked_vm_is_saved_and_restored_with_its_agent(host: Host) -> None:
    saved = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker() as app, host.agent(saved) as agent:
        assert await names_of(agent) == ["one"]
        await app.administration.unlink(WEB01.name)
        asking = asyncio.create_task(names_of(agent))  # the agent looks for the channel of its earlier domid
        await asyncio.sleep(0.1)
        host.store.destroy_domain(saved)
        restored = host.store.restore_domain(saved, WEB01.name, WEB01.uuid)
        assert await asking == ["one"]
        assert app.links.residence(WEB01) == Residence(restored, connected=True, unlinked=False)


async def test_the_copy_of_an_unlinked_domain_gets_no_channel(host: Host) -> None:
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker() as app:
        await eventually(lambda: app.links.residence(WEB01).domid == domid)  # type: ignore[union-attr]
        await app.administration.unlink(WEB01.name)
        copy = host.store.create_domain("copy", WEB01.uuid)
        await eventually(lambda: app.links.doubles == [copy])
        assert not host.hypervisor.ends


async def test_a_vm_without_a_domain_cannot_be_unlinked(host: Host) -> None:
    async with host.broker() as app:
        with pytest.raises(Conflict, match="its domain does not run"):
            await app.administration.unlink(WEB01.name)


async def test_a_second_domain_with_the_same_uuid_is_refused_until_the_first_is_gone(host: Host) -> None:
    first = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker() as app:
        async with host.agent(first) as agent:
            assert await names_of(agent) == ["one"]
            second = host.store.create_domain("copy", WEB01.uuid)
            await eventually(lambda: len(app.links.doubles) == 1)
            assert await names_of(agent) == ["one"]
            assert link_path(0, second) not in host.store.nodes
        host.store.destroy_domain(first, keep_vm=True)
        async with host.agent(second) as agent:
            assert await names_of(agent) == ["one"]
    (refused,) = host.records("domain-refused")
    assert (refused["domid"], refused["name"]) == (second, "copy")


async def test_a_domid_that_another_vm_has_now_gives_no_access(host: Host) -> None:
    """The toolstack has changed who domain N is, and we have not heard of it yet."""
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker() as app, host.agent(domid, patience=0.5) as agent:
        await eventually(lambda: f"{link_path(0, domid)}/event-channel" in host.store.nodes)
        other = f"/vm/{WEB02.uuid}"
        host.store.toolstack_write(f"/local/domain/{domid}/vm", other.encode())
        with pytest.raises(BrokerUnavailable):
            await agent.tokens(0.5)
        assert app.links.residence(WEB01).domid == domid  # type: ignore[union-attr]


async def test_a_name_without_its_uuid_is_a_stranger_and_is_told(host: Host) -> None:
    stranger = host.store.create_domain(WEB01.name, uuid.UUID(int=77))
    async with host.broker():
        await asyncio.sleep(0.05)
        assert link_path(0, stranger) not in host.store.nodes
    (refused,) = host.records("domain-refused")
    assert "not its UUID" in str(refused["because"])


async def test_the_end_of_a_copy_does_not_end_the_first(host: Host) -> None:
    """libxl takes what lies under /vm/UUID away with either of them, as was seen on Xen 4.17."""
    first = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker() as app, host.agent(first) as agent:
        assert await names_of(agent) == ["one"]
        second = host.store.create_domain("copy", WEB01.uuid)
        await eventually(lambda: len(app.links.doubles) == 1)
        host.store.destroy_domain(second)
        await eventually(lambda: not app.links.doubles)
        assert await names_of(agent) == ["one"]
        assert app.links.residence(WEB01).domid == first  # type: ignore[union-attr]


async def test_an_identity_that_the_guest_could_have_written_is_none(host: Host) -> None:
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    host.store.allow_writing(f"/local/domain/{domid}/vm", domid)
    async with host.broker():
        await asyncio.sleep(0.05)
        assert link_path(0, domid) not in host.store.nodes


async def test_a_hostile_guest_is_in_the_audit_log_and_harms_nobody(host: Host) -> None:
    evil, good = (host.store.create_domain(vm.name, vm.uuid) for vm in (WEB01, WEB02))
    async with host.broker() as app, host.agent(good) as web02:
        assert await names_of(web02) == ["two"]
        await eventually(lambda: f"{link_path(0, evil)}/event-channel" in host.store.nodes)
        end = host.hypervisor.machine(evil).open_client(0, link_path(0, evil))
        await eventually(lambda: app.links.residence(WEB01).connected)  # type: ignore[union-attr]
        end.page.to_server.producer = 0xFFFF_0000
        end.notify()
        await eventually(lambda: not app.links.residence(WEB01).connected)  # type: ignore[union-attr]
        end.vanish()
        assert await names_of(web02) == ["two"]
    (violation,) = host.records("link-violation")
    assert (violation["vm"], violation["domid"]) == ("web01", evil)


async def test_links_go_on_while_xenstore_is_lost_and_domains_are_found_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dom0_broker.vchan_links.RECONNECT", 0.05)
    first = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with host.broker(), host.agent(first) as web01:
        assert await names_of(web01) == ["one"]
        host.store.drop_connections()
        assert await names_of(web01) == ["one"]
        second = host.store.create_domain(WEB02.name, WEB02.uuid)
        async with host.agent(second) as web02:
            assert await names_of(web02) == ["two"]


@contextlib.asynccontextmanager
async def publishing(host: Host) -> AsyncIterator[None]:
    """The helper in dom0."""
    store = await Xenstore.connect([await host.store.socket(0)])
    task = asyncio.create_task(Publisher(store, SERVICE.name).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        store.close()


async def test_a_broker_in_a_service_domain_serves_its_vms_from_there(host: Host) -> None:
    first = host.store.create_domain(WEB01.name, WEB01.uuid)
    host.broker_domid = host.store.create_domain(SERVICE.name, SERVICE.uuid)
    async with publishing(host), host.broker() as app, host.agent(first) as web01:
        assert await names_of(web01) == ["one"]
        assert link_path(0, first) not in host.store.nodes
        second = host.store.create_domain(WEB02.name, WEB02.uuid)
        async with host.agent(second) as web02:
            assert await names_of(web02) == ["two"]
        host.store.destroy_domain(second)
        await eventually(lambda: app.links.residence(WEB02).domid is None)  # type: ignore[union-attr]
        assert link_path(host.broker_domid, second) not in host.store.nodes


async def test_a_service_domain_that_starts_again_elsewhere_is_found(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vchan_relay, "LOOK_AGAIN", 0.1)
    domid = host.store.create_domain(WEB01.name, WEB01.uuid)
    async with publishing(host), host.agent(domid) as agent:
        for _ in range(2):
            host.broker_domid = host.store.create_domain(SERVICE.name, SERVICE.uuid)
            async with host.broker():
                assert await names_of(agent) == ["one"]
            host.store.destroy_domain(host.broker_domid)


async def test_a_guest_can_neither_read_nor_write_what_is_published(host: Host) -> None:
    guest = host.store.create_domain(WEB01.name, WEB01.uuid)
    service = host.store.create_domain(SERVICE.name, SERVICE.uuid)
    published = f"/local/domain/{service}/vmtoken/domains/{guest}"
    async with publishing(host):
        await eventually(lambda: published in host.store.nodes)
        store = await Xenstore.connect([await host.store.socket(guest)])
        with pytest.raises(PermissionError):
            await store.read(published)
        for path in (published, f"/local/domain/{guest}/vmtoken/broker-domid"):
            with pytest.raises(PermissionError):
                await store.write(path, b"0")
        store.close()


async def test_a_broker_without_xenstore_does_not_start_when_vchan_is_demanded(
    host: Host, tmp_path: Path
) -> None:
    xen = Xen(connect=lambda: Xenstore.connect([tmp_path / "nowhere"]))
    app = App(host.config, backends=Cards().backend_for, xen=xen)
    with pytest.raises(OSError, match="xenstore cannot be reached"):
        await app.start()
    await app.stop()
