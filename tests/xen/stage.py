"""The product at work in the lab: a broker in dom0, tokens, agents, TLS servers that ask for certificates.

Every program is the installed one; every file of a stage is below one directory of the machine.
"""

from __future__ import annotations

import enum
import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from xenlab import DomU, Machine, Process

from tests.xen.links import BROKER, DOM0, HOME, LINK_PORT, READY_WITHIN, Broker, wait_for_socket

SERVER_NAME = "server.lab"
SERVER_PORT = 4433
"""Nothing else of the lab listens there in dom0."""

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
_AGENT = ("vmtoken-agent", "--config", f"{HOME}/agent.toml")


class Link(enum.Enum):
    """How an agent reaches the broker."""

    VCHAN = _VCHAN_LINK
    TCP = _TCP_LINK
    UNIX = _UNIX_LINK
    """In dom0 only."""


class Stage:
    """A broker that runs in dom0, with a CA and a TLS server."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.dom0 = broker.machine

    @classmethod
    @contextmanager
    def running(cls, dom0: Machine, program: Sequence[str] = BROKER) -> Iterator[Stage]:
        """Broker and server, as long as the block lasts; the broker may be another program in its place."""
        settings = f'tcp = {{ listen = "{DOM0}:{LINK_PORT}" }}\n'
        with Broker.running(dom0, program, settings=settings) as broker:
            broker.control("ca", "init", "ca")
            broker.control("ca", "server", "ca", SERVER_NAME)
            with dom0.start(server_command(), directory=HOME) as server:
                server.wait_for("ACCEPT", READY_WITHIN)
                yield cls(broker)

    def personalise(self, vm: str, identity: UUID | None = None) -> None:
        """Make a VM known, with a software element of its own whose certificate says CN=the VM's name."""
        control, card, known_by = self.broker.control, f"{vm}-card", ["--uuid", str(identity)]
        control("token", "create", card, "--algorithm", "p256")
        request = control("token", "csr", card, "--subject", f"CN={vm}", "--dns", vm)
        self.dom0.write(f"{HOME}/{vm}.csr", request)
        self.dom0.write(f"{HOME}/{vm}.pem", control("ca", "sign", "ca", f"{vm}.csr"))
        control("token", "install-cert", card, f"{vm}.pem", "--trust", "ca/ca.pem")
        control("vm", "add", vm, *(known_by if identity else []))
        control("vm", "bind", vm, card, "--as", "identity")

    def enroll(self, domain: DomU) -> None:
        """Give a domU what it needs for a link over TCP."""
        self.broker.control("vm", "enroll", domain.name, f"{HOME}/{domain}.enrolment")
        domain.sh(f"mkdir -p {HOME}/enrolment")
        for name in ("ca.pem", "enrolment.pem", "enrolment.key"):
            content = self.dom0.read(f"{HOME}/{domain}.enrolment/{name}")
            domain.write(f"{HOME}/enrolment/{name}", content, mode=0o600)

    @contextmanager
    def agent(self, machine: Machine, vm: str, link: Link) -> Iterator[Process]:
        """An agent of a VM, as long as the block lasts."""
        _configure_agent(machine, vm, link)
        with machine.start(_AGENT) as agent:
            wait_for_socket(machine, agent, f"{HOME}/agent.sock")
            yield agent

    @contextmanager
    def lasting_agent(self, domain: DomU) -> Iterator[int]:
        """One over vchan that does not end with the lab's line to the domain; its PID."""
        _configure_agent(domain, domain.name, Link.VCHAN)
        pid = domain.sh(f"setsid {shlex.join(_AGENT)} </dev/null >{HOME}/agent.log 2>&1 & echo $!")
        try:
            yield int(pid)
        finally:
            domain.sh(f"kill {pid}", check=False)

    def connect(self, machine: Machine, *options: str) -> tuple[dict[str, Any], str]:
        """`vmtoken connect` to the server: what it says of the session, and the server's page."""
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
        told = [line for line in answer.stderr.splitlines() if line.startswith("{")]
        return json.loads(told[-1]), answer.stdout


def _configure_agent(machine: Machine, vm: str, link: Link) -> None:
    machine.sh(f"mkdir -p {HOME}; rm -f {HOME}/agent.sock")
    settings = link.value.replace("{home}", HOME).replace("{name}", vm)
    machine.write(f"{HOME}/agent.toml", settings + _APPLICATIONS, mode=0o600)


def server_command(port: int = SERVER_PORT) -> list[str]:
    """An OpenSSL server whose page tells what it knows of its client; it runs in a stage's directory."""
    files = ["-cert", "ca/server.pem", "-key", "ca/server.key", "-CAfile", "ca/ca.pem"]
    strict = ["-Verify", "2", "-verify_return_error"]
    return ["openssl", "s_server", "-accept", f"{DOM0}:{port}", *files, *strict, "-www"]
