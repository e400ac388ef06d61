"""The EAP-TLS method of the element, packet by packet."""

from __future__ import annotations

import contextlib
import ssl
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dom0_broker.backends.software.backend import SoftwareBackend
from tests.support.cards import NAME, PINS, SEALING_KEY, Card
from tests.support.memory import PythonServer, python_context
from tests.support.pki import NOW, SERVER_NAME
from vmtoken.cards import commands
from vmtoken.cards.codes import Export, FailureCode, Mode, PinReference
from vmtoken.cards.profile import FailureExport, ResultExport, ServerExport, SessionState, StartParameters
from vmtoken.cards.records import RecordExchange
from vmtoken.cards.session import CardSession
from vmtoken.eap.eap_tls import EapTlsMessage
from vmtoken.eap.packet import EapCode, EapPacket, EapType
from vmtoken.iso7816.channel import CardChannel
from vmtoken.iso7816.status import StatusWordError
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.tls.key_block import KeyBlock

TIME = int(NOW.timestamp())
TOKEN = StartParameters(TIME, Mode.TOKEN, SERVER_NAME)
PEER = StartParameters(TIME, Mode.EAP_PEER, SERVER_NAME)
IDENTITY_REQUEST = bytes.fromhex("01 07 00 05 01")
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.fixture
def channel(card: Card) -> CardChannel:
    """Application selected, user PIN given, identity chosen."""
    session = CardSession.open(card.connect())
    session.verify_pin(PinReference.USER, PINS.user)
    session.use_preferred_identity()
    return session.channel


@pytest.fixture(params=[TLS_1_2, TLS_1_3], ids=["TLS 1.2", "TLS 1.3"])
def context(request: pytest.FixtureRequest, tmp_path: Path) -> ssl.SSLContext:
    return python_context(tmp_path, version=request.param)


def handshake(
    channel: CardChannel, context: ssl.SSLContext, parameters: StartParameters = TOKEN
) -> PythonServer:
    """Run one to the end; the server is done then."""
    records = RecordExchange(channel)
    server = PythonServer(context)
    to_server = records.start(parameters)
    while not server.is_ready:
        to_client = server.receive(to_server)
        assert server.failure is None
        if to_client and not (server.is_ready and context.minimum_version is TLS_1_3):
            to_server = records.exchange(to_client)
    return server


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(StatusWordError) as caught:
        action()
    return str(caught.value.status)


def export(channel: CardChannel, index: Export) -> bytes:
    return commands.exported_parameter(channel, index)


def test_key_block_is_read_once(channel: CardChannel, context: ssl.SSLContext) -> None:
    handshake(channel, context)
    key_block = KeyBlock.decode(export(channel, Export.KEY_BLOCK))
    assert key_block.client_sequence == (0 if key_block.version is ProtocolVersion.TLS_1_3 else 1)
    assert refused(lambda: export(channel, Export.KEY_BLOCK)) == "6985"
    assert refused(lambda: export(channel, Export.RESULT)) == "6985"


def test_result_holds_state_and_key_block_and_is_read_once(
    channel: CardChannel, context: ssl.SSLContext
) -> None:
    handshake(channel, context)
    state = SessionState.decode(export(channel, Export.SESSION_STATE))
    result = ResultExport.decode(export(channel, Export.RESULT))
    assert result.facts == state.facts
    assert result.key_block.cipher_suite is state.cipher_suite
    assert refused(lambda: export(channel, Export.RESULT)) == "6985"
    assert refused(lambda: export(channel, Export.KEY_BLOCK)) == "6985"
    assert SessionState.decode(export(channel, Export.SESSION_STATE)) == state


