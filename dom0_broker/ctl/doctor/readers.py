"""Checks of pcscd: is it there, may the broker use it, does it take enough readers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dom0_broker.config import PcscConfig
from vmtoken.doctor.finding import Finding, good, warning, wrong
from vmtoken.doctor.machine import Account, Machine

USUAL_SOCKET: Final = Path("/run/pcscd/pcscd.comm")
_VERSION: Final = re.compile(r"pcsc-lite version (\d+)\.(\d+)(\.\d+)?")
_MANY_READERS: Final = (2, 5)
_FEW: Final = 16
"""Readers of one pcscd before that release (PCSCLITE_MAX_READERS_CONTEXTS)."""

_POLKIT: Final = "/usr/share/polkit-1/actions/org.debian.pcsc-lite.policy"
_RULES: Final = ("/usr/share/polkit-1/rules.d", "/etc/polkit-1/rules.d")
_READ_AND_WRITE: Final = 0o6


def pcscd(config: PcscConfig, machine: Machine, user: Account) -> Iterator[Finding]:
    """One pcscd. Without any, software elements and PKCS#11 work all the same."""
    socket = Path(config.socket) if config.socket else USUAL_SOCKET
    path = machine.path(socket)
    if not path.exists():
        if config.socket:
            cure = "Start that pcscd, or correct [[pcsc]] socket in broker.toml."
            yield wrong("pcscd", f"There is no pcscd at {socket}.", cure)
        else:
            cure = "For cards in readers: apt install pcscd && systemctl enable --now pcscd.socket"
            yield warning("pcscd", "There is no pcscd, so no cards in readers.", cure)
        return
    if not user.may(path.stat(), _READ_AND_WRITE):
        cure = f"Let it: setfacl -m u:{user.name}:rw {socket}, and the unit of that pcscd too."
        yield wrong("pcscd", f"{user.name} may not open {socket}.", cure)
        return
    yield from _polkit(machine)
    yield _version(machine)


def room(cards: int, pcscds: int, machine: Machine) -> Iterator[Finding]:
    """Whether the readers of so many cards fit behind so many pcscd."""
    match = _VERSION.search(machine.output(["pcscd", "--version"]) or "")
    if match is None or _takes_many(match):
        return
    if cards > _FEW * pcscds:
        yield wrong(
            "pcscd",
            f"{cards} tokens are cards, and {pcscds} pcscd of this version take {_FEW * pcscds} readers.",
            "Run one more pcscd on a socket of its own, and give it a [[pcsc]] in broker.toml.",
        )


def _takes_many(match: re.Match[str]) -> bool:
    return (int(match[1]), int(match[2])) >= _MANY_READERS


def _version(machine: Machine) -> Finding:
    match = _VERSION.search(machine.output(["pcscd", "--version"]) or "")
    if match is None:
        return warning(
            "pcscd", "pcscd does not say its version.", "Install pcscd in the version of Debian 12."
        )
    release = match[0].removeprefix("pcsc-lite version ")
    if not _takes_many(match):
        return good(
            "pcscd",
            f"pcscd {release} takes {_FEW} readers at most; for more run several, each with a [[pcsc]].",
        )
    return good("pcscd", f"pcscd {release} is there.")


def _polkit(machine: Machine) -> Iterator[Finding]:
    """Where pcscd asks polkit, there must be a rule for the broker."""
    if not machine.path(_POLKIT).exists():
        return
    rules = [rule for place in _RULES for rule in machine.path(place).glob("*vmtoken*")]
    if not rules:
        cure = "Install the rule of the package: /usr/share/polkit-1/rules.d/70-vmtoken-broker.rules"
        yield wrong("pcscd", "polkit lets only users at the machine use cards, not the broker.", cure)
