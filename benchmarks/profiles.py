"""Where the time goes, when a goal is missed."""

from __future__ import annotations

import cProfile
import functools
import io
import pstats
import time
from collections.abc import Iterator, Sequence

from benchmarks.bench import TOKEN, Bench
from benchmarks.echo import echo_stream
from benchmarks.engine import our_client, ssl_server
from benchmarks.local import LocalSession, client_context
from benchmarks.rows import in_turns, median
from tests.support.pki import SERVER_NAME, client_identity, server_identity
from tests.support.stack_client import StackClient
from vmtoken.tls.codes import NamedGroup
from vmtoken.v1 import tls_service_pb2 as pb

SHOWN = 25
"""Functions: the rest is noise."""


def report(bench: Bench) -> Iterator[str]:
    """The engine by function, a handshake through the stack by step, and what no step can be cheaper than."""
    yield _engine(bench)
    yield _steps(bench)
    yield _floor(bench)


def _engine(bench: Bench) -> str:
    files = server_identity().write(bench.directory, "profile-server")
    run = functools.partial(our_client, client_identity(), ssl_server(files), NamedGroup.X25519, "1.3")
    run()
    profile = cProfile.Profile()
    with profile:
        for _ in range(bench.rounds(200, 50)):
            run()
    text = io.StringIO()
    pstats.Stats(profile, stream=text).sort_stats("tottime").print_stats(SHOWN)
    return "Engine, TLS 1.3 full, server included:\n" + text.getvalue()


def _steps(bench: Bench) -> str:
    """Medians over full handshakes; the clock of the timeline starts when the request is in the agent."""
    timelines = _timelines(bench)
    lines = [_step(steps) for steps in zip(*timelines, strict=True)]
    return "Full TLS 1.3 handshake through the stack:\n" + "\n".join(lines)


def _step(steps: Sequence[pb.TimelineStep]) -> str:
    one = steps[0]
    at, queue, token = (
        median(getattr(step, f"{what}_microseconds") for step in steps) for what in ("at", "queue", "token")
    )
    times = f"at {at:>6,.0f} us: {queue:>5,.0f} in the queue, {token:>5,.0f} in the token"
    return f"  {one.name:<16} {times}; {one.apdus} APDUs, {one.sent} octets out, {one.received} in"


def _floor(bench: Bench) -> str:
    """A full handshake takes two exchanges with the broker; here is one with nothing behind it."""
    context = client_context(client_identity(), bench.directory)
    port = bench.servers["1.3"].port

    def local() -> float:
        started = time.perf_counter()
        LocalSession(context, port).close()
        return (time.perf_counter() - started) * 1e6

    with echo_stream(bench.directory) as stream:
        echo, handshake = (
            median(series) for series in in_turns([stream.round_trip, local], bench.rounds(300, 60))
        )
    return (
        f"One message there and back on an open gRPC stream, nothing behind it: {echo:,.0f} us\n"
        f"A whole full handshake of Python's ssl, in turns with it:             {handshake:,.0f} us"
    )


def _timelines(bench: Bench) -> list[Sequence[pb.TimelineStep]]:
    port = bench.servers["1.3"].port
    timelines = []
    with StackClient.of(bench.stack) as application:
        for _ in range(bench.rounds(200, 40)):
            session = application.connect_to(port, token=TOKEN, server_name=SERVER_NAME, no_resumption=True)
            timelines.append(session.info.timeline)
            session.close()
    return timelines
