"""A broker in a machine of the lab, and what stands in a domU at the other end of its link."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from xenlab import DomU, Machine, Process

HOME = "/root/stage"
"""What a broker keeps, and all else that belongs to it."""

DOM0, LINK_PORT = "10.77.0.1", 8441
"""Where dom0 is on the lab's bridge, and where its broker listens."""

READY_WITHIN = 240
"""Seconds for a program to come up: four on a quiet machine."""

ANSWER_WITHIN = 300
"""Seconds: a crowd of handshakes takes that under emulation when the host is busy."""

BROKER = ("vmtoken-broker",)

_CONTROL = (Path(__file__).parent / "control.py").read_text()
_AUDIT = f"{HOME}/state/audit/audit.jsonl"
_SETTINGS = f"""\
state_dir = "{HOME}/state"
runtime_dir = "{HOME}/run"
policy_dir = "{HOME}/policy.d"
vchan = {{ enabled = true }}
limits = {{ token_hold = 60.0 }}
"""


class Dialogue:
    """With a program that reads lines and answers the Nth with a line `answer N: ...`."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._asked = 0

    def ask(self, line: str = "") -> str:
        """The answer to a line."""
        self._asked += 1
        self.process.write(line + "\n")
        return self.process.wait_for(rf"answer {self._asked}: (.*)\n", ANSWER_WITHIN)[1]


class Broker:
    """It runs, or has run, and is started again by hand."""

    def __init__(self, machine: Machine, program: Sequence[str] = BROKER) -> None:
        self.machine = machine
        self.program = program
        self._console = self._opened_console()
        self.process = self._started()

    @classmethod
    @contextmanager
    def running(
        cls, machine: Machine, program: Sequence[str] = BROKER, *, settings: str = ""
    ) -> Iterator[Broker]:
        """One that knows nobody yet, until the end of the block."""
        machine.sh(f"rm -rf {HOME}; mkdir -p {HOME}/policy.d")
        machine.write(f"{HOME}/broker.toml", _SETTINGS + settings)
        machine.write(f"{HOME}/policy.d/10-lab.policy", "allow vm=* server=*\n")
        broker = cls(machine, program)
        try:
            yield broker
        finally:
            broker.process.stop()
            broker._console.process.kill()

    def start(self) -> None:
        """After its end, with all that it kept."""
        self.process = self._started()

    def control(self, *arguments: str) -> str:
        """What `vmtokenctl` prints."""
        if self._console.process.has_ended:
            self._console = self._opened_console()
        code, printed = json.loads(self._console.ask(json.dumps(arguments)))
        assert code == 0, f"vmtokenctl {' '.join(arguments)}: {printed}"
        return str(printed)

    def know(self, *domains: DomU) -> None:
        """Make domains known as VMs."""
        known = {vm["name"] for vm in self.vms()}
        for domain in domains:
            if domain.name not in known:
                self.control("vm", "add", domain.name, "--uuid", str(domain.uuid))

    def vms(self) -> list[dict[str, Any]]:
        """What `vm list` says."""
        return list(json.loads(self.control("vm", "list", "--json")))

    def vm(self, domain: DomU) -> dict[str, Any]:
        """What `vm list` says of one."""
        return next(vm for vm in self.vms() if vm["name"] == domain.name)

    def wait_for_agent(self, domain: DomU, *, connected: bool = True) -> None:
        """Until a domain's agent has its link, or is without; for as long as a test may take."""
        while self.vm(domain)["agent"] is not connected:
            time.sleep(0.5)

    def records(self, event: str, domid: int, because: str = "") -> int:
        """How many of an event the audit log has of a domain, or those with these words for the reason."""
        return int(self.machine.sh(f"{_count(event, domid, because)} || true"))

    def wait_for_record(
        self, event: str, domid: int, because: str = "", *, more_than: int = 0, seconds: float = 60
    ) -> None:
        """Until the audit log has one more."""
        self.machine.wait_until(f"test $({_count(event, domid, because)}) -gt {more_than}", seconds)

    @property
    def descriptors(self) -> int:
        """Open ones of its process."""
        return int(self.machine.sh(f"ls /proc/{self.process.pid}/fd | wc -l"))

    @property
    def memory(self) -> int:
        """Resident memory of its process, KiB."""
        return int(self.machine.sh(f"awk '/VmRSS/{{print $2}}' /proc/{self.process.pid}/status"))

    def _opened_console(self) -> Dialogue:
        """It takes as long to start as the broker."""
        return Dialogue(self.machine.start_python(_CONTROL, f"{HOME}/broker.toml", directory=HOME))

    def _started(self) -> Process:
        self.machine.sh(f"rm -f {HOME}/run/admin.sock")
        process = self.machine.start([*self.program, "--config", f"{HOME}/broker.toml"])
        wait_for_socket(self.machine, process, f"{HOME}/run/admin.sock")
        return process


def wait_for_socket(machine: Machine, process: Process, socket: str) -> None:
    """Wait until a program serves on a Unix socket."""
    machine.wait_until(f"test -S {socket} || ! kill -0 {process.pid}", READY_WITHIN)
    if process.has_ended:
        process.wait_for("a program that went on")


def wait_for_channel(machine: Machine, domid: int, owner: int = 0) -> None:
    """Wait until there is one for a domain: after one that ended the next comes in a while."""
    machine.wait_until(f"xenstore-exists /local/domain/{owner}/data/vmtoken/{domid}/event-channel")


def nodes(machine: Machine, owner: int = 0) -> Sequence[str]:
    """Domids whose links are in xenstore."""
    listed = machine.sh(f"xenstore-list /local/domain/{owner}/data/vmtoken 2>/dev/null", check=False)
    return sorted(listed.split())


def _count(event: str, domid: int, because: str) -> str:
    return f'grep -c \'"event":"{event}".*"domid":{domid}[,}}].*{because}\' {_AUDIT}'


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


@contextmanager
def probe_in(domain: DomU) -> Iterator[Dialogue]:
    """One that has asked once, so that its link is up."""
    with domain.start_python(_PROBE) as process:
        probe = Dialogue(process)
        probe.ask()
        yield probe
