"""Every row of docs/errors.md is provoked: what an application gets, what `vmtoken` prints, its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from guest_agent.client import AgentClient
from tests.fakes.engine_token import EngineToken
from tests.support.agent import AgentUnderTest, running_agent
from tests.support.pki import SERVER_NAME, Authority, KeyKind, client_identity
from tests.support.sentences import is_sentence
from tests.support.servers import PROGRAMS, ServerOptions
from tests.support.signing_keys import PKCS1
from tests.support.stack import VM, Stack
from tests.support.tls_peer import echo, raw_server, say_and_cut, server_context, tls_server
from vmtoken.errors import PinRejected, Reason, TokenUnavailable, VmTokenError
from vmtoken.tls.codes import AlertDescription, AlertLevel, CipherSuite, ContentType
from vmtoken.tls.record import record_protection
from vmtoken.tls.suites import suite_of
from vmtoken.v1 import admin_service_pb2 as admin
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2

pytestmark = pytest.mark.timeout(60)

DOCUMENT = Path(__file__).parents[2] / "docs/errors.md"
OPERATORS = {Reason.NOT_FOUND, Reason.ALREADY_EXISTS, Reason.CONFLICT}
TOKEN = KeyKind.ECDSA_P256.value
INSISTENT, AT_ODDS = "127.0.0.1", "::1"
"""Names of the same server: policy demands our certificate there; its rules do not agree on that."""

POLICY = f"""
    allow vm=* server={SERVER_NAME}
    allow vm=* server={INSISTENT} certificate=always
    allow vm=* server={AT_ODDS} ca=sha256:{"0" * 64} certificate=always
    allow vm=* server={AT_ODDS}
