"""The main job on one machine, step by step: `make demo`.

Makes a lab CA, personalises a card for the VM web01 through APDUs, starts the broker, the
agent and an OpenSSL server that demands a client certificate, sends an HTTP request through a session
whose private key never left the card, and resumes the session. Everything lives in one temporary
directory and is gone at the end, also after Ctrl-C.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from guest_agent.cli.summary import as_text
from guest_agent.client import AgentClient, Session
from vmtoken.errors import VmTokenError
from vmtoken.v1 import tls_service_pb2 as pb

BIN = Path(sys.executable).parent
REQUEST = b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n"
PATIENCE = 20.0
"""Seconds for a program to come up."""

BROKER_TOML = """\
state_dir = "state"
runtime_dir = "run"
policy_dir = "policy.d"
log = { level = "warning" }
"""
POLICY = "allow vm=web01 server=localhost\n"
AGENT_TOML = """\
[broker]
link = "unix:{home}/run/vms/web01/broker.sock"
[applications]
socket = "{home}/agent.sock"
mode = 0o600
[log]
level = "warning"
"""


class DemoFailed(Exception):
    """What did not work, in one sentence."""


class Stage:
    """One directory, the programs that run in it, and the steps shown."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._steps = 0
        self._programs: list[tuple[str, subprocess.Popen[bytes], Path]] = []

    def step(self, sentence: str) -> None:
        """Say what comes next."""
        self._steps += 1
        print(f"\n{bold(f'{self._steps}. {sentence}')}", flush=True)

    def run(self, *command: str) -> str:
        """Run a program to its end, show the command and give what it printed."""
        print(f"   $ {' '.join(command)}", flush=True)
        ended = subprocess.run(
            [BIN / command[0], *command[1:]], cwd=self.home, capture_output=True, text=True, check=False
        )
        if ended.returncode:
            raise DemoFailed(f"{command[0]} failed: {(ended.stderr or ended.stdout).strip()}")
        for line in (ended.stderr + ended.stdout).splitlines():
            if not line.startswith("-----") and len(line) < 200 and " " in line.strip():
                print(f"     {line}")
        return ended.stdout

    def start(self, name: str, command: Sequence[str | Path], is_up: Callable[[], bool]) -> None:
        """Start a program in a process of its own and wait until it is up."""
        shown = (part.name if isinstance(part, Path) else part for part in command)
        print(f"   $ {' '.join(shown)} &")
        log = self.home / f"{name}.log"
        with log.open("wb") as output:
            program = subprocess.Popen(
                command, cwd=self.home, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        self._programs.append((name, program, log))
        deadline = time.monotonic() + PATIENCE
        while not is_up():
            if program.poll() is not None or time.monotonic() > deadline:
                raise DemoFailed(f"{name} did not come up: {log.read_text(errors='replace').strip()[-500:]}")
            time.sleep(0.02)
        print(f"     {name} is up, process {program.pid}")

    def stop(self) -> None:
        """End every program, the last one first."""
        for _, program, _ in reversed(self._programs):
            program.terminate()
        for _, program, _ in reversed(self._programs):
            try:
                program.wait(5)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()


def main() -> int:
    """Run the demo; 0 if everything worked."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    home = Path(tempfile.mkdtemp(prefix="vmtoken-"))
    stage = Stage(home)
    began = time.monotonic()
    try:
        port = prepare(stage)
        asyncio.run(talk(stage, port))
    except (DemoFailed, VmTokenError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped.", file=sys.stderr)
        return 130
    finally:
        stage.stop()
        shutil.rmtree(home, ignore_errors=True)
    verdict = "web01 proved its identity twice; its key never left the element"
    print(f"\n{bold('PASSED')}: {verdict} ({time.monotonic() - began:.0f} s).")
    return 0


def prepare(stage: Stage) -> int:
    """Everything up to running programs; gives the server's port."""
    stage.step("A CA for trials, and a server that it vouches for")
    stage.run("vmtokenctl", "ca", "init", "ca")
    stage.run("vmtokenctl", "ca", "server", "ca", "localhost")

    stage.step("The broker, as it runs in dom0")
    (stage.home / "broker.toml").write_text(BROKER_TOML)
    (stage.home / "policy.d").mkdir()
    (stage.home / "policy.d/10-demo.policy").write_text(POLICY)
    print(f"     policy.d/10-demo.policy: {POLICY.strip()}")
    command = [BIN / "vmtoken-broker", "--config", "broker.toml"]
    stage.start("broker", command, lambda: answers(stage.home / "run/admin.sock"))

    stage.step("A card for the VM web01: key pair, request and certificate go in and out as APDUs")
    control = ("vmtokenctl", "--config", "broker.toml")
    stage.run(*control, "token", "create", "card-1", "--algorithm", "p256")
    request = stage.run(
        *control, "token", "csr", "card-1", "--subject", "CN=web01,O=Demo", "--dns", "web01.example"
    )
    (stage.home / "web01.csr").write_text(request)
    chain = stage.run("vmtokenctl", "ca", "sign", "ca", "web01.csr")
    (stage.home / "web01.pem").write_text(chain)
    stage.run(*control, "token", "install-cert", "card-1", "web01.pem", "--trust", "ca/ca.pem")
    stage.run(*control, "vm", "add", "web01")
    stage.run(*control, "vm", "bind", "web01", "card-1", "--as", "identity")

    stage.step("The agent, as it runs in the VM web01: it has no key, no certificate, no PIN")
    (stage.home / "agent.toml").write_text(AGENT_TOML.format(home=stage.home))
    command = [BIN / "vmtoken-agent", "--config", "agent.toml"]
    stage.start("agent", command, lambda: answers(stage.home / "agent.sock"))

    stage.step("An OpenSSL server that demands a client certificate")
    port = free_port()
    stage.start("server", server_command(port), lambda: listens(port))
    return port


async def talk(stage: Stage, port: int) -> None:
    """What an application in the VM does."""
    async with AgentClient(stage.home / "agent.sock") as agent:
        stage.step("An application asks the agent by gRPC for a session, and sends an HTTP request")
        first = await visit(agent, port)
        if first.info.resumed or not first.info.client_certificate_sent:
            raise DemoFailed("the first session is not a full handshake with a client certificate")
        stage.step("The same again: the session is resumed, and the card has nothing to sign")
        second = await visit(agent, port)
        if not second.info.resumed:
            raise DemoFailed("the second session was not resumed")
    stage.step("What dom0 knows of it")
    control = ("vmtokenctl", "--config", "broker.toml")
    stage.run(*control, "session", "list")
    stage.run(*control, "audit", "verify")


async def visit(agent: AgentClient, port: int) -> Session:
    """One session with one HTTP request; shows what it was."""
    session = await agent.connect(pb.ConnectRequest(host="localhost", port=port), timeout=10)
    await session.write(REQUEST)
    answer = b""
    while chunk := await session.read(timeout=10):
        answer += chunk
    await session.close(await_ticket=True)
    print("\n".join(f"   {line}" for line in as_text(session.info).splitlines()))
    print(f"   the server answered: {answer.splitlines()[0].decode(errors='replace')}, {len(answer)} octets")
    return session


def server_command(port: int) -> list[str | Path]:
    """`openssl s_server` where there is one; otherwise Python's ssl module, which is OpenSSL too."""
    files = ("ca/server.pem", "ca/server.key", "ca/ca.pem")
    if shutil.which("openssl"):
        certificate, key, ca = files
        options = ("-accept", f"127.0.0.1:{port}", "-cert", certificate, "-key", key, "-CAfile", ca)
        return ["openssl", "s_server", *options, "-Verify", "2", "-verify_return_error", "-www", "-quiet"]
    return [sys.executable, str(Path(__file__).with_name("https_server.py")), str(port), *files]


def answers(path: Path) -> bool:
    """Whether somebody serves on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def listens(port: int) -> bool:
    """Whether somebody serves on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """A port that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def bold(text: str) -> str:
    """Bold on a terminal."""
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


if __name__ == "__main__":
    sys.exit(main())
