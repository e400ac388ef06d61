"""The broker with keys that can only sign: what a guest gets, and that no signature is of its choice."""

from __future__ import annotations

import functools
import json
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dom0_broker.audit import verify
from dom0_broker.backends.base import NOTHING_KEPT, Kept
from tests.fakes.signing_key import SoftwareKey
from tests.support.broker_app import WEB01, Cards, Stream, agent_of, broker_config, populate, running
from tests.support.memory import PythonServer, python_context
from tests.support.pki import SERVER_NAME, Authority, Identity, KeyKind, client_identity, pki, server_identity
from tests.support.signing_keys import PKCS1
from tests.support.token_sessions import SPEAKS, TLS_1_2, TLS_1_3, VERSIONS
from tests.support.tokens import engine_token
from vmtoken.errors import TokenUnavailable
from vmtoken.rpc.convert import key_block_from_pb
from vmtoken.secret import SecretBytes
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.events import TicketReceived
from vmtoken.token import HandshakeToken
from vmtoken.v1 import token_pb2
from vmtoken.v1 import token_service_pb2 as pb


class Keys(Cards):
    """The backend of keys in memory: `make` gives a fresh one each time that a token is opened."""

    def __init__(self, make: Callable[[], SoftwareKey] = lambda: SoftwareKey(client_identity())) -> None:
        super().__init__()
        self.opened: list[SoftwareKey] = []
        self._make = make

    def open(  # type: ignore[override]
        self, locator: str, user_pin: SecretBytes | None, kept: Kept = NOTHING_KEPT
    ) -> HandshakeToken:
        self.opened.append(self._make())
        return engine_token(self.opened[-1])

    @property
    def signatures(self) -> int:
        return sum(key.signatures for key in self.opened)


async def relay(
    stream: Stream, server: PythonServer, change: Callable[[bytes], bytes] = lambda records: records
) -> pb.HandshakeResponse:
    """What an agent does; a hostile one may `change` what the server sends."""
    response = await stream.start(SERVER_NAME)
    for _ in range(4):
        if response.WhichOneof("step") != "flight":
            break
        response = await stream.records(change(server.receive(response.flight.records)))
    return response


def events(audit: Path) -> list[str]:
    verify(audit)
    said = [str(json.loads(line)["event"]) for line in audit.read_text().splitlines()]
    return [event for event in said if event.startswith("handshake")]


@pytest.mark.parametrize("version", VERSIONS)
async def test_full_session_costs_one_signature_and_a_resumed_one_none(
    tmp_path: Path, version: ssl.TLSVersion
) -> None:
    config = broker_config(tmp_path, policy="allow vm=web01 server=server.example assurance=card-signature")
    populate(config, WEB01, tokens={"web": [WEB01]})
    keys, context = Keys(), python_context(tmp_path, version=version)
    results: list[pb.HandshakeResult] = []
    async with running(config, keys) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        while not results or not results[-1].resumed:  # the token is given its ticket beside the next start
            server = PythonServer(context)
            results.append((await relay(stream, server)).result)
            if version is TLS_1_3:
                await give_ticket(stream, results[-1], server.receive(results[-1].records))
            assert len(results) < 10
    for result in results:
        assert result.assurance == token_pb2.ASSURANCE_CARD_SIGNATURE
        assert result.key_block.version == SPEAKS[version]
        assert result.client_certificate_sent
    assert keys.signatures == len(results) - 1
    assert events(config.audit_path) == ["handshake-allowed", "handshake-complete"] * len(results)


async def give_ticket(stream: Stream, result: pb.HandshakeResult, after: bytes) -> None:
    guest = DelegatedConnection(key_block_from_pb(result.key_block))
    guest.receive_data(after)
    event = guest.next_event()
    assert isinstance(event, TicketReceived)
    ticket = pb.SessionTicket(session_id=result.session_id, message=bytes(event.message))
    assert (await stream.step(pb.HandshakeRequest(ticket=ticket))).ticket.accepted


def stranger() -> Identity:
    return Authority.self_signed("somebody else").issue()