"""
PATIENCE = 10.0


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    failure: str
    status: str
    reason: str
    sentence: str
    exit_code: str

    @property
    def pattern(self) -> str:
        """What matches the sentence with anything for what varies."""
        literals = re.split(r"<[^>]*>", self.sentence)
        return ".+".join(re.escape(literal) for literal in literals)


@dataclass(frozen=True)
class Scene:
    """Where something goes wrong as soon as somebody connects there and talks."""

    socket: Path
    port: int
    host: str = "127.0.0.1"
    timeout: float = PATIENCE
    options: dict[str, object] = field(default_factory=dict)

    @property
    def request(self) -> pb.ConnectRequest:
        fields = {"host": self.host, "port": self.port, "server_name": SERVER_NAME, **self.options}
        return pb.ConnectRequest(**fields)  # type: ignore[arg-type]

    @property
    def arguments(self) -> list[str]:
        """The same for `vmtoken connect`."""
        request = self.request
        words = ["--socket", str(self.socket), "--timeout", str(self.timeout), "--quiet"]
        words += ["--servername", request.server_name, f"{request.host}:{request.port}"]
        words += ["--token", request.token] if request.token else []
        return words + (["--tls1_3"] if request.min_version == token_pb2.TLS_VERSION_1_3 else [])


def rows() -> list[Row]:
    lines = [line for line in DOCUMENT.read_text().splitlines() if re.match(r"\| (?!Failure)[a-zA-Z]", line)]
    return [Row(*(cell.strip() for cell in line.strip("|").split("|"))) for line in lines]


SCENES: dict[str, Callable[[Stack], AbstractAsyncContextManager[Scene]]] = {}


def scene(failure: str) -> Callable[[Callable[[Stack], AsyncIterator[Scene]]], None]:
    """Provokes the row of that name; takes the whole stack, for those that need it."""

    def keep(provoke: Callable[[Stack], AsyncIterator[Scene]]) -> None:
        SCENES[failure] = asynccontextmanager(provoke)

    return keep


def test_table_is_complete() -> None:
    table = rows()
    assert {row.reason for row in table} == set(Reason) - OPERATORS
    assert [row.failure for row in table] == list(dict.fromkeys(row.failure for row in table))
    assert {row.failure for row in table} == {*SCENES, "not your session"}, (
        "a row without a test, or the reverse"
    )


each_provoked_row = pytest.mark.parametrize(
    "row", [row for row in rows() if row.exit_code != "-"], ids=lambda row: row.failure
)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack.running(policy=POLICY) as running:
        yield running


@each_provoked_row
async def test_application_gets_status_reason_and_sentence(row: Row, stack: Stack) -> None:
    async with SCENES[row.failure](stack) as scene, AgentClient(scene.socket) as client:
        with pytest.raises(VmTokenError) as caught:
            await talk(client, scene)
        assert caught.value.reason == row.reason
        assert re.fullmatch(row.pattern, caught.value.message)
        assert is_sentence(caught.value.message)
        status = caught.value.__cause__
        assert isinstance(status, grpc.aio.AioRpcError)
        assert status.code().name == row.status


@each_provoked_row
async def test_user_reads_the_sentence_and_gets_the_exit_code(row: Row, stack: Stack) -> None:
    async with SCENES[row.failure](stack) as scene:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "guest_agent.cli", "connect", *scene.arguments),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(b"something\n")  # and no end: the failure is what ends it
        _, errors = await asyncio.wait_for(_output(process), PATIENCE * 2)
    assert re.fullmatch(rf"vmtoken: {row.pattern}( Try again in .* s\.)? \[{row.reason}\]", errors.strip())
    assert process.returncode == int(row.exit_code)


async def test_not_your_session() -> None:
    (row,) = [row for row in rows() if row.failure == "not your session"]
    async with running_agent() as agent:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.client.stub.Read(pb.ReadRequest(session_id="somebody else's"))
        error = agent.client.meaning(caught.value)
    assert (caught.value.code().name, error.reason, error.message) == (row.status, row.reason, row.sentence)


async def talk(client: AgentClient, scene: Scene) -> None:
    """Open a session, say something, listen to the end."""
    session = await client.connect(scene.request, scene.timeout)
    await session.write(b"something\n")
    while await session.read():
        pass


async def _output(process: asyncio.subprocess.Process) -> tuple[str, str]:
    assert process.stdout is not None
    assert process.stderr is not None
    output, errors = await asyncio.gather(process.stdout.read(), process.stderr.read())
    await process.wait()
    return output.decode(), errors.decode()


# Before there is a session.


@scene("malformed request")
async def _(_: Stack) -> AsyncIterator[Scene]:
    async with running_agent() as agent:
        yield Scene(agent.socket, 443, host="b\xfccher.example")


@scene("agent away")
async def _(_: Stack) -> AsyncIterator[Scene]:
    yield Scene(Path("/nonexistent/agent.sock"), 443)


@scene("broker away")
async def _(_: Stack) -> AsyncIterator[Scene]:
    async with running_agent(with_broker=False, connect_timeout=0.3) as agent:
        with tls_server(echo) as port:
            yield Scene(agent.socket, port)


@scene("broker lost in the middle")
async def _(_: Stack) -> AsyncIterator[Scene]:
    """The broker goes when the server has the ClientHello; the server answers after that."""
    async with running_agent() as agent:
        loop, context = asyncio.get_running_loop(), server_context()

        def talk_late(connection: socket.socket) -> None:
            connection.recv(1, socket.MSG_PEEK)
            asyncio.run_coroutine_threadsafe(_restart(agent), loop).result(PATIENCE)
            with context.wrap_socket(connection, server_side=True):
                pass

        with raw_server(talk_late) as port:
            yield Scene(agent.socket, port)


async def _restart(agent: AgentUnderTest) -> None:
    await agent.broker.stop()
    await agent.broker.serve(agent.broker_socket)


@scene("agent stopping")
async def _(_: Stack) -> AsyncIterator[Scene]:
    async with running_agent() as agent:
        await agent.app.sessions.drain()
        yield Scene(agent.socket, 443)


@scene("quota of the user")
async def _(_: Stack) -> AsyncIterator[Scene]:
    async with running_agent(sessions_per_user=1) as agent:
        with tls_server(echo) as port:
            scene = Scene(agent.socket, port)
            await agent.client.connect(scene.request)
            yield scene


@scene("no token bound")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(echo) as port, stack.administration() as service:
        service.Unbind(admin.UnbindRequest(vm=VM, name=TOKEN))
        try:
            yield Scene(stack.agent_socket, port)
        finally:
            service.Bind(admin.BindRequest(vm=VM, token=TOKEN))


@scene("no such token")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(echo) as port:
        yield Scene(stack.agent_socket, port, options={"token": "nope"})


@scene("token not personalised")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(echo) as port, stack.administration() as service:
        service.CreateToken(admin.CreateTokenRequest(name="bare", algorithm=admin.KEY_ALGORITHM_P256))
        service.Bind(admin.BindRequest(vm=VM, token="bare"))
        try:
            yield Scene(stack.agent_socket, port, options={"token": "bare"})
        finally:
            service.Unbind(admin.UnbindRequest(vm=VM, name="bare"))
            service.RemoveToken(admin.RemoveTokenRequest(name="bare", destroy=True))


@scene("token busy past the deadline")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    """Another handshake has the token, and its server does not answer."""
    with tls_server(echo) as port, raw_server(lambda _: time.sleep(3)) as silent:
        async with AgentClient(stack.agent_socket) as client:
            other = Scene(stack.agent_socket, silent).request
            waiting = asyncio.ensure_future(client.connect(other))
            await asyncio.sleep(0.2)
            yield Scene(stack.agent_socket, port, timeout=1.5)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, VmTokenError):
                await waiting


@scene("card does not answer")
async def _(_: Stack) -> AsyncIterator[Scene]:
    async with running_agent() as agent:
        agent.broker.refusal = TokenUnavailable("The card of token 'web01' does not answer.", retry_after=5.0)
        with tls_server(echo) as port:
            yield Scene(agent.socket, port)


@scene("PIN missing")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(echo) as port, element(stack) as uri, token(stack, uri, b"") as name:
        yield Scene(stack.agent_socket, port, options={"token": name})


@scene("PIN wrong")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(echo) as port, element(stack) as uri, token(stack, uri, b"00000000") as name:
        yield Scene(stack.agent_socket, port, options={"token": name})


@scene("PIN blocked")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    """Two of three tries are gone: the last one is not spent."""
    with tls_server(echo) as port, element(stack) as uri:
        for _try in range(2):
            with token(stack, uri, b"00000000") as name:
                async with AgentClient(stack.agent_socket) as client:
                    with pytest.raises(PinRejected):
                        await client.connect(Scene(stack.agent_socket, port, options={"token": name}).request)
        with token(stack, uri, b"00000000") as name:
            yield Scene(stack.agent_socket, port, options={"token": name})


@scene("name not found")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    yield Scene(stack.agent_socket, 443, host="nowhere.invalid")


@scene("TCP refused")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    yield Scene(stack.agent_socket, port)


@scene("server silent")
async def _(_: Stack) -> AsyncIterator[Scene]:
    async with running_agent() as agent:
        with raw_server(lambda connection: connection.recv(1) and time.sleep(2)) as port:
            yield Scene(agent.socket, port, timeout=1.0)


@scene("server hangs up")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    def hang_up(connection: socket.socket) -> None:
        connection.recv(65_536)

    with raw_server(hang_up) as port:
        yield Scene(stack.agent_socket, port)


@scene("server speaks no TLS")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    def complain(connection: socket.socket) -> None:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with raw_server(complain) as port:
        yield Scene(stack.agent_socket, port)


@scene("server speaks TLS 1.1 only")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    context = server_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with tls_server(echo, context) as port:
        yield Scene(stack.agent_socket, port)


@scene("server lacks the version asked for")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    context = server_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tls_server(echo, context) as port:
        version = token_pb2.TLS_VERSION_1_3
        yield Scene(stack.agent_socket, port, options={"min_version": version, "max_version": version})


@scene("token's key cannot sign in the server's version")
async def _(_: Stack) -> AsyncIterator[Scene]:
    context = server_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    async with running_agent() as agent:
        agent.broker.card = EngineToken(client_identity(KeyKind.RSA_2048), PKCS1)
        with tls_server(echo, context) as port:
            yield Scene(agent.socket, port)


@scene("server certificate wrong")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(echo) as port:
        yield Scene(stack.agent_socket, port, options={"server_name": "another.example"})


@scene("policy denies")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(echo) as port:
        yield Scene(stack.agent_socket, port, options={"server_name": "localhost"})


@scene("policy's rules disagree")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(echo) as port:
        yield Scene(stack.agent_socket, port, options={"server_name": AT_ODDS})


@scene("our certificate does not suit the server")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    """OpenSSL's server names the CAs that it takes certificates of; ours is none of them."""
    with tempfile.TemporaryDirectory() as home:
        stranger = Path(home) / "stranger.pem"
        stranger.write_bytes(Authority.self_signed("a stranger").certificate.public_bytes(Encoding.PEM))
        options = ServerOptions(arguments=("-CAfile", str(stranger)))
        with PROGRAMS["openssl"].serve(Path(home), options) as server:
            yield Scene(stack.agent_socket, server.port)


