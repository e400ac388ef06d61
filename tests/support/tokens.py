"""Tokens that run handshakes, each kind as the contract suite wants it: cards, and keys with the engine."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dom0_broker.engine import EngineToken
from tests.support.cards import KINDS
from tests.support.pcsc import PCSC_KINDS, PCSC_PIV_KINDS
from tests.support.pki import Identity, server_identity
from tests.support.signing_keys import SIGNING_KEYS, KeyHolder, SigningKeyKind
from vmtoken.token import HandshakeToken, SigningKey, Traffic


class TokenHolder(Protocol):
    """What is opened as a token: it has an identity and trusts the root of the test servers."""

    @property
    def identity(self) -> Identity:
        """Whose certificate and key it holds."""
        ...

    def token(self) -> HandshakeToken:
        """Open it; whoever asked closes it."""
        ...


@dataclass(frozen=True)
class TokenKind:
    """A kind of token that can TLS 1.2 and 1.3."""

    name: str
    holder: Callable[[Path], AbstractContextManager[TokenHolder]]
    """Called with an empty directory of its own."""

    counts_traffic: bool = True
    """False for tokens without APDUs."""


def engine_token(key: SigningKey, traffic: Callable[[], Traffic] | None = None) -> EngineToken:
    """The token that the engine makes of a key."""
    anchors = [server_identity().root_der]
    return EngineToken(key, anchors=anchors, serial="01 23", application="key in memory", traffic=traffic)


@dataclass(frozen=True)
class _WithEngine:
    keys: KeyHolder

    @property
    def identity(self) -> Identity:
        return self.keys.identity

    def token(self) -> EngineToken:
        return engine_token(self.keys.key())


@contextlib.contextmanager
def _with_engine(kind: SigningKeyKind, directory: Path) -> Iterator[_WithEngine]:
    with kind.holder(directory) as keys:
        yield _WithEngine(keys)


TOKENS = (
    *(TokenKind(kind.name, kind.card) for kind in (*KINDS, *PCSC_KINDS, *PCSC_PIV_KINDS)),
    *(
        TokenKind(f"engine, {kind.name}", functools.partial(_with_engine, kind), counts_traffic=False)
        for kind in SIGNING_KEYS
        if kind.tls13
    ),
)
