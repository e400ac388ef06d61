"""The EAP-TLS trace of 2003 (draft-urien-eap-smartcard-25, annex 6), byte for byte from both sides."""

from __future__ import annotations

from pathlib import Path

from dom0_broker.backends.software.application import Application
from dom0_broker.backends.software.parts import IncomingParts, OutgoingParts
from tests.fakes.card import Exchange, ScriptedCard, read_trace
from vmtoken.cards import commands
from vmtoken.cards.codes import Instruction
from vmtoken.cards.profile import StartParameters
from vmtoken.cards.records import RecordExchange
from vmtoken.eap.eap_tls import EapTlsMessage
from vmtoken.eap.fragments import Reassembler
from vmtoken.eap.packet import EapCode, EapPacket, EapType
from vmtoken.iso7816.apdu import CommandApdu
from vmtoken.iso7816.channel import ApduLimits, CardChannel, Chaining

TRACE = read_trace(Path(__file__).parents[2] / "vectors" / "eap-tls-mode2-full.txt")

HOST_PACKET_LENGTH = 1396
HOST_PART_LENGTH = 240


def test_driver_sends_what_the_host_of_2003_sent() -> None:
    card = ScriptedCard(TRACE)
    channel = CardChannel(card, ApduLimits(HOST_PART_LENGTH), chaining=Chaining.P1, le_with_data=False)
    records = RecordExchange(channel, HOST_PACKET_LENGTH, identifier=0x14)
    server_flight, server_finished = server_flights()
    client_hello = records.start(StartParameters(time=0x3FAA2B6A))
    assert client_hello[:6] == bytes.fromhex("16 03 01 00 41 01")
    client_flight = records.exchange(server_flight)
    assert len(client_flight) == 1825
    assert records.exchange(server_finished) == b""
    assert len(commands.session_key(channel)) == 64
    card.close()


def test_card_cuts_its_answers_as_the_card_of_2003() -> None:
    incoming, outgoing = IncomingParts(), OutgoingParts(t0=True)
    answers = iter(client_answers())
    for octets, expected in TRACE:
        command = CommandApdu.decode(octets)
        if command.ins in (Instruction.FETCH, Instruction.GET_RESPONSE):
            assert command.le is not None
            assert outgoing.next_part(command.le) == expected
            continue
        assert outgoing.repeated(command) is None
        whole = incoming.add(command, Application.chaining)
        answer = b"\x90\x00" if whole is None else outgoing.begin(command, next(answers), fetch=True)
        assert answer == expected
    assert next(answers, None) is None


def test_parts_of_a_command_make_the_eap_packet_again() -> None:
    incoming = IncomingParts()
    packets = [
        incoming.add(CommandApdu.decode(octets), Application.chaining)
        for octets, _ in process_eap_exchanges()
    ]
    whole = [EapPacket.decode(command.data) for command in packets if command is not None]
    assert [packet.identifier for packet in whole] == list(range(0x14, 0x1B))
    assert all(packet.code is EapCode.REQUEST and packet.type == EapType.EAP_TLS for packet in whole)


def server_flights() -> tuple[bytes, bytes]:
    """What the host had to deliver, put together with nothing but slices."""
    data = b""
    for octets, _ in process_eap_exchanges()[1:]:
        data += octets[5:]
    flight, packets = b"", []
    while data:
        length = int.from_bytes(data[2:4], "big")
        packets.append(data[:length])
        data = data[length:]
    for packet in packets[:4]:
        flight += packet[10:] if packet[5] & 0x80 else packet[6:]
    assert len(flight) == 4710
    return flight, packets[5][10:]


def client_answers() -> list[bytes]:
    """The whole answers of the card: EAP packets and, last, the session key."""
    answers: list[bytes] = []
    left = 0
    for command, response in TRACE:
        data = response[:-2]
        if command[1] == Instruction.SESSION_KEY:
            answers.append(data)
        elif data and left == 0:
            answers.append(data)
            left = int.from_bytes(data[2:4], "big") - len(data)
        elif data:
            answers[-1] += data
            left -= len(data)
    return answers


def process_eap_exchanges() -> list[Exchange]:
    return [exchange for exchange in TRACE if exchange[0][1] == Instruction.PROCESS_EAP]


def test_the_client_flight_is_reassembled_from_its_two_fragments() -> None:
    reassembler = Reassembler(limit=4096)
    first, second = (EapTlsMessage.decode(EapPacket.decode(answer).data) for answer in client_answers()[4:6])
    assert (first.more_fragments, first.tls_message_length) == (True, 1825)
    assert reassembler.add(first) is None
    flight = reassembler.add(second)
    assert flight is not None
    assert flight[:6] == bytes.fromhex("16 03 01 06 F1 0B")