def test_nothing_is_exported_before_its_time(channel: CardChannel, tmp_path: Path) -> None:
    everything = [index for index in Export if index is not Export.PEER_ID]
    assert {refused(lambda index=index: export(channel, index)) for index in everything} == {"6985"}
    records = RecordExchange(channel)
    hello = records.start(TOKEN)
    assert {refused(lambda index=index: export(channel, index)) for index in everything} == {"6985"}
    server = PythonServer(python_context(tmp_path, version=TLS_1_2))
    assert records.exchange(server.receive(hello))
    assert ServerExport.decode(export(channel, Export.SERVER)).complete is False
    early = [Export.CIPHER_SUITE, Export.KEY_BLOCK, Export.SESSION_STATE, Export.RESULT, Export.FAILURE]
    assert {refused(lambda index=index: export(channel, index)) for index in early} == {"6985"}


def test_server_is_exported_in_parts_and_as_a_whole(channel: CardChannel, context: ssl.SSLContext) -> None:
    handshake(channel, context)
    server = ServerExport.decode(export(channel, Export.SERVER))
    assert server.complete
    assert export(channel, Export.SERVER_ID) == SERVER_NAME.encode()
    assert export(channel, Export.SERVER_CERTIFICATE) == server.leaf
    assert export(channel, Export.SERVER_PATH) == b"".join(server.spki_sha256)
    assert export(channel, Export.PEER_ID) == NAME.encode()


@pytest.mark.parametrize("wipe", ["reset", "select", "start", "identity", "identity request", "card reset"])
def test_key_block_that_nobody_read_is_wiped(
    channel: CardChannel, context: ssl.SSLContext, wipe: str
) -> None:
    handshake(channel, context)
    match wipe:
        case "reset":
            commands.reset_state(channel)
        case "select":
            commands.select(channel)
        case "start":
            RecordExchange(channel).start(TOKEN)
        case "identity":
            commands.set_identity(channel, NAME.encode())
        case "identity request":
            commands.process_eap(channel, IDENTITY_REQUEST)
        case "card reset":
            channel.reset()
    assert refused(lambda: export(channel, Export.KEY_BLOCK)) in ("6985", "6303")


def test_token_has_no_msk(channel: CardChannel, context: ssl.SSLContext) -> None:
    handshake(channel, context)
    assert refused(lambda: commands.session_key(channel)) == "6985"


def test_peer_has_no_key_block(channel: CardChannel, tmp_path: Path) -> None:
    handshake(channel, python_context(tmp_path, version=TLS_1_2), PEER)
    assert len(commands.session_key(channel)) == 64
    assert len(commands.session_key(channel, 128)) == 128
    for index in (Export.KEY_BLOCK, Export.RESULT, Export.SESSION_STATE):
        assert refused(lambda index=index: export(channel, index)) == "6985"


def test_peer_of_tls13_waits_for_the_closing_octet(channel: CardChannel, tmp_path: Path) -> None:
    records = RecordExchange(channel)
    server = PythonServer(python_context(tmp_path, version=TLS_1_3))
    tickets = server.receive(records.exchange(server.receive(records.start(PEER))))
    assert refused(lambda: commands.session_key(channel)) == "6985"
    assert refused(lambda: commands.process_eap(channel, bytes.fromhex("03 40 00 04"))) == "7000"
    assert records.exchange(tickets + server.send(b"\x00")) == b""
    assert len(commands.session_key(channel)) == 64
    assert commands.process_eap(channel, bytes.fromhex("03 40 00 04")) == b""
    assert commands.state(channel) == 0x03


@pytest.mark.parametrize("data", [b"\x01", b"\x00\x00", b"hello"])
def test_peer_takes_no_other_application_data(channel: CardChannel, tmp_path: Path, data: bytes) -> None:
    records = RecordExchange(channel)
    server = PythonServer(python_context(tmp_path, version=TLS_1_3))
    tickets = server.receive(records.exchange(server.receive(records.start(PEER))))
    records.exchange(tickets + server.send(data))
    assert refused(lambda: commands.session_key(channel)) == "6985"
    assert commands.state(channel) == 0x04


