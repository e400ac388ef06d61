"""A token in memory that runs many handshakes at once, as no card does: the broker's engine and a key."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import replace

from dom0_broker.engine import EngineHandshake
from dom0_broker.tls_client.handshake import Client
from dom0_broker.tls_client.key_shares import KeyShareStock
from dom0_broker.tls_client.sessions import SessionTable
from tests.fakes.signing_key import SoftwareKey
from tests.support.memory import trust
from tests.support.pki import Identity
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.config import Credential
from vmtoken.token import HandshakeStart, HandshakeStep


class EngineToken:
    """Holds an identity, trusts its root, and resumes the newest session with a server."""

    def __init__(self, identity: Identity, schemes: Sequence[SignatureScheme] | None = None) -> None:
        """`schemes` are those that the key can do, None all that fit it."""
        key = SoftwareKey(identity, schemes)
        self._sessions = SessionTable(os.urandom)
        self._client = Client(
            Credential(identity.chain_der, key.schemes),
            key.sign,
            trust(identity),
            self._sessions,
            KeyShareStock(),
            os.urandom,
        )
        self._names: dict[bytes, bytes] = {}
        self._newest: dict[str, bytes] = {}

    def start(self, start: HandshakeStart, *, no_resumption: bool = False) -> EngineHandshake:
        resumption = None if no_resumption else self._newest.pop(start.server_name, None)
        now = replace(start, time=int(time.time()), resumption=resumption)
        return EngineHandshake(self._client, now, authorize=lambda server: None)

    def step(self, name: bytes, handshake: EngineHandshake, records: bytes) -> HandshakeStep:
        """Take the server's records; `name` is the session's, in case that it comes to be."""
        step = handshake.process(records)
        if step.result is not None:
            self._names[name] = step.result.session
            self.accept_ticket(name, b"")  # of TLS 1.2, where it came inside the handshake
        return step

    def accept_ticket(self, name: bytes, message: bytes) -> bool:
        """Whether there is a session to resume; without `message` it is one of TLS 1.2."""
        if name not in self._names:
            return False
        resumption = self._sessions.accept_ticket(self._names[name], message)
        if resumption is not None:
            self._newest[resumption.server.server_name] = resumption.handle
        return resumption is not None
