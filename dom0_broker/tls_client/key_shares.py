"""Ephemeral keys made ahead, while nobody waits for them."""

from __future__ import annotations

from collections.abc import Sequence

from vmtoken.tls.codes import NamedGroup
from vmtoken.tls.config import DEFAULT_KEY_SHARES
from vmtoken.tls.key_exchange import KeyExchange, generate


class KeyShareStock:
    """The shares of one handshake at most; what is taken is gone, so that none is used twice."""

    def __init__(self) -> None:
        self._ready: tuple[KeyExchange, ...] | None = None

    def prepare(self) -> None:
        """Have shares of the default groups ready."""
        if self._ready is None:
            self._ready = generate(DEFAULT_KEY_SHARES)

    def take(self, groups: Sequence[NamedGroup]) -> tuple[KeyExchange, ...]:
        """Shares of these groups: the ready ones if they are of them, else fresh ones."""
        if self._ready is None or tuple(groups) != DEFAULT_KEY_SHARES:
            return generate(groups)
        ready, self._ready = self._ready, None
        return ready
