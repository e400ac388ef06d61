"""The example exchange of docs/card-profile.md, made by running it.

`python -m tests.support.card_example` puts it there.

Octets that differ from run to run (random numbers, keys, signatures, what depends on their lengths)
are shown as `..`; parts of long commands and of long answers that look alike are shown once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from dom0_broker.backends.software.backend import SoftwareBackend
from tests.fakes.card import Exchange, RecordingCard
from tests.support.cards import NAME, PINS, SEALING_KEY, personalise
from tests.support.memory import PythonServer, python_context
from tests.support.pki import NOW, SERVER_NAME, client_identity
from vmtoken.cards.codes import Export, IdentityCommand, Instruction
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.tls.delegated import DelegatedConnection
from vmtoken.tls.events import TicketReceived
from vmtoken.token import HandshakeStart

DOCUMENT = Path(__file__).parents[2] / "docs" / "card-profile.md"
BEGIN, END = "<!-- example: begin -->", "<!-- example: end -->"

_INS_SELECT = 0xA4
_SHOWN = 64
"""Octets of data at most, before the line ends with dots."""

_EXPORTS = {
    Export.SERVER: "Get-Exported-Parameter 86: who the server is; policy decides here",
    Export.RESULT: "Get-Exported-Parameter 87: session state and key block, once",
}


def example() -> str:
    """The text between the marks."""
    return "```\n" + "\n".join(_lines(_exchanges())) + "\n```\n"


def _exchanges() -> list[Exchange]:
    """A token opened, a TLS 1.3 handshake, a ticket."""
    with tempfile.TemporaryDirectory() as directory:
        backend = SoftwareBackend(Path(directory) / "elements", SEALING_KEY)
        backend.create(NAME, PINS)
        issuer = backend.open_issuer(NAME, PINS.operator)
        personalise(issuer, client_identity())
        issuer.close()
        card = RecordingCard(backend.connect(NAME))
        token = EapTlsCard(card, PINS.user)
        server = PythonServer(python_context(Path(directory)))
        start = HandshakeStart(SERVER_NAME, int(NOW.timestamp()), alpn=("h2",))
        hello = token.start(start, lambda _: None).client_flight
        step = token.process(server.receive(hello))
        assert step.result is not None
        guest = DelegatedConnection(step.result.key_block)
        guest.receive_data(server.receive(step.client_flight))
        ticket = guest.next_event()
        assert isinstance(ticket, TicketReceived)
        token.accept_ticket(step.result.session, bytes(ticket.message))
        token.close()
        return card.exchanges


def _lines(exchanges: list[Exchange]) -> Iterator[str]:
    previous = ""
    for command, answer in exchanges:
        title = _title(command)
        if title == previous:
            continue
        previous = title
        if command[1] != Instruction.FETCH:
            yield f"# {title}"
        yield f"> {_show_command(command)}"
        yield f"< {_show_answer(command, answer)}"


def _title(command: bytes) -> str:
    match command[1], command[2], command[3]:
        case 0xA4, _, _:
            return "SELECT"
        case Instruction.VERIFY_PIN, _, _:
            return "Verify-PIN" if len(command) > 4 else "Verify-PIN without data: tries left"
        case Instruction.IDENTITIES, _, IdentityCommand.GET_PREFERRED:
            return "Get-Preferred-Identity"
        case Instruction.SET_IDENTITY, _, _:
            return "Set-Identity"
        case Instruction.PROCESS_EAP, 1, _:
            return "Process-EAP, More: a part of the server's flight; likewise the others"
        case Instruction.PROCESS_EAP, _, _:
            is_start = command[10] == 0x20
            return "Process-EAP: EAP-TLS Start" if is_start else "Process-EAP: the last part of the flight"
        case Instruction.EXPORTED_PARAMETER, _, _:
            return _EXPORTS[Export(command[5])]
        case Instruction.TAKE_TICKET, 1, _:
            return "Take-Ticket, More: a part of the NewSessionTicket; likewise the others"
        case Instruction.TAKE_TICKET, _, _:
            return "Take-Ticket: the last part"
        case Instruction.FETCH, _, _:
            return "FETCH"
    raise AssertionError(command.hex(" "))


def _show_command(command: bytes) -> str:
    header, body = command[:4], command[4:]
    match command[1], command[2]:
        case Instruction.PROCESS_EAP, 0 if command[10] == 0x20:
            return _hex(header) + " " + _masked(body, range(7, 11))  # the time
        case Instruction.PROCESS_EAP, 1:
            return _hex(header) + " " + _masked(body[:16], {3, 4, *range(7, 11), 14, 15}) + " ..."
        case ((Instruction.PROCESS_EAP | Instruction.TAKE_TICKET), 0):
            return _hex(header) + " .. ..."
        case Instruction.TAKE_TICKET, 1:
            return _hex(header) + " " + _masked(body[:19], range(3, 19)) + " ..."
        case Instruction.FETCH, _:
            return _hex(header) + " .." if body != b"\x00" else _hex(command)
    return _hex(command)


def _show_answer(command: bytes, answer: bytes) -> str:
    data, status = answer[:-2], answer[-2:]
    match command[1]:
        case 0xA4:
            return _masked(data, range(len(data) - 8, len(data)), limit=80) + " " + _hex(status)
        case Instruction.FETCH:
            return ".. ... " + ("9F .." if status[0] == 0x9F else _hex(status))
        case Instruction.EXPORTED_PARAMETER | Instruction.TAKE_TICKET if len(data) > 16:
            return _masked(data[:8], {1, 2, 5}) + " ... " + _hex(status)
    return (_hex(data) + " " if data else "") + (_hex(status) if status[0] != 0x9F else "9F ..")


def _masked(octets: bytes, hidden: range | set[int], limit: int = _SHOWN) -> str:
    shown = [".." if index in hidden else f"{octet:02X}" for index, octet in enumerate(octets[:limit])]
    return " ".join(shown) + (" ..." if len(octets) > limit else "")


def _hex(octets: bytes) -> str:
    return octets.hex(" ").upper()


def write() -> None:
    """Put the example into the document."""
    before, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(f"{before}{BEGIN}\n{example()}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    write()
