"""Broker and agent do their work under the restrictions of their units, as far as these hold without systemd.

System calls, memory that is never written and executed, families of sockets, no capabilities, no new
privileges; for the broker no network at all. A read-only system and devices need systemd as process 1.
"""

from __future__ import annotations

import os
import platform
import ssl
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.debian import run
from tests.support.directories import short_directory
from tests.support.pki import SERVER_NAME, server_identity
from tests.support.processes import running
from tests.support.servers import ROOT
from tests.support.tls_peer import echo, server_context, tls_server
from tests.support.tools import tool

SANDBOX = ROOT / "tests/support/sandbox.py"

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the filter is written for x86-64")


def confined(unit: str, *command: str | Path, network: bool = True) -> list[str]:
    """A command under the restrictions of a unit."""
    words = [sys.executable, str(SANDBOX), str(ROOT / f"deploy/systemd/{unit}.service"), *map(str, command)]
    if os.geteuid() != 0:
        return words
    without = [] if network else [tool("unshare"), "--net"]
    return [*without, tool("setpriv"), "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *words]


@pytest.mark.parametrize(
    ("attempt", "refusal"),
    [
        ("import socket; socket.socket(socket.AF_INET)", "Address family not supported"),
        ("import mmap; mmap.mmap(-1, 4096, prot=mmap.PROT_WRITE | mmap.PROT_EXEC)", "not permitted"),
        ("import os; os.setuid(12345)", "not permitted"),
        ("import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))", "not permitted"),
    ],
)
def test_restrictions_hold(attempt: str, refusal: str) -> None:
    """Without this, the tests below would prove nothing."""
    tool("systemd-analyze")
    said = run(*confined("vmtoken-broker", sys.executable, "-c", attempt), succeeds=False)
    assert refusal in said


@pytest.mark.parametrize(
    "library",
    ["cryptography.hazmat.bindings._rust", "grpc", "msgspec", "ctypes", "smartcard.scard", "pkcs11"],
)
def test_libraries_load_where_memory_is_never_written_and_executed(library: str) -> None:
    tool("systemd-analyze")
    pytest.importorskip(library)
    run(*confined("vmtoken-broker", sys.executable, "-c", f"import {library}"))


@pytest.fixture
def home() -> Path:
    home = short_directory()
    (home / "policy.d").mkdir()
    (home / "policy.d/10-test.policy").write_text("allow vm=web01 server=*\n")
    (home / "broker.toml").write_text('state_dir = "state"\nruntime_dir = "run"\npolicy_dir = "policy.d"\n')
    (home / "agent.toml").write_text(
        f'[broker]\nlink = "unix:{home}/run/vms/web01/broker.sock"\n'
        f'[applications]\nsocket = "{home}/agent.sock"\n'
    )
    return home


def test_session_is_made_by_a_broker_without_a_network_and_its_agent(home: Path) -> None:
    tool("systemd-analyze")
    broker = _daemon("vmtoken-broker", "dom0_broker", home / "broker.toml", network=False)
    agent = _daemon("vmtoken-agent", "guest_agent", home / "agent.toml")
    with ExitStack() as stack:
        stack.enter_context(running(broker, home / "broker.log")).wait_for("broker started")
        _personalise(home)
        stack.enter_context(running(agent, home / "agent.log")).wait_for("agent started")
        clients = ssl.PEM_cert_to_DER_cert((home / "ca/ca.pem").read_text())
        port = stack.enter_context(tls_server(echo, server_context(trusted=clients)))
        words = ["--socket", str(home / "agent.sock"), "connect", f"127.0.0.1:{port}", "--quiet"]
        words += ["--servername", SERVER_NAME]
        assert _program("guest_agent.cli", *words, given=b"there and back\n") == b"there and back\n"


def _daemon(unit: str, module: str, config: Path, *, network: bool = True) -> list[str]:
    return confined(unit, sys.executable, "-m", module, "--config", config, network=network)


def _personalise(home: Path) -> None:
    (home / "servers.pem").write_bytes(server_identity().root_pem)

    def ctl(*words: str) -> bytes:
        return _program("dom0_broker.ctl", "--config", str(home / "broker.toml"), *words)

    ctl("vm", "add", "web01")
    ctl("token", "create", "web")
    (home / "web.csr").write_bytes(ctl("token", "csr", "web", "--subject", "CN=web01"))
    ctl("ca", "init", str(home / "ca"))
    (home / "web.pem").write_bytes(ctl("ca", "sign", str(home / "ca"), str(home / "web.csr")))
    ctl("token", "install-cert", "web", str(home / "web.pem"), "--trust", str(home / "servers.pem"))
    ctl("vm", "bind", "web01", "web")


def _program(module: str, *words: str, given: bytes = b"") -> bytes:
    command: Sequence[str] = [sys.executable, "-m", module, *words]
    ended = subprocess.run(command, input=given, capture_output=True, timeout=60)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout
