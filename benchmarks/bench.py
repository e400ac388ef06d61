"""What the sections share: how much effort to spend, and the programs under test."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.support.pki import KeyKind
from tests.support.servers import PROGRAMS, TLS_1_2, TLS_1_3, Server, ServerOptions
from tests.support.stack import Stack

TOKEN = KeyKind.ECDSA_P256.value
VERSIONS = (TLS_1_3, TLS_1_2)
REQUEST = b"GET /small HTTP/1.1\r\nHost: server.example\r\n\r\n"
"""A small round trip: in TLS 1.3 a client is done before the server has looked at its certificate."""

_LIMITS = """
[limits]
vm_handshakes = 2048
vm_streams = 4096
"""
_AGENT_LIMITS = """
sessions_per_user = 2048
calls_per_user = 4096
[log]
level = "warning"
"""


@dataclass
class Bench:
    """One run. Programs are started when a section first wants them, and stopped with `programs`."""

    directory: Path
    quick: bool
    programs: ExitStack

    def rounds(self, full: int, quick: int) -> int:
        """How often to repeat something."""
        return quick if self.quick else full

    @functools.cached_property
    def stack(self) -> Stack:
        """Broker, agent and one card with an ECDSA P-256 key."""
        stack = Stack.running(broker_settings=_LIMITS, agent_settings=_AGENT_LIMITS)
        return self.programs.enter_context(stack)

    @functools.cached_property
    def servers(self) -> dict[str, Server]:
        """nginx for each version; the same one for us and for the yardstick."""
        return {version: self._server(version) for version in VERSIONS}

    def _server(self, version: str) -> Server:
        options = ServerOptions(minimum=version, maximum=version)
        directory = self.directory / f"nginx-{version}"
        server = self.programs.enter_context(PROGRAMS["nginx"].serve(directory, options))
        (directory / "small").write_bytes(b"0123456789abcdef")
        return server
