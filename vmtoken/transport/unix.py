"""Unix sockets: listening with the right permissions, and who is at the other end."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_PATH = 107
"""Octets of a Unix socket's path on Linux: `sun_path` has 108, one of them is the final zero (unix(7))."""


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """The process at the other end of a Unix socket, as the kernel knows it (SO_PEERCRED, unix(7))."""

    pid: int
    uid: int
    gid: int


def peer_credentials(transport: asyncio.BaseTransport) -> PeerCredentials:
    """Who connected; taken by the kernel at the time of connect()."""
    connection = transport.get_extra_info("socket")
    octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return PeerCredentials(*struct.unpack("3i", octets))


async def listen(path: Path, mode: int, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Server:
    """Serve on a Unix socket at `path` with permissions `mode`; a stale socket there is replaced.

    Raises `OSError` when another process serves there, when something that is not a socket is
    in the way, or when the path is longer than `MAX_PATH`.
    """
    if len(os.fsencode(path)) > MAX_PATH:
        raise OSError(f"{path}: longer than {MAX_PATH} octets, the limit for a Unix socket")
    remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listener.fileno(), mode)  # before bind: the socket never has wider permissions
        listener.bind(os.fspath(path))
        os.chmod(path, mode)  # the umask narrowed what fchmod asked for
        return await asyncio.get_running_loop().create_unix_server(protocol, sock=listener, backlog=256)
    except BaseException:
        listener.close()
        raise


def remove_stale(path: Path) -> None:
    """Remove a socket that nobody serves. Raises `FileExistsError` for anything else that is in the way."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path}: in the way of a socket, and not a socket itself")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise FileExistsError(f"{path}: another process is serving there")
