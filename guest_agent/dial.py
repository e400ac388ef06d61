"""TCP to the first address of a name that answers (RFC 8305, Happy Eyeballs).

asyncio's own can lose a socket when it is cancelled, and a handshake that is refused cancels it often.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Iterable
from typing import Any, Final

from vmtoken.errors import ServerUnreachable

ATTEMPT_DELAY: Final = 0.25
"""Seconds that an address may take before the next is tried as well (RFC 8305 section 5)."""

_Address = tuple[socket.AddressFamily, Any]


async def dial(host: str, port: int) -> socket.socket:
    """A connected socket that does not block. Raises `ServerUnreachable`."""
    addresses = await _addresses(host, port)
    try:
        return await _first_to_connect(addresses)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise ServerUnreachable(
            f"TCP to {host} port {port} failed: {why}.", host=host, port=str(port)
        ) from error


async def _addresses(host: str, port: int) -> list[_Address]:
    """Families alternate, the resolver's favourite first (RFC 8305 section 4)."""
    name = host.encode("ascii")  # octets keep Python's own IDNA away from it
    try:
        infos = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        infos = await _resolve(host, port)
    families = dict.fromkeys(family for family, *_ in infos)
    sorted_by_family = ([(info[0], info[4]) for info in infos if info[0] == family] for family in families)
    turns = itertools.zip_longest(*sorted_by_family)
    return [address for turn in turns for address in turn if address is not None]


async def _resolve(host: str, port: int) -> list[tuple[Any, ...]]:
    loop, name = asyncio.get_running_loop(), host.encode("ascii")
    try:
        return list(await loop.getaddrinfo(name, port, type=socket.SOCK_STREAM))
    except socket.gaierror as error:
        message = f"The name '{host}' does not resolve: {error.strerror}."
        raise ServerUnreachable(message, host=host, port=str(port)) from error


async def _first_to_connect(addresses: list[_Address]) -> socket.socket:
    """The first that answers; raises the `OSError` of the last when none does."""
    if len(addresses) == 1:
        return await _attempt(addresses[0])
    attempts: list[asyncio.Task[socket.socket]] = []
    winner: asyncio.Task[socket.socket] | None = None
    try:
        for address in addresses:
            attempts.append(asyncio.create_task(_attempt(address)))
            winner = await _winner(attempts, ATTEMPT_DELAY)
            if winner is not None:
                return winner.result()
        winner = await _winner(attempts, None)
        return winner.result() if winner is not None else attempts[-1].result()
    finally:
        _give_up(attempt for attempt in attempts if attempt is not winner)


async def _winner(
    attempts: list[asyncio.Task[socket.socket]], patience: float | None
) -> asyncio.Task[socket.socket] | None:
    """Wait until one has connected, all have failed, or the patience is at its end."""
    pending = {attempt for attempt in attempts if not attempt.done()}
    while pending:
        done, pending = await asyncio.wait(pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        connected = [attempt for attempt in done if attempt.exception() is None]
        if connected:
            return connected[0]
        if not done:
            break
    return None


async def _attempt(address: _Address) -> socket.socket:
    family, where = address
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, where)
    except BaseException:
        connection.close()
        raise
    return connection


def _give_up(attempts: Iterable[asyncio.Task[socket.socket]]) -> None:
    """Without waiting; a connection that came about all the same is closed."""
    for attempt in attempts:
        attempt.cancel()
        attempt.add_done_callback(_close_result)


def _close_result(attempt: asyncio.Task[socket.socket]) -> None:
    """Close what a task has connected, if it has."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