def test_states_are_those_of_the_draft(card: Card, channel: CardChannel, tmp_path: Path) -> None:
    assert commands.state(channel) == 0x04
    commands.reset_state(channel)
    assert commands.state(channel) == 0x02
    handshake(channel, python_context(tmp_path, version=TLS_1_3))
    assert commands.state(channel) == 0x03
    commands.process_eap(channel, IDENTITY_REQUEST)
    assert commands.state(channel) == 0x02
    assert refused(lambda: commands.process_eap(channel, bytes.fromhex("04 08 00 04"))) == "7001"
    assert commands.state(channel) == 0x04


def test_identity_is_the_label(channel: CardChannel) -> None:
    answer = EapPacket.decode(commands.process_eap(channel, IDENTITY_REQUEST))
    assert answer == EapPacket(EapCode.RESPONSE, 7, EapType.IDENTITY, b"web01")


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        ("01 05 00 06 02 21", "02 05 00 05 02"),
        ("01 05 00 06 04 10", "02 05 00 06 03 0D"),
        ("01 05 00 0C FE 00 00 00 00 00 00 01", "02 05 00 06 03 0D"),
    ],
    ids=["notification", "MD5", "expanded type"],
)
def test_other_methods(channel: CardChannel, request_: str, answer: str) -> None:
    assert commands.process_eap(channel, bytes.fromhex(request_)) == bytes.fromhex(answer)


@pytest.mark.parametrize(
    "packet",
    [
        "",
        "01 05 00 09 01",
        "02 05 00 05 01",
        "09 05 00 04",
        "01 05 00 05 0D",
        "01 05 00 06 0D 00",
        "03 05 00 04",
    ],
)
def test_packets_out_of_place_are_discarded(channel: CardChannel, packet: str) -> None:
    assert refused(lambda: commands.process_eap(channel, bytes.fromhex(packet))) == "7000"


@pytest.mark.parametrize(
    "behind",
    [
        "",
        "3F AA 2B",
        "3F AA 2B 6A 80 01 02",
        "3F AA 2B 6A 80 02 00 01",
        "3F AA 2B 6A 86 00",
        "3F AA 2B 6A 81 01 FF",
        "3F AA 2B 6A 81 00",
        "3F AA 2B 6A 81 01 61 82 02 05 61",
        "3F AA 2B 6A 81 01 61 83 02 03 03",
        "3F AA 2B 6A 81 01 61 83 04 03 04 03 03",
        "3F AA 2B 6A 81 01 61 83 04 03 01 03 03",
        "3F AA 2B 6A 81 01 61 85 02 00 3F",
        "3F AA 2B 6A 81 01 61 81 01 61",
    ],
)
def test_senseless_start_is_refused(channel: CardChannel, behind: str) -> None:
    start = bytes.fromhex("01 05 00 06 0D 20") + bytes.fromhex(behind)
    assert refused(lambda: commands.process_eap(channel, start)) in ("6A80", "6985")


def test_start_without_server_name_needs_one_on_the_card(card: Card, channel: CardChannel) -> None:
    plain = StartParameters(TIME)
    assert refused(lambda: RecordExchange(channel).start(plain)) == "6985"
    failure = FailureExport.decode(export(channel, Export.FAILURE))
    assert failure.code is FailureCode.NOT_READY
    assert "names no server" in failure.message
    issuer = card.issuer()
    issuer.set_eap_server_name(SERVER_NAME)
    issuer.close()
    assert RecordExchange(channel).start(plain)[:1] == b"\x16"


def test_card_without_certificate_says_so(tmp_path: Path) -> None:
    backend = SoftwareBackend(tmp_path, SEALING_KEY)
    backend.create(NAME, PINS)
    backend.open_issuer(NAME, PINS.operator).close()
    session = CardSession.open(backend.connect(NAME))
    session.verify_pin(PinReference.USER, PINS.user)
    assert refused(lambda: RecordExchange(session.channel).start(TOKEN)) == "6985"
    assert "no certificate" in FailureExport.decode(export(session.channel, Export.FAILURE)).message


