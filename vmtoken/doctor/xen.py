"""Checks of what a vchan needs: Xen, its devices, its library, xenstore."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from vmtoken.doctor.finding import Check, Finding, examine, exit_code, good, warning, wrong
from vmtoken.doctor.machine import Account, Machine
from vmtoken.transport import libxenvchan
from vmtoken.transport.xenstore import PLACES, Xenstore

BROKER_DEVICES: Final = ("evtchn", "gntalloc", "xenbus")
AGENT_DEVICES: Final = ("evtchn", "gntdev", "xenbus")
"""Of /dev/xen: what a server of vchans opens, and what a client opens."""

_READ_AND_WRITE: Final = 0o6
_PATIENCE: Final = 5.0
"""Seconds for xenstored, which answers in less than a millisecond."""


def hypervisor(machine: Machine) -> Iterator[Finding]:
    """Whether there is Xen under this kernel."""
    if machine.text("/sys/hypervisor/type") != "xen":
        cure = "Boot this machine on Xen, or use a link over TCP or a Unix socket."
        yield wrong("xen", "This kernel does not run on Xen, so there are no vchans.", cure)
        return
    major, minor = (machine.text(f"/sys/hypervisor/version/{part}") or "?" for part in ("major", "minor"))
    yield good("xen", f"This kernel runs on Xen {major}.{minor}.")


async def everything(
    machine: Machine, names: Sequence[str], user: Account, more: Sequence[Check] = ()
) -> list[Finding]:
    """All that a vchan needs, and `more`; without Xen nothing else is worth a word."""
    findings = examine([partial(hypervisor, machine)])
    if exit_code(findings):
        return findings
    present = partial(library, libxenvchan.available, libxenvchan.library_name)
    findings += examine([partial(devices, machine, names, user), present, *more])
    return [*findings, await xenstore(machine)]


def devices(machine: Machine, names: Sequence[str], user: Account) -> Iterator[Finding]:
    """The devices of Xen, and whether the user of the service may open them."""
    for name in names:
        path = machine.path(f"/dev/xen/{name}")
        try:
            status = path.stat()
        except FileNotFoundError:
            module = "xenfs" if name == "xenbus" else f"xen-{name}"
            yield wrong("device", f"There is no /dev/xen/{name}.", f"Load its module: modprobe {module}")
            continue
        if user.may(status, _READ_AND_WRITE):
            yield good("device", f"{user.name} may open /dev/xen/{name}.")
        else:
            mode = stat.S_IMODE(status.st_mode)
            yield wrong(
                "device",
                f"{user.name} may not open /dev/xen/{name} (mode {mode:04o}, group {status.st_gid}).",
                "Have udev apply the rules of the package: udevadm control --reload && udevadm trigger "
                "--subsystem-match=misc",
            )


def library(available: Callable[[], str | None], name: Callable[[], str]) -> Iterator[Finding]:
    """libxenvchan, of a release whose ABI is known."""
    missing = available()
    if missing is not None:
        cure = "Install it: apt install libxenmisc4.17 (the release of Xen in its name)."
        yield wrong("libxenvchan", f"There is no vchan without its library: {missing}", cure)
    else:
        yield good("libxenvchan", f"{name()} is there.")


def grants(vms: int, pages_each: int, limit: int) -> Iterator[Finding]:
    """Whether all VMs can have their vchan at once."""
    wanted = vms * pages_each
    if wanted > limit:
        yield wrong(
            "grants",
            f"{vms} VMs take {wanted} pages to share, and the kernel gives {limit}.",
            f"Allow more: echo 'options xen-gntalloc limit={2 * wanted}' > /etc/modprobe.d/vmtoken.conf, "
            f"and now: echo {2 * wanted} > /sys/module/xen_gntalloc/parameters/limit",
        )
    elif 4 * wanted > 3 * limit:
        cure = "Raise /sys/module/xen_gntalloc/parameters/limit before there are more VMs."
        yield warning("grants", f"{vms} VMs take {wanted} of {limit} pages to share.", cure)
    else:
        yield good("grants", f"{vms} VMs take {wanted} of {limit} pages to share.")


async def xenstore(machine: Machine) -> Finding:
    """Whether xenstored answers."""
    try:
        async with asyncio.timeout(_PATIENCE):
            store = await Xenstore.connect([machine.path(place) for place in PLACES])
            try:
                domid = await store.own_domid()
            finally:
                store.close()
    except TimeoutError:
        cure = "Look at the service xenstored in dom0; when it has crashed, the host has to be booted again."
        return wrong("xenstore", f"xenstored has not answered for {_PATIENCE:g} seconds.", cure)
    except OSError as error:
        cure = "In dom0 start it: systemctl start xenstored; in a guest: modprobe xenfs"
        return wrong("xenstore", f"There is no way to xenstore: {error.strerror or error}.", cure)
    return good("xenstore", f"xenstore answers; this is domain {domid}.")
