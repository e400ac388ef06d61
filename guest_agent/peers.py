"""Which local user an application's socket belongs to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from vmtoken.transport.unix import peer_credentials


@dataclass(frozen=True, slots=True)
class LocalUser:
    """A user of this machine, as the kernel knows it. Sessions belong to a user."""

    uid: int

    def __str__(self) -> str:
        return f"uid {self.uid}"


def local_user(transport: asyncio.BaseTransport) -> LocalUser:
    """The user that connected to a Unix socket."""
    return LocalUser(peer_credentials(transport).uid)