@scene("server does not ask for our certificate")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    context = server_context()
    context.verify_mode = ssl.CERT_NONE
    with tls_server(echo, context) as port:
        yield Scene(stack.agent_socket, port, options={"server_name": INSISTENT})


@scene("server refuses our certificate, TLS 1.2")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    context = distrusting_context()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tls_server(echo, context) as port:
        yield Scene(stack.agent_socket, port)


@scene("a defect")
async def _(_: Stack) -> AsyncIterator[Scene]:
    async with running_agent() as agent:
        agent.broker.refusal = VmTokenError(
            "Something failed that must not (incident 01234567); the log of vmtoken-agent or vmtoken-broker "
            "has the details."
        )
        with tls_server(echo) as port:
            yield Scene(agent.socket, port)


# In a session.


@scene("server refuses our certificate, TLS 1.3")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(echo, distrusting_context()) as port:
        yield Scene(stack.agent_socket, port)


@scene("session truncated")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    with tls_server(say_and_cut(b"a part")) as port:
        yield Scene(stack.agent_socket, port)


@scene("session broken")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    def garble(tls: ssl.SSLSocket) -> None:
        tls.recv(100)
        socket.socket.send(tls, b"\x17\x03\x03\x00\x20" + bytes(32))
        socket.socket.recv(tls, 100)

    with tls_server(garble) as port:
        yield Scene(stack.agent_socket, port)


