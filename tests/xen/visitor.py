"""An application of a VM that does what it is told: opens sessions, asks servers whom they see, takes times.

A program for a machine of the lab, with the path of the agent's socket. It reads orders, a line of JSON each,
and answers each with a number and JSON; tests/xen/residents.py is its other end.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from guest_agent.client import AgentClient, Session
from vmtoken.errors import VmTokenError
from vmtoken.v1 import tls_service_pb2 as pb
from vmtoken.v1 import token_pb2

WITHIN = 60.0
"""Seconds for anything that is waited for: fifty times what it takes under emulation."""

_VERSIONS = {"1.2": token_pb2.TLS_VERSION_1_2, "1.3": token_pb2.TLS_VERSION_1_3}


class Visitor:
    """Has sessions, by number."""

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent
        self._sessions: list[Session] = []

    async def do(self, order: str, **options: Any) -> dict[str, Any]:
        """Carry an order out; what came of it."""
        try:
            async with asyncio.timeout(10 * WITHIN):
                return dict(await getattr(self, f"do_{order}")(**options))
        except VmTokenError as error:
            return {"error": type(error).__name__, "message": error.message}

    async def do_tokens(self) -> dict[str, Any]:
        """The names of this VM's tokens."""
        return {"tokens": [token.name for token in await self._agent.tokens(WITHIN)]}

    async def do_open(self, **wish: Any) -> dict[str, Any]:
        """Open a session."""
        session = await self._agent.connect(_request(**wish), WITHIN)
        self._sessions.append(session)
        return {
            "number": len(self._sessions) - 1,
            "resumed": session.info.resumed,
            "session_id": session.info.broker_session_id.hex(),
        }

    async def do_ask(self, number: int) -> dict[str, Any]:
        """What the server at the other end of a session says that it sees."""
        session = self._sessions[number]
        await session.write(b"GET /seen HTTP/1.1\r\nHost: server\r\n\r\n", WITHIN)
        return {"page": await _page(session)}

    async def do_close(self, number: int) -> dict[str, Any]:
        """Close a session, not before the next one can resume it."""
        await self._sessions[number].close(await_ticket=True)
        return {}

    async def do_time_handshakes(self, count: int, parallel: int, **wish: Any) -> dict[str, Any]:
        """Milliseconds of each of `count` handshakes, so many at once, and of all; how many resumed."""
        request, turns, taken = _request(**wish), asyncio.Semaphore(parallel), list[float]()
        resumed = 0

        async def one() -> None:
            nonlocal resumed
            async with turns:
                began = time.perf_counter()
                session = await self._agent.connect(request, WITHIN)
                taken.append(1e3 * (time.perf_counter() - began))
                resumed += session.info.resumed
                await session.close(await_ticket=not request.no_resumption)

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(count)))
        return {"each": taken, "all": 1e3 * (time.perf_counter() - began), "resumed": resumed}

    async def do_time_calls(self, count: int) -> dict[str, Any]:
        """Milliseconds of each of `count` questions to the broker."""
        taken = []
        for _ in range(count):
            began = time.perf_counter()
            await self._agent.tokens(WITHIN)
            taken.append(1e3 * (time.perf_counter() - began))
        return {"each": taken}


def _request(
    host: str, port: int, server_name: str, version: str = "", token: str = "", no_resumption: bool = False
) -> pb.ConnectRequest:
    return pb.ConnectRequest(
        host=host,
        port=port,
        server_name=server_name,
        token=token,
        min_version=_VERSIONS.get(version, token_pb2.TLS_VERSION_UNSPECIFIED),
        max_version=_VERSIONS.get(version, token_pb2.TLS_VERSION_UNSPECIFIED),
        no_resumption=no_resumption,
    )


async def _page(session: Session) -> str:
    """The body of an answer whose header says how long it is, or that ends with the connection."""
    answer = b""
    while not _is_whole(answer):
        data = await session.read(timeout=WITHIN)
        if not data:
            break
        answer += data
    return answer.partition(b"\r\n\r\n")[2].decode()


def _is_whole(answer: bytes) -> bool:
    head, blank, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(blank) and length is not None and len(body) >= int(length[1])


async def _orders() -> AsyncIterator[dict[str, Any]]:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        yield json.loads(line)


async def main() -> None:
    """Answer until there are no more orders."""
    async with AgentClient(Path(sys.argv[1])) as agent:
        visitor = Visitor(agent)
        number = 0
        async for order in _orders():
            number += 1
            print(f"answer {number}:", json.dumps(await visitor.do(**order)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
