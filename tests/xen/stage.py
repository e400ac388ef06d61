"""The product at work in the lab: a broker in dom0, tokens, agents, a TLS server that asks for certificates.

Every program is the installed one; every file of a stage is below one directory of the machine.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from xenlab import DomU, Machine, Process

HOME = "/root/stage"
DOM0 = "10.77.0.1"
"""dom0 on the lab's bridge."""

SERVER_NAME = "server.lab"
LINK_PORT, SERVER_PORT = 8441, 4433
"""Nothing else of the lab listens in dom0."""

BROKER = ("vmtoken-broker",)
READY_WITHIN = 240
"""Seconds for a program to come up: three on a quiet machine."""

_BROKER_TOML = f"""\
state_dir = "{HOME}/state"
runtime_dir = "{HOME}/run"
policy_dir = "{HOME}/policy.d"
tcp = {{ listen = "{DOM0}:{LINK_PORT}" }}
"""
_VCHAN_LINK = '[broker]\nlink = "vchan:"\nconnect_timeout = 60.0\n'
_UNIX_LINK = '[broker]\nlink = "unix:{home}/run/vms/{name}/broker.sock"\n'
_TCP_LINK = f"""\
[broker]
link = "tcp:{DOM0}:{LINK_PORT}"
[broker.enrolment]
ca = "{HOME}/enrolment/ca.pem"
certificate = "{HOME}/enrolment/enrolment.pem"
key = "{HOME}/enrolment/enrolment.key"
server_name = "vmtoken-broker"
"""
_APPLICATIONS = f"""\
[applications]
socket = "{HOME}/agent.sock"
"""


class Link(enum.Enum):
    """How an agent reaches the broker."""

    VCHAN = _VCHAN_LINK
    TCP = _TCP_LINK
    UNIX = _UNIX_LINK
    """In dom0 only."""


class Stage:
    """A broker that runs in dom0, with a CA and a TLS server."""

    def __init__(self, dom0: Machine, program: Sequence[str]) -> None:
        self.dom0 = dom0
        self.program = program
        self.broker = self._started()

    @classmethod
    @contextmanager
    def running(cls, dom0: Machine, program: Sequence[str] = BROKER) -> Iterator[Stage]:
        """Broker and server, as long as the block lasts; the broker may be another program in its place."""
        dom0.sh(f"rm -rf {HOME}; mkdir -p {HOME}/policy.d")
        dom0.write(f"{HOME}/broker.toml", _BROKER_TOML)
        dom0.write(f"{HOME}/policy.d/10-lab.policy", f"allow vm=* server={SERVER_NAME}\n")
        dom0.sh(f"cd {HOME}; vmtokenctl ca init ca; vmtokenctl ca server ca {SERVER_NAME}", seconds=300)
        with dom0.start(server_command(), directory=HOME) as server:
            server.wait_for("ACCEPT", READY_WITHIN)
            stage = cls(dom0, program)
            try:
                yield stage
            finally:
                stage.broker.stop()

    def start_broker(self, program: Sequence[str] | None = None) -> None:
        """Start it again after its end, or another program in its place."""
        self.program = program or self.program
        self.broker = self._started()

    def personalise(self, vm: str, identity: UUID | None = None) -> None:
        """Make a VM known, with a software element of its own whose certificate says CN=the VM's name."""
        known_by = f"--uuid {identity}" if identity else ""
        control = f"vmtokenctl --config {HOME}/broker.toml"
        self.dom0.sh(
            f"""cd {HOME}
            {control} token create {vm}-card --algorithm p256
            {control} token csr {vm}-card --subject CN={vm} --dns {vm} > {vm}.csr
            vmtokenctl ca sign ca {vm}.csr > {vm}.pem
            {control} token install-cert {vm}-card {vm}.pem --trust ca/ca.pem
            {control} vm add {vm} {known_by}
            {control} vm bind {vm} {vm}-card --as identity""",
            seconds=300,
        )

    def enroll(self, domain: DomU) -> None:
        """Give a domU what it needs for a link over TCP."""
        self.dom0.sh(f"vmtokenctl --config {HOME}/broker.toml vm enroll {domain} {HOME}/{domain}.enrolment")
        domain.sh(f"rm -rf {HOME}; mkdir -p {HOME}/enrolment")
        for name in ("ca.pem", "enrolment.pem", "enrolment.key"):
            content = self.dom0.read(f"{HOME}/{domain}.enrolment/{name}")
            domain.write(f"{HOME}/enrolment/{name}", content, mode=0o600)

    @contextmanager
    def agent(self, machine: Machine, vm: str, link: Link | None = None) -> Iterator[Process]:
        """An agent of a VM: in the domU over TCP unless told otherwise, in dom0 over the VM's Unix socket."""
        link = link or (Link.UNIX if machine is self.dom0 else Link.TCP)
        machine.sh(f"mkdir -p {HOME}; rm -f {HOME}/agent.sock")
        settings = link.value.replace("{home}", HOME).replace("{name}", vm)
        machine.write(f"{HOME}/agent.toml", settings + _APPLICATIONS, mode=0o600)
        with machine.start(["vmtoken-agent", "--config", f"{HOME}/agent.toml"]) as agent:
            _wait_for(machine, agent, f"{HOME}/agent.sock")
            yield agent

    def connect(self, machine: Machine, *options: str) -> tuple[dict[str, Any], str]:
        """Open a session with the server where an agent runs: what it was, and the server's answer."""
        command = [
            "vmtoken",
            "connect",
            "--socket",
            f"{HOME}/agent.sock",
            "--servername",
            SERVER_NAME,
            "--json",
        ]
        answer = machine.run(
            [*command, *options, f"{DOM0}:{SERVER_PORT}"],
            stdin="GET / HTTP/1.0\r\n\r\n",
            seconds=READY_WITHIN,
        )
        return json.loads(answer.stderr.strip().splitlines()[-1]), answer.stdout

    def _started(self) -> Process:
        self.dom0.sh(f"rm -f {HOME}/run/admin.sock")
        broker = self.dom0.start([*self.program, "--config", f"{HOME}/broker.toml"])
        _wait_for(self.dom0, broker, f"{HOME}/run/admin.sock")
        return broker


def server_command(port: int = SERVER_PORT) -> list[str]:
    """An OpenSSL server whose page tells what it knows of its client; it runs in a stage's directory."""
    files = ["-cert", "ca/server.pem", "-key", "ca/server.key", "-CAfile", "ca/ca.pem"]
    strict = ["-Verify", "2", "-verify_return_error"]
    return ["openssl", "s_server", "-accept", f"{DOM0}:{port}", *files, *strict, "-www"]


def _wait_for(machine: Machine, process: Process, socket: str) -> None:
    """Wait until a program serves on a Unix socket."""
    machine.wait_until(f"test -S {socket} || ! kill -0 {process.pid}", READY_WITHIN)
    if process.has_ended:
        process.wait_for("a program that went on")
