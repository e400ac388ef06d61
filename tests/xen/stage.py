"""The product at work in the lab: a broker in dom0, tokens, agents, a TLS server that asks for certificates.

Every program is the installed one; every file of a stage is below one directory of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from xenlab import DomU, Machine, Process

HOME = "/root/stage"
DOM0 = "10.77.0.1"
"""dom0 on the lab's bridge."""

SERVER_NAME = "server.lab"
LINK_PORT, SERVER_PORT = 8441, 4433
"""Nothing else of the lab listens in dom0."""

READY_WITHIN = 90
"""Seconds for a program to come up: three on a quiet machine."""

_BROKER_TOML = f"""\
state_dir = "{HOME}/state"
runtime_dir = "{HOME}/run"
policy_dir = "{HOME}/policy.d"
tcp = {{ listen = "{DOM0}:{LINK_PORT}" }}
"""
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


@dataclass(frozen=True)
class Stage:
    """A broker that runs in dom0, with a CA and a TLS server."""

    dom0: Machine

    @classmethod
    @contextmanager
    def running(cls, dom0: Machine) -> Iterator[Stage]:
        """Broker and server, as long as the block lasts."""
        dom0.sh(f"rm -rf {HOME}; mkdir -p {HOME}/policy.d")
        dom0.write(f"{HOME}/broker.toml", _BROKER_TOML)
        dom0.write(f"{HOME}/policy.d/10-lab.policy", f"allow vm=* server={SERVER_NAME}\n")
        dom0.sh(f"cd {HOME}; vmtokenctl ca init ca; vmtokenctl ca server ca {SERVER_NAME}")
        stage = cls(dom0)
        with (
            dom0.start(["vmtoken-broker", "--config", f"{HOME}/broker.toml"]) as broker,
            dom0.start(stage._server_command(), directory=HOME) as server,
        ):
            stage._wait_for(dom0, broker, f"{HOME}/run/admin.sock")
            server.wait_for("ACCEPT", READY_WITHIN)
            yield stage

    def personalise(self, vm: str) -> None:
        """Make a VM known, with a software element of its own whose certificate says CN=the VM's name."""
        control = f"vmtokenctl --config {HOME}/broker.toml"
        self.dom0.sh(
            f"""cd {HOME}
            {control} token create {vm}-card --algorithm p256
            {control} token csr {vm}-card --subject CN={vm} --dns {vm} > {vm}.csr
            vmtokenctl ca sign ca {vm}.csr > {vm}.pem
            {control} token install-cert {vm}-card {vm}.pem --trust ca/ca.pem
            {control} vm add {vm}
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
    def agent(self, machine: Machine, vm: str) -> Iterator[Process]:
        """An agent of a VM: in the domU over TCP, or in dom0 over the VM's Unix socket."""
        link = _UNIX_LINK.format(home=HOME, name=vm) if machine is self.dom0 else _TCP_LINK
        machine.write(f"{HOME}/agent.toml", link + _APPLICATIONS, mode=0o600)
        with machine.start(["vmtoken-agent", "--config", f"{HOME}/agent.toml"]) as agent:
            self._wait_for(machine, agent, f"{HOME}/agent.sock")
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

    def _server_command(self) -> list[str]:
        """An OpenSSL server whose page tells what it knows of its client."""
        files = ["-cert", "ca/server.pem", "-key", "ca/server.key", "-CAfile", "ca/ca.pem"]
        strict = ["-Verify", "2", "-verify_return_error"]
        return ["openssl", "s_server", "-accept", f"{DOM0}:{SERVER_PORT}", *files, *strict, "-www"]

    def _wait_for(self, machine: Machine, process: Process, socket: str) -> None:
        """Wait until a program serves on a Unix socket."""
        machine.wait_until(f"test -S {socket} || ! kill -0 {process.pid}", READY_WITHIN)
        if process.has_ended:
            process.wait_for("a program that went on")
