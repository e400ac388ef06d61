"""Links over vchan in the lab: a broker in dom0, and what runs in domUs at the other end."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from xenlab import DomU, Machine, Process

HOME = "/root/vchan"
PROGRAMS = "/usr/bin"
"""In dom0 some of them are in the path too, in a domU others."""

READY_WITHIN = 120
"""Seconds; a program of ours is up in three on a quiet machine."""

_BROKER_TOML = f"""\
state_dir = "{HOME}/state"
runtime_dir = "{HOME}/run"
policy_dir = "{HOME}/policy.d"
vchan = {{ enabled = true }}
"""

_PROBE = """
import asyncio, sys
from guest_agent.broker_client import BrokerClient
from guest_agent.config import BrokerSettings

async def main():
    client = BrokerClient(BrokerSettings(link="vchan:", connect_timeout=120.0))
    for number, _ in enumerate(iter(sys.stdin.readline, ""), 1):
        tokens = [token.name for token in await client.tokens(120)]
        print(f"answer {number}: {tokens}", flush=True)

asyncio.run(main())
"""
"""An agent reduced to its link: asks for its tokens once for each line that it reads."""


class Probe:
    """A `_PROBE` that runs in a domU."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._asked = 0

    def ask(self, seconds: float = READY_WITHIN) -> str:
        """The tokens that the broker says this VM has."""
        self._asked += 1
        self.process.write("\\n")
        return self.process.wait_for(rf"answer {self._asked}: (.*)", seconds)[1]


@contextmanager
def probe_in(domain: DomU) -> Iterator[Probe]:
    with domain.start_python(_PROBE) as process:
        yield Probe(process)


@dataclass
class Broker:
    """A broker whose domain is dom0, or a domU with the readers."""

    machine: Machine
    process: Process

    @classmethod
    @contextmanager
    def running(cls, machine: Machine, *, afresh: bool = True) -> Iterator[Broker]:
        if afresh:
            machine.sh(f"rm -rf {HOME}; mkdir -p {HOME}/policy.d")
        machine.write(f"{HOME}/broker.toml", _BROKER_TOML)
        machine.write(f"{HOME}/policy.d/10-lab.policy", "allow vm=* server=*\n")
        with machine.start([f"{PROGRAMS}/vmtoken-broker", "--config", f"{HOME}/broker.toml"]) as process:
            machine.wait_until(f"test -S {HOME}/run/admin.sock || ! kill -0 {process.pid}", READY_WITHIN)
            assert not process.has_ended, process.output
            yield cls(machine, process)

    def control(self, *arguments: str) -> str:
        """`vmtokenctl`."""
        command = [f"{PROGRAMS}/vmtokenctl", "--config", f"{HOME}/broker.toml", *arguments]
        return self.machine.run(command, seconds=READY_WITHIN).stdout

    def know(self, *domains: DomU) -> None:
        """Make domains known as VMs."""
        known = {vm["name"] for vm in self.vms()}
        for domain in domains:
            if domain.name not in known:
                self.control("vm", "add", domain.name, "--uuid", str(domain.uuid))

    def vms(self) -> list[dict[str, Any]]:
        return list(json.loads(self.control("vm", "list", "--json")))

    def vm(self, domain: DomU) -> dict[str, Any]:
        return next(vm for vm in self.vms() if vm["name"] == domain.name)

    def wait_for_record(self, event: str, domid: int, seconds: float = 60) -> None:
        """Until the audit log has it."""
        wanted = f'"event":"{event}".*"domid":{domid}[,}}]'
        self.machine.wait_until(f"grep -q '{wanted}' {HOME}/state/audit/audit.jsonl", seconds)

    def descriptors(self) -> int:
        return int(self.machine.sh(f"ls /proc/{self.process.pid}/fd | wc -l"))


def nodes(machine: Machine, owner: int = 0) -> Sequence[str]:
    """Domids whose links are in xenstore."""
    listed = machine.sh(f"xenstore-list /local/domain/{owner}/data/vmtoken 2>/dev/null", check=False)
    return sorted(listed.split())
