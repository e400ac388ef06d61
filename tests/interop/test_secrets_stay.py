"""What crosses the link and what is in the agent's memory: the keys of open sessions, and no other secret.

The broker runs with a tap (tests/support/tapped_broker.py) that writes down every key derivation of the
real sessions. All of that but the key blocks must be found neither in a recording of the link nor in the
image of the agent's memory. Controls show that the search finds what is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import tapped_broker
from tests.support.kept_keys import pins, private_key_forms
from tests.support.pki import KeyKind
from tests.support.process_memory import MemoryImage
from tests.support.relays import Recording, recording_relay
from tests.support.servers import PROGRAMS, TLS_1_2, TLS_1_3, Server, ServerOptions
from tests.support.session_secrets import sorted_out
from tests.support.stack import Stack
from tests.support.stack_client import StackClient, StackSession
from tests.support.tapped_broker import derivations

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

KIND = KeyKind.ECDSA_P256


@dataclass(frozen=True)
class Setting:
    """A tapped broker, an agent behind a recorded link."""

    stack: Stack
    tap: Path
    link: Recording


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    tap = tmp_path_factory.mktemp("tap") / "derivations"
    tap.touch(mode=0o600)
    program = (*tapped_broker.PROGRAM, tap)
    with Stack.running((KIND,), without_agent=True, broker_program=program) as stack:
        stack.link = stack.home / "relay.sock"
        with recording_relay(stack.link, stack.broker_socket) as link:
            stack.start_agent()
            yield Setting(stack, tap, link)
            assert stack.agent is not None
            stack.agent.stop()


@dataclass(frozen=True)
class Sessions:
    """A full session and one that resumes it, both open, and what became known on the way."""

    server: Server
    tapped: frozenset[bytes]
    """What the broker derived and must keep."""

    key_blocks: frozenset[bytes]
    agent: MemoryImage

    @property
    def secrets(self) -> frozenset[bytes]:
        """With those that only the server derived."""
        return self.tapped | logged(self.server) - self.key_blocks


@pytest.fixture(scope="module", params=[TLS_1_2, TLS_1_3])
def sessions(
    request: pytest.FixtureRequest, setting: Setting, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sessions]:
    options = ServerOptions(minimum=request.param, maximum=request.param, keylog=True)
    directory = tmp_path_factory.mktemp("server")
    with PROGRAMS["python-ssl"].serve(directory, options) as server, StackClient.of(setting.stack) as client:
        full = used(client, server)
        resumed = used(client, server)
        assert (full.resumed, resumed.resumed) == (False, True)
        tapped, key_blocks = sorted_out(list(derivations(setting.tap)))
        assert setting.stack.agent is not None
        yield Sessions(server, tapped, key_blocks, MemoryImage.of(setting.stack.agent.pid))
        full.close()
        resumed.close()


def used(client: StackClient, server: Server) -> StackSession:
    """A session through which data went, and whose ticket came."""
    session = client.connect(server, KIND)
    talk = server.talk(session)
    talk.seen()
    talk.echo(b"0123456789abcdef" * 100)
    return session


def test_tap_knows_what_the_servers_key_log_says(sessions: Sessions) -> None:
    """The list of secrets is that of the real sessions; exporter secrets are derived when asked for."""
    derived = sessions.tapped | sessions.key_blocks
    assert logged(sessions.server) - logged(sessions.server, "EXPORTER_SECRET") <= derived


def test_search_finds_the_key_blocks_in_the_agent_and_on_the_link(
    sessions: Sessions, setting: Setting
) -> None:
    """Control: what must be there is found there."""
    assert len(sessions.key_blocks) >= 4  # two directions, two sessions
    assert all(sessions.agent.holds(key) for key in sessions.key_blocks)
    assert all(setting.link.holds(key) for key in sessions.key_blocks)


def test_search_finds_the_private_key_and_resumption_secrets_in_the_broker(
    sessions: Sessions, setting: Setting
) -> None:
    """Control: the card of this broker is a software element in its process."""
    assert setting.stack.broker is not None
    broker = MemoryImage.of(setting.stack.broker.pid)
    assert any(broker.holds(form) for form in private_key_forms(setting.stack.state, KIND.value))
    assert any(broker.holds(secret) for secret in sessions.secrets)


def test_no_secret_of_a_handshake_is_in_the_agents_memory(sessions: Sessions) -> None:
    assert len(sessions.secrets) > 10
    found = [secret for secret in sessions.secrets if sessions.agent.holds(secret)]
    assert not found, f"{len(found)} of {len(sessions.secrets)}"


def test_no_secret_of_a_handshake_crossed_the_link(sessions: Sessions, setting: Setting) -> None:
    assert len(setting.link) > 1000
    found = [secret for secret in sessions.secrets if setting.link.holds(secret)]
    assert not found, f"{len(found)} of {len(sessions.secrets)}"


def test_neither_private_key_nor_pin_left_the_broker(sessions: Sessions, setting: Setting) -> None:
    kept_pins = pins(setting.stack.state).values()
    assert len(kept_pins) == 2
    for form in (*private_key_forms(setting.stack.state, KIND.value), *kept_pins):
        assert not setting.link.holds(form)
        assert not sessions.agent.holds(form)


def logged(server: Server, label: str = "") -> frozenset[bytes]:
    """The secrets in a server's key log, in NSS's format: label, client random, secret."""
    lines = [line.split() for line in server.keylog.read_text().splitlines() if not line.startswith("#")]
    found = frozenset(bytes.fromhex(words[2]) for words in lines if words[0].startswith(label))
    assert found or label
    return found