@scene("server ends with an alert")
async def _(stack: Stack) -> AsyncIterator[Scene]:
    """Python's server cannot be told to send an alert: it is made here, with the key of its key log."""
    context = server_context()
    context.num_tickets = 0  # so that the alert is its first record
    with tempfile.NamedTemporaryFile(mode="r") as key_log:
        context.keylog_filename = key_log.name

        def alert(tls: ssl.SSLSocket) -> None:
            tls.recv(100)
            (secret,) = re.findall(r"^SERVER_TRAFFIC_SECRET_0 \w+ (\w+)", key_log.read(), re.MULTILINE)
            suite = suite_of(CipherSuite[tls.cipher()[0]])
            protection = record_protection(suite, bytes.fromhex(secret))
            fatal = bytes([AlertLevel.FATAL, AlertDescription.INTERNAL_ERROR])
            socket.socket.send(tls, protection.protect(ContentType.ALERT, fatal))
            socket.socket.recv(tls, 100)

        with tls_server(alert, context) as port:
            yield Scene(stack.agent_socket, port, options={"no_resumption": True})


# What the scenes are made of.

_numbers = itertools.count()


@contextlib.contextmanager
def element(stack: Stack) -> Iterator[str]:
    """The URI of a software element with a key and three tries of its PIN, known to no token."""
    name = f"element-{next(_numbers)}"
    with stack.administration() as service:
        service.CreateToken(admin.CreateTokenRequest(name=name, algorithm=admin.KEY_ALGORITHM_P256))
        service.RemoveToken(admin.RemoveTokenRequest(name=name))
    yield f"soft:{name}"


@contextlib.contextmanager
def token(stack: Stack, uri: str, user_pin: bytes) -> Iterator[str]:
    """A token for that element with the PIN that the operator gave, bound to the VM."""
    name = f"token-{next(_numbers)}"
    with stack.administration() as service:
        service.AddToken(admin.AddTokenRequest(name=name, uri=uri, user_pin=user_pin))
        service.Bind(admin.BindRequest(vm=VM, token=name))
        try:
            yield name
        finally:
            service.Unbind(admin.UnbindRequest(vm=VM, name=name))
            service.RemoveToken(admin.RemoveTokenRequest(name=name))


def distrusting_context() -> ssl.SSLContext:
    """A server that trusts another authority than ours, and does not say which."""
    stranger = Authority.self_signed("a stranger").certificate.public_bytes(Encoding.DER)
    return server_context(trusted=stranger)
