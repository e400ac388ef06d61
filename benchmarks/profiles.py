"""Where the time goes, when a goal is missed."""

from __future__ import annotations

import cProfile
import functools
import io
import pstats
from collections import defaultdict
from collections.abc import Iterator

from benchmarks.bench import TOKEN, Bench
from benchmarks.engine import our_client, ssl_server
from benchmarks.rows import median
from tests.support.pki import SERVER_NAME, client_identity, server_identity
from tests.support.stack_client import StackClient
from vmtoken.tls.codes import NamedGroup

SHOWN = 25
"""Functions: the rest is noise."""


def report(bench: Bench) -> Iterator[str]:
    """The engine by function, and a handshake through the stack by step."""
    yield _engine(bench)
    yield _steps(bench)


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
    """Medians over full handshakes; the clock starts when the request is in the agent."""
    at: dict[str, list[float]] = defaultdict(list)
    with StackClient.of(bench.stack) as application:
        for _ in range(bench.rounds(100, 20)):
            session = application.connect_to(
                bench.servers["1.3"].port, token=TOKEN, server_name=SERVER_NAME, no_resumption=True
            )
            for number, step in enumerate(session.info.timeline):
                cost = f"{step.apdus} APDUs of {step.apdu_octets} octets"
                key = f"{number}. {step.name}: {step.sent} out, {step.received} in, {cost}"
                at[key.split(":")[0] + " at"].append(step.at_microseconds)
                at[key.split(":")[0] + " token"].append(step.token_microseconds)
                at[key.split(":")[0] + " queue"].append(step.queue_microseconds)
            session.close()
    lines = [f"  {name:<32}{median(series):>10,.0f} us" for name, series in at.items()]
    return "Full TLS 1.3 handshake through the stack:\n" + "\n".join(lines)