def other_server() -> Identity:
    return pki().intermediate.issue("other.example")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("policy", "identity"),
    [
        ("deny vm=* server=*", server_identity),
        ("allow vm=web01 server=other.example", server_identity),
        ("allow vm=* server=*", stranger),
        ("allow vm=* server=*", other_server),
    ],
    ids=["denied", "allowed elsewhere", "unknown CA", "another name"],
)
async def test_guest_that_talks_to_whom_it_may_not_gets_no_signature(
    tmp_path: Path, version: ssl.TLSVersion, policy: str, identity: Callable[[], Identity]
) -> None:
    config = broker_config(tmp_path, policy=policy)
    populate(config, WEB01, tokens={"web": [WEB01]})
    keys, server = Keys(), PythonServer(python_context(tmp_path, identity(), version=version))
    async with running(config, keys) as app, agent_of(app, WEB01) as stub:
        failure = (await relay(Stream(stub), server)).failure
    assert failure.error.reason in ("POLICY_DENIED", "SERVER_CERTIFICATE_INVALID")
    assert keys.opened
    assert keys.signatures == 0
    server.receive(failure.records)
    assert "alert" in str(server.failure).lower()


@pytest.mark.parametrize("version", VERSIONS)
async def test_guest_that_changes_any_record_gets_no_session(tmp_path: Path, version: ssl.TLSVersion) -> None:
    """One bit of the server's flight. In TLS 1.2 its CertificateRequest is vouched for in Finished only."""
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    keys, context = Keys(), python_context(tmp_path, version=version)
    async with running(config, keys) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        for place in range(0, 1500, 50):
            response = await relay(stream, PythonServer(context), functools.partial(flipped, place))
            assert not response.HasField("result")
            if response.HasField("flight"):
                await stream.call.write(pb.HandshakeRequest(abort=pb.HandshakeAbort()))
    if version is TLS_1_3:
        assert keys.signatures == 0


def flipped(place: int, records: bytes) -> bytes:
    """The first flight with a bit flipped; what is shorter comes later, and is as it is."""
    if len(records) < 500:
        return records
    place = min(place, len(records) - 1)
    return records[:place] + bytes([records[place] ^ 1]) + records[place + 1 :]


async def test_flight_of_an_earlier_handshake_brings_no_signature(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    keys, flights = Keys(), list[bytes]()
    async with running(config, keys) as app, agent_of(app, WEB01) as stub:
        stream, server = Stream(stub), PythonServer(python_context(tmp_path, version=TLS_1_2))
        assert (await relay(stream, server, lambda flight: flights.append(flight) or flight)).result.token
        await stream.start(SERVER_NAME, no_resumption=True)
        replayed = await stream.records(flights[0])
    assert replayed.failure.error.reason == "SERVER_CERTIFICATE_INVALID"
    assert keys.signatures == 1


async def test_key_that_is_lost_in_the_middle_is_opened_by_the_next_handshake(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    pulls = iter([True])

    def remove() -> None:
        if next(pulls, False):
            raise TokenUnavailable("The card was removed.")

    keys = Keys(lambda: SoftwareKey(client_identity(), before_signing=remove))
    async with running(config, keys) as app, agent_of(app, WEB01) as stub:
        stream = Stream(stub)
        failure = (await relay(stream, PythonServer(python_context(tmp_path)))).failure
        again = await relay(stream, PythonServer(python_context(tmp_path)))
    assert (failure.error.reason, failure.error.message) == ("TOKEN_UNAVAILABLE", "The card was removed.")
    assert again.HasField("result")
    assert [key.closed for key in keys.opened] == [1, 1]
    assert Counter(events(config.audit_path)) == {
        "handshake-allowed": 2,
        "handshake-failed": 1,
        "handshake-complete": 1,
    }


async def test_server_that_demands_tls13_of_a_key_that_cannot(tmp_path: Path) -> None:
    config = broker_config(tmp_path)
    populate(config, WEB01, tokens={"web": [WEB01]})
    keys = Keys(lambda: SoftwareKey(client_identity(KeyKind.RSA_2048), PKCS1))
    async with running(config, keys) as app, agent_of(app, WEB01) as stub:
        server = PythonServer(python_context(tmp_path, version=TLS_1_3))
        failure = (await relay(Stream(stub), server)).failure
    assert failure.error.reason == "TLS_VERSION_UNSUPPORTED"
    assert "can only sign PKCS#1 v1.5" in failure.error.message
