"""`vmtoken` as people and pipes use it: a process of its own, against an agent with a FakeBroker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.agent import AgentUnderTest, running_agent
from tests.support.pki import SERVER_NAME
from tests.support.tls_peer import echo, say_and_close, tls_server

pytestmark = pytest.mark.timeout(60)

PATIENCE = 20.0
MEBIBYTE = 1 << 20


@pytest.fixture
async def agent() -> AsyncIterator[AgentUnderTest]:
    async with running_agent() as running:
        yield running


def command(agent: AgentUnderTest, *words: str) -> list[str]:
    hearing = ["env", "--default-signal=INT"]  # a shell starts background jobs deaf to Ctrl-C
    return [*hearing, sys.executable, "-m", "guest_agent.cli", "--socket", str(agent.socket), *words]


async def start(agent: AgentUnderTest, *words: str, **streams: int) -> asyncio.subprocess.Process:
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return await asyncio.create_subprocess_exec(*command(agent, *words), **options)


async def run(agent: AgentUnderTest, *words: str, given: bytes = b"") -> tuple[int | None, bytes, str]:
    process = await start(agent, *words)
    output, errors = await asyncio.wait_for(process.communicate(given), PATIENCE)
    return process.returncode, output, errors.decode()


def target(port: int) -> list[str]:
    return ["connect", f"127.0.0.1:{port}", "--servername", SERVER_NAME]


async def test_input_goes_to_the_server_and_its_answer_to_the_output(agent: AgentUnderTest) -> None:
    with tls_server(echo) as port:
        assert await run(agent, *target(port), "--quiet", given=b"there and back\n") == (
            0,
            b"there and back\n",
            "",
        )


async def test_large_data_passes_whole_both_ways(agent: AgentUnderTest) -> None:
    data = os.urandom(4 * MEBIBYTE)
    with tls_server(echo) as port:
        code, output, _ = await run(agent, *target(port), given=data)
    assert code == 0
    assert output == data


async def test_input_from_a_file_and_from_nothing(agent: AgentUnderTest, tmp_path: Path) -> None:
    """epoll takes neither; both are always ready."""
    given = tmp_path / "given"
    given.write_bytes(b"from a file")
    with tls_server(echo) as port:
        for path, expected in ((given, b"from a file"), (Path(os.devnull), b"")):
            with path.open("rb") as stream:
                process = await start(agent, *target(port), "--quiet", stdin=stream.fileno())
                output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
            assert (process.returncode, output) == (0, expected)


async def test_terminal_gives_lines(agent: AgentUnderTest) -> None:
    with tls_server(echo) as port:
        ours, theirs = pty.openpty()
        process = await start(agent, *target(port), "--quiet", stdin=theirs)
        os.close(theirs)
        os.write(ours, b"a line\n")
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), PATIENCE) == b"a line\n"
        os.write(ours, b"\x04")  # Ctrl-D
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
        os.close(ours)


async def test_server_that_ends_first_ends_the_command(agent: AgentUnderTest) -> None:
    with tls_server(say_and_close(b"bye\n")) as port:
        process = await start(agent, *target(port))
        assert process.stdout is not None
        assert process.stderr is not None
        assert await asyncio.wait_for(process.stdout.read(), PATIENCE) == b"bye\n"
        assert (await process.stderr.read()).endswith(b"closed\n")
        assert await process.wait() == 0


async def test_summary_says_where_each_secret_lives(agent: AgentUnderTest) -> None:
    with tls_server(echo) as port:
        code, output, errors = await run(agent, *target(port))
    assert (code, output) == (0, b"")
    for line in (
        rf"CONNECTED\(127\.0\.0\.1:{port}\)",
        r"subject=CN=server\.example",
        r"SSL handshake has read \d+ bytes and written \d+ bytes",
        r"New, TLSv1\.3, Cipher is TLS_AES_\w+",
        r"    Protocol +: TLSv1\.3",
        r"    Token +: web01, assurance software",
        r"    Private-Key: stayed in the software element of the broker \(no hardware protects it\)",
        r"    Master-Key +: stayed in the software element of the broker",
        r"    Record keys: in the agent of this machine, for this session only",
        r"    key block +[\d. ]+",
    ):
        assert re.search(f"^{line}$", errors, re.MULTILINE), line


async def test_json_is_one_line_with_the_same_facts(agent: AgentUnderTest) -> None:
    with tls_server(echo) as port:
        code, _, errors = await run(agent, *target(port), "--json", "--tls1_2")
    session = json.loads(errors.splitlines()[0])
    assert code == 0
    assert session["protocol"] == "TLSv1.2"
    assert session["secrets"]["record_keys"] == "agent"
    assert [step["name"] for step in session["timeline"]][:2] in (
        ["TCP", "ClientHello"],
        ["ClientHello", "TCP"],
    )


async def test_resume_opens_twice(agent: AgentUnderTest) -> None:
    with tls_server(echo) as port:
        code, output, errors = await run(agent, *target(port), "--resume", given=b"x")
    assert (code, output) == (0, b"x")
    assert re.findall(r"^(New|Reused), TLSv1\.3", errors, re.MULTILINE) == ["New", "Reused"]


async def test_msg_names_what_goes_in_clear(agent: AgentUnderTest) -> None:
    with tls_server(echo) as port:
        for version, expected in (
            ("--tls1_3", [">>> TLS 1.0, Handshake, ClientHello", "<<< TLS 1.2, Handshake, ServerHello"]),
            (
                "--tls1_2",
                ["<<< TLS 1.2, Handshake, Certificate", ">>> TLS 1.2, Handshake, ClientKeyExchange"],
            ),
        ):
            _, _, errors = await run(agent, *target(port), "--msg", "--no-resumption", version)
            for line in expected:
                assert line in errors
            assert "encrypted, the token holds the key" in errors.lower()


async def test_reader_that_goes_away_is_no_traceback(agent: AgentUnderTest) -> None:
    def chatter(tls: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            while True:
                tls.sendall(bytes(65_536))

    with tls_server(chatter) as port:
        process = await start(agent, *target(port), "--quiet")
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.readexactly(1)
        process.stdout._transport.close()  # type: ignore[attr-defined]
        assert await asyncio.wait_for(process.stderr.read(), PATIENCE) == b""
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 1


async def test_interrupt_is_clean(agent: AgentUnderTest) -> None:
    with tls_server(echo) as port:
        process = await start(agent, *target(port), "--quiet")
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write(b"x")
        await process.stdout.readexactly(1)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.stderr.read(), PATIENCE) == b""
        assert await process.wait() == 128 + signal.SIGINT


async def test_interrupt_is_ignored_by_a_job_that_was_started_so(agent: AgentUnderTest) -> None:
    with tls_server(echo) as port:
        deaf = ["env", "--ignore-signal=INT", *command(agent, *target(port), "--quiet")[2:]]
        process = await asyncio.create_subprocess_exec(*deaf, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(2):
            process.stdin.write(b"x")
            assert await asyncio.wait_for(process.stdout.readexactly(1), PATIENCE) == b"x"
            process.send_signal(signal.SIGINT)
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["connect"],
        ["connect", "server.example"],
        ["connect", "server.example:0"],
        ["connect", "server.example:443", "--tls1_2", "--tls1_3"],
        ["connect", "server.example:443", "--timeout", "never"],
        ["nonsense"],
    ],
    ids=" ".join,
)
async def test_usage_errors(agent: AgentUnderTest, words: list[str]) -> None:
    code, _, errors = await run(agent, *words)
    assert code == 2
    assert "usage: vmtoken" in errors


async def test_list_and_status(agent: AgentUnderTest) -> None:
    code, output, _ = await run(agent, "list")
    assert code == 0
    assert output.decode().splitlines()[0].split() == [
        "NAME",
        "ASSURANCE",
        "READY",
        "CERTIFICATE",
        "VALID",
        "UNTIL",
    ]
    assert output.decode().splitlines()[1].split()[:4] == ["web01", "software", "yes", "CN=web01"]
    assert json.loads((await run(agent, "list", "--json"))[1])[0]["name"] == "web01"
    code, output, _ = await run(agent, "status")
    assert (code, output.decode().splitlines()) == (
        0,
        ["agent   serving", "broker  answers", "token   web01: ready"],
    )


async def test_status_without_broker_or_agent() -> None:
    async with running_agent(with_broker=False, connect_timeout=0.2) as agent:
        code, output, _ = await run(agent, "status")
        assert (code, output.startswith(b"agent   serving\nbroker  The broker does not answer")) == (1, True)
        await agent.app.stop()
        code, output, _ = await run(agent, "status", "--json")
        assert (code, json.loads(output)["agent"]) == (1, False)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_forward_leads_every_connection_to_a_session(agent: AgentUnderTest, kind: str) -> None:
    listen = "0" if kind == "tcp" else f"unix:{agent.home}/forward.sock"
    with tls_server(echo) as port:
        process = await start(agent, "forward", listen, f"127.0.0.1:{port}", "--servername", SERVER_NAME)
        assert process.stderr is not None
        line = (await asyncio.wait_for(process.stderr.readline(), PATIENCE)).decode()
        where = re.fullmatch(r"forwarding (\S+) to 127\.0\.0\.1 port \d+\n", line)
        assert where is not None
        echoes = await asyncio.gather(*(_through(where[1], b"%d" % number * 1000) for number in range(5)))
        assert echoes == [b"%d" % number * 1000 for number in range(5)]
        process.terminate()
        assert await asyncio.wait_for(process.wait(), PATIENCE) == 0
        assert not (agent.home / "forward.sock").exists()


async def test_forward_to_nowhere_resets_the_connection_and_goes_on(agent: AgentUnderTest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    process = await start(agent, "forward", "0", f"127.0.0.1:{port}")
    assert process.stderr is not None
    line = (await asyncio.wait_for(process.stderr.readline(), PATIENCE)).decode()
    for _ in range(2):
        with contextlib.suppress(ConnectionError):
            assert await _through(line.split()[1], b"x") == b""
        assert b"[SERVER_UNREACHABLE]" in await asyncio.wait_for(process.stderr.readline(), PATIENCE)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), PATIENCE) == 0


async def _through(where: str, data: bytes) -> bytes:
    if where.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(where.removeprefix("unix:"))
    else:
        reader, writer = await asyncio.open_connection(*where.rsplit(":", 1))
    writer.write(data)
    writer.write_eof()
    try:
        return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
