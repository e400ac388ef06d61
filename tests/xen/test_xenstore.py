"""Our client of xenstore against the real one: over its socket in dom0, over the device of a domU."""

from __future__ import annotations

from xenlab import Lab

_USE = """
import asyncio
from vmtoken.transport.xenstore import RELEASE_DOMAIN, Xenstore
from vmtoken.transport.xenstore_wire import Access, Permission

async def main():
    store = await Xenstore.connect()
    own = await store.own_domid()
    home = f"/local/domain/{own}/data/test"
    fired = asyncio.Queue()
    token = await store.watch(home, fired.put_nowait)
    assert await asyncio.wait_for(fired.get(), 10) == home
    await store.write(f"{home}/a", b"value")
    assert await asyncio.wait_for(fired.get(), 10) == f"{home}/a"
    assert await store.read(f"{home}/a") == b"value"
    assert await store.directory(home) == ["a"]
    wanted = [Access(Permission.NONE, own), Access(Permission.READ, 0 if own else 1)]
    await store.set_permissions(f"{home}/a", wanted)
    assert await store.permissions(f"{home}/a") == wanted
    for number in range(400):
        await store.make_directory(f"{home}/many/{number:010}")
    try:
        print(len(await store.directory(f"{home}/many")), "children")
    except OSError as error:
        print(error.strerror)
    store.unwatch(home, token)
    await store.remove(home)
    await store.remove(home)
    assert not await store.exists(f"{home}/a")
    for missing in (f"{home}/a", "/no/such/node"):
        try:
            await store.read(missing)
        except (FileNotFoundError, PermissionError):
            pass
        else:
            raise AssertionError(missing)
    await store.watch("/local/domain/0/data/vmtoken/absent", lambda path: None)
    await store.watch(RELEASE_DOMAIN, lambda path: None)
    store.close()
    print("in order", own)

asyncio.run(main())
"""


def test_our_client_understands_xenstore_over_its_socket(lab: Lab) -> None:
    assert lab.dom0.python(_USE).splitlines() == ["400 children", "in order 0"]


def test_our_client_understands_xenstore_over_the_device(lab: Lab) -> None:
    """oxenstored of Xen 4.17 has no XS_DIRECTORY_PART: what does not fit into a message cannot be listed."""
    web01 = lab.domu("web01")
    assert web01.python(_USE).splitlines() == ["Function not implemented", f"in order {web01.domid}"]


def test_the_nodes_that_say_who_a_domain_is_are_the_toolstacks(lab: Lab) -> None:
    source = """
import asyncio, sys
from dom0_broker.live_domains import ToolstackDirectory
from vmtoken.transport.xenstore import Xenstore

async def main():
    store = await Xenstore.connect()
    for domain in await ToolstackDirectory(store).domains():
        print(domain.domid, domain.uuid, domain.name)
    store.close()

asyncio.run(main())
"""
    web01 = lab.domu("web01")
    assert f"{web01.domid} {web01.uuid} web01" in lab.dom0.python(source).splitlines()
