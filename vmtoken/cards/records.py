"""TLS records to and from a card, in EAP-TLS packets."""

from __future__ import annotations

from vmtoken.cards import commands
from vmtoken.cards.profile import StartParameters
from vmtoken.codec import DecodeError
from vmtoken.eap.eap_tls import ACKNOWLEDGEMENT, EapTlsMessage
from vmtoken.eap.fragments import Fragmenter, Reassembler
from vmtoken.eap.packet import MAX_PACKET_LENGTH, EapCode, EapPacket, EapType
from vmtoken.iso7816.channel import CardChannel

_MAX_FLIGHT = 1 << 17
"""Octets of a flight that we take from a card: above a client's longest chain."""

_START = EapTlsMessage(start=True)

_COMPATIBILITY_CCS = bytes.fromhex("14 03 03 00 01 01")
"""The change_cipher_spec of RFC 8446 appendix D.4."""


class RecordExchange:
    """The EAP server's half of the conversation, without any authentication of its own."""

    def __init__(
        self, channel: CardChannel, packet_length: int = MAX_PACKET_LENGTH, identifier: int = 0
    ) -> None:
        """`packet_length` is the longest EAP packet to the card, `identifier` the one of the first."""
        self._channel = channel
        self._packet_length = packet_length
        self._identifier = identifier

    def start(self, parameters: StartParameters) -> bytes:
        """EAP-TLS Start; the answer is the ClientHello."""
        return self._flight(self._send(_START, parameters.encode()))

    def exchange(self, records: bytes) -> bytes:
        """Give records to the card; the answer is its flight, empty if it needs more or is content."""
        fragmenter = Fragmenter(records, self._packet_length)
        answer = self._send(fragmenter.next_fragment())
        while not fragmenter.is_done:
            if not answer.is_acknowledgement:
                raise DecodeError("the card answers a fragment with data")
            answer = self._send(fragmenter.next_fragment())
        return self._flight(answer)

    def _flight(self, message: EapTlsMessage) -> bytes:
        """All fragments of what the card sends."""
        if message.is_acknowledgement:
            return b""
        reassembler = Reassembler(_MAX_FLIGHT)
        flight = reassembler.add(message)
        while flight is None:
            flight = reassembler.add(self._send(ACKNOWLEDGEMENT))
        return flight

    def _send(self, message: EapTlsMessage, behind: bytes = b"") -> EapTlsMessage:
        identifier = self._identifier
        self._identifier = (identifier + 1) & 0xFF
        request = EapPacket(EapCode.REQUEST, identifier, EapType.EAP_TLS, message.encode())
        answer = EapPacket.decode(commands.process_eap(self._channel, request.encode() + behind))
        if answer.code is not EapCode.RESPONSE or answer.identifier != identifier:
            raise DecodeError("the card's EAP packet is no answer to the one it was given")
        if answer.type != EapType.EAP_TLS:
            raise DecodeError(f"the card answers EAP-TLS with EAP type {answer.type}")
        return EapTlsMessage.decode(answer.data)


def is_client_hello(flight: bytes) -> bool:
    """Whether a flight is one whole ClientHello in clear, as it answers a HelloRetryRequest."""
    record = flight.removeprefix(_COMPATIBILITY_CCS)
    fragment_length, message_length = (int.from_bytes(record[start:end]) for start, end in ((3, 5), (6, 9)))
    starts_so = record[:1] == b"\x16" and record[5:6] == b"\x01"
    return starts_so and fragment_length == len(record) - 5 and message_length == fragment_length - 4
