"""Everything ends in a session or in a clear refusal, nothing leaks, and the next connect works."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.pki import SERVER_NAME, KeyKind
from tests.support.processes import Child
from tests.support.relays import interrupting_proxy
from tests.support.servers import PROGRAMS, TLS_1_2, TLS_1_3, Server, ServerOptions
from tests.support.stack import Stack
from tests.support.stack_client import StackClient, StackSession
from vmtoken.errors import Reason, VmTokenError
from vmtoken.v1 import admin_service_pb2 as admin

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

TOKEN = KeyKind.ECDSA_P256.value
SETTLED_WITHIN = 15.0
"""Seconds for lingering connections and streams to go."""

FD_SLACK = 8
"""Descriptors that gRPC opens and keeps as it likes: event engines, warm streams."""

CONNECT_TIMEOUT = 20.0
CROWD = 200
SERVER_LEFT = {Reason.HANDSHAKE_FAILED, Reason.SERVER_UNREACHABLE}
BROKER_GONE = {Reason.BROKER_UNAVAILABLE, Reason.SHUTTING_DOWN, Reason.DEADLINE_EXCEEDED}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with Stack.running(broker_settings="[limits]\nvm_handshakes = 512\n") as running:
        yield running


@pytest.fixture
def application(stack: Stack) -> Iterator[StackClient]:
    with StackClient.of(stack) as client:
        yield client


@pytest.fixture(params=[TLS_1_2, TLS_1_3])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """nginx takes many clients at once."""
    options = ServerOptions(minimum=request.param, maximum=request.param)
    with PROGRAMS["nginx"].serve(tmp_path, options) as running:
        yield running


def test_server_closes_at_every_octet_of_the_handshake(
    stack: Stack, application: StackClient, server: Server
) -> None:
    length = handshake_length(application, server)

    def outcome(cut: int) -> Reason | None:
        with interrupting_proxy(server.port, cut, lambda: False, reset=bool(cut % 2)) as port:
            return attempt(application, port)

    with nothing_leaks(stack), ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(outcome, range(length)))
        connect(application, server.port).close()
    wrong = {cut: reason for cut, reason in enumerate(outcomes[:-SHORTER]) if reason not in SERVER_LEFT}
    assert not wrong, f"of {length} octets"
    assert set(outcomes[-SHORTER:]) <= SERVER_LEFT | {None}


SHORTER = 24
"""Octets by which one handshake may be shorter than another: ECDSA signatures in DER vary."""


def test_broker_is_killed_at_every_step(stack: Stack, application: StackClient, server: Server) -> None:
    for after in steps(application, server):
        with interrupting_proxy(server.port, after, killing(stack.broker)) as port:
            reason = attempt(application, port)
        assert reason in BROKER_GONE | {None}, f"killed after {after} octets from the server"
        killing(stack.broker)()  # if the handshake ended before that octet
        stack.start_broker()
        connect(application, server.port).close()
    settled(stack)


def test_live_session_survives_a_broker_that_is_killed(
    stack: Stack, application: StackClient, server: Server
) -> None:
    session = connect(application, server.port)
    talk = server.talk(session)
    talk.seen()
    killing(stack.broker)()
    talk.echo(b"0123456789" * 1000)
    stack.start_broker()
    talk.echo(b"0123456789" * 1000)
    session.close()
    connect(application, server.port).close()


def test_agent_is_killed_at_every_step(stack: Stack, application: StackClient, server: Server) -> None:
    for after in steps(application, server):
        with interrupting_proxy(server.port, after, killing(stack.agent)) as port:
            attempt(application, port)
        killing(stack.agent)()
        stack.start_agent()
        with StackClient.of(stack) as reborn:
            connect(reborn, server.port).close()
    settled(stack)


def test_many_connects_at_once_on_one_token(stack: Stack, application: StackClient, server: Server) -> None:
    with nothing_leaks(stack), ThreadPoolExecutor(CROWD) as pool:
        outcomes = list(pool.map(lambda _: attempt(application, server.port), range(CROWD)))
    assert outcomes == [None] * CROWD
    connect(application, server.port).close()


def test_crowd_that_comes_too_late_is_refused_with_a_reason(
    stack: Stack, application: StackClient, server: Server
) -> None:
    """Deadlines that cannot all be kept: those that are not are told so in time."""
    started = time.monotonic()
    with nothing_leaks(stack), ThreadPoolExecutor(CROWD) as pool:
        outcomes = list(pool.map(lambda _: attempt(application, server.port, timeout=0.3), range(CROWD)))
    assert time.monotonic() - started < CONNECT_TIMEOUT
    assert set(outcomes) <= {None, Reason.TOKEN_BUSY, Reason.DEADLINE_EXCEEDED}
    connect(application, server.port).close()


# What the tests do ------------------------------------------------------------------------------------


def connect(application: StackClient, port: int, timeout: float = CONNECT_TIMEOUT) -> StackSession:
    """A full handshake."""
    return application.connect_to(
        port, token=TOKEN, server_name=SERVER_NAME, no_resumption=True, timeout=timeout
    )


def attempt(application: StackClient, port: int, timeout: float = CONNECT_TIMEOUT) -> Reason | None:
    """Why there was no session; None if there was one, which is closed again."""
    try:
        session = connect(application, port, timeout)
    except VmTokenError as error:
        return error.reason
    with contextlib.suppress(VmTokenError):  # what the fault left of it
        session.close()
    return None


def handshake_length(application: StackClient, server: Server) -> int:
    """Octets that the server sends until the client has its session."""
    session = connect(application, server.port)
    received = sum(step.received for step in session.info.timeline)
    session.close()
    return received


def steps(application: StackClient, server: Server) -> tuple[int, ...]:
    """Before the server's answer, in its first flight, at its end, and behind the handshake."""
    length = handshake_length(application, server)
    return (0, 1, length // 2, length - 100, length - 1, length)


def killing(child: Child | None) -> Callable[[], bool]:
    """Ends a program as a crash would, and lets the connection go on."""

    def kill() -> bool:
        assert child is not None
        child.kill()
        return True

    return kill


@dataclass(frozen=True)
class Footprint:
    """What a program holds open."""

    broker: int
    agent: int
    handshakes: int
    busy: bool

    @classmethod
    def of(cls, stack: Stack) -> Footprint:
        with stack.administration() as service:
            vm = service.ListVms(admin.ListVmsRequest()).vms[0]
            token = service.ListAllTokens(admin.ListAllTokensRequest()).tokens[0]
        return cls(descriptors(stack.broker), descriptors(stack.agent), vm.handshakes, token.busy)


def descriptors(child: Child | None) -> int:
    assert child is not None
    return len(list(Path(f"/proc/{child.pid}/fd").iterdir()))


@contextlib.contextmanager
def nothing_leaks(stack: Stack) -> Iterator[None]:
    """After the block, and some time, broker and agent hold what they held before it."""
    before = settled(stack)
    yield
    deadline = time.monotonic() + SETTLED_WITHIN
    while not fits(now := Footprint.of(stack), before):
        assert time.monotonic() < deadline, f"{before} became {now}"
        time.sleep(0.1)


def settled(stack: Stack) -> Footprint:
    """Wait until no handshake is under way and no card is busy."""
    deadline = time.monotonic() + SETTLED_WITHIN
    while (now := Footprint.of(stack)).handshakes or now.busy:
        assert time.monotonic() < deadline, f"still at work: {now}"
        time.sleep(0.1)
    return now


def fits(now: Footprint, before: Footprint) -> bool:
    return (
        not now.handshakes
        and not now.busy
        and now.broker <= before.broker + FD_SLACK
        and now.agent <= before.agent + FD_SLACK
    )