def test_repeated_request_gets_the_same_answer(channel: CardChannel, tmp_path: Path) -> None:
    hello = RecordExchange(channel).start(TOKEN)
    server = PythonServer(python_context(tmp_path))
    flight = EapTlsMessage(server.receive(hello)).encode()
    packet = EapPacket(EapCode.REQUEST, 9, EapType.EAP_TLS, flight).encode()
    answer = commands.process_eap(channel, packet)
    assert commands.process_eap(channel, packet) == answer
    assert KeyBlock.decode(export(channel, Export.KEY_BLOCK))


def test_fragments_of_the_card_are_acknowledged_one_by_one(channel: CardChannel) -> None:
    start = EapPacket(EapCode.REQUEST, 1, EapType.EAP_TLS, EapTlsMessage(start=True).encode()).encode()
    parameters = StartParameters(TIME, Mode.TOKEN, SERVER_NAME, packet_length=200)
    first = EapPacket.decode(commands.process_eap(channel, start + parameters.encode()))
    assert len(first.encode()) == 200
    assert EapTlsMessage.decode(first.data).more_fragments
    data = EapPacket(EapCode.REQUEST, 2, EapType.EAP_TLS, EapTlsMessage(b"\x16").encode()).encode()
    assert refused(lambda: commands.process_eap(channel, data)) == "7000"
    acknowledgement = EapPacket(EapCode.REQUEST, 3, EapType.EAP_TLS, EapTlsMessage().encode()).encode()
    second = EapPacket.decode(commands.process_eap(channel, acknowledgement))
    assert EapTlsMessage.decode(second.data).tls_message_length is None


def test_failure_is_explained_once_the_handshake_failed(channel: CardChannel) -> None:
    records = RecordExchange(channel)
    records.start(TOKEN)
    assert refused(lambda: records.exchange(bytes.fromhex("15 03 03 00 02 02 28"))) == "6985"
    failure = FailureExport.decode(export(channel, Export.FAILURE))
    assert (failure.code, failure.alerts) == (FailureCode.OTHER, {"alert_received": "HANDSHAKE_FAILURE"})
    assert SERVER_NAME in failure.message
    assert refused(lambda: export(channel, Export.SERVER)) == "6985"
    RecordExchange(channel).start(TOKEN)
    assert refused(lambda: export(channel, Export.FAILURE)) == "6985"


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60), max_size=5), st.booleans())
def test_any_packets_are_answered_or_refused(
    channel: CardChannel, packets: list[bytes], started: bool
) -> None:
    if started:
        RecordExchange(channel).start(TOKEN)
    for number, data in enumerate(packets):
        framed = EapPacket(EapCode.REQUEST, 100 + number, EapType.EAP_TLS, data).encode()
        for packet in (data, framed):
            try:
                commands.process_eap(channel, packet)
            except StatusWordError:
                continue


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 3000), st.integers(0, 255))
def test_changed_server_flight_never_completes(
    card: Card, channel: CardChannel, position: int, change: int
) -> None:
    records = RecordExchange(channel)
    server = PythonServer(_mutation_context())
    flight = bytearray(server.receive(records.start(TOKEN)))
    if position >= len(flight) or not change or position in _ignored(flight):
        return
    flight[position] ^= change
    with contextlib.suppress(StatusWordError):
        records.exchange(bytes(flight))
    for index in (Export.KEY_BLOCK, Export.RESULT):
        assert refused(lambda index=index: export(channel, index)) == "6985"


def _ignored(flight: bytes) -> set[int]:
    """The low octets of legacy_record_version in records in clear: nobody may look at them (RFC 8446 5.1)."""
    start, ignored = 0, set()
    while start < len(flight):
        if flight[start] != 0x17:
            ignored.add(start + 2)
        start += 5 + int.from_bytes(flight[start + 3 : start + 5])
    return ignored


_CONTEXTS: list[ssl.SSLContext] = []


def _mutation_context() -> ssl.SSLContext:
    if not _CONTEXTS:
        with tempfile.TemporaryDirectory() as directory:
            _CONTEXTS.append(python_context(Path(directory), version=TLS_1_3))
    return _CONTEXTS[0]
