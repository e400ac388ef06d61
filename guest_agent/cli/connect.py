"""`vmtoken connect`: a TLS session between standard input and standard output, like `openssl s_client`."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from guest_agent.cli.standard_streams import StandardInput, write_output
from guest_agent.cli.summary import as_json, as_text
from guest_agent.cli.trace import handshake_messages
from guest_agent.client import AgentClient, Tunnel
from vmtoken.errors import VmTokenError
from vmtoken.v1 import tls_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class ConnectOptions:
    """What the command line asked for."""

    socket: Path
    request: pb.ConnectRequest
    timeout: float
    """Seconds for a handshake."""

    messages: bool
    resume: bool
    as_json: bool
    quiet: bool


async def connect(options: ConnectOptions) -> int:
    """Run the command; 0 when the session ended well. Raises `VmTokenError`."""
    async with AgentClient(options.socket) as agent:
        if options.resume:
            await _open_and_close(agent, options)
        tunnel = await agent.tunnel(options.request, options.timeout)
        _report(tunnel.info, options)
        await _converse(tunnel)
    if not options.quiet:
        print("closed", file=sys.stderr)
    return 0


async def _open_and_close(agent: AgentClient, options: ConnectOptions) -> None:
    """The session that the next one stands on."""
    session = await agent.connect(options.request, options.timeout)
    _report(session.info, options)
    await session.close(await_ticket=True)
    if not options.quiet:
        print("drop connection and then reconnect", file=sys.stderr)


def _report(info: pb.SessionInfo, options: ConnectOptions) -> None:
    if options.messages:
        print(handshake_messages(info), file=sys.stderr)
    if options.as_json:
        print(as_json(info), file=sys.stderr)
    elif not options.quiet:
        print(as_text(info), file=sys.stderr, flush=True)


async def _converse(tunnel: Tunnel) -> None:
    """Both directions until the server ends its half; the end of our input ends ours."""
    sending = asyncio.create_task(_send_input(tunnel))
    try:
        while data := await tunnel.read():
            await write_output(data)
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, VmTokenError):
            await sending  # why the session ended, reading said already
        tunnel.cancel()


async def _send_input(tunnel: Tunnel) -> None:
    with StandardInput() as standard_input:
        while data := await standard_input.read():
            await tunnel.write(data)
    await tunnel.end_write()
