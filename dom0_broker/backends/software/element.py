"""SoftwareElement: an ISO 7816 card in Python, behind `CardConnection`.

This file is the card's operating system: APDUs in and out, parts of long commands, parts of long
answers, SELECT. What the commands do is in the applications: `application.py`, `piv_applet.py`.
"""

from __future__ import annotations

import enum
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from dom0_broker.backends.software.application import Application
from dom0_broker.backends.software.card_error import CardError
from dom0_broker.backends.software.keystore import Keystore
from dom0_broker.backends.software.parts import ChainingRule, IncomingParts, OutgoingParts
from dom0_broker.backends.software.piv_applet import PivApplet
from vmtoken.cards.codes import CLA, Features, Instruction
from vmtoken.codec import DecodeError
from vmtoken.errors import TokenUnavailable
from vmtoken.iso7816.apdu import MAX_SHORT_LE, CommandApdu
from vmtoken.iso7816.channel import EXTENDED_APDUS, SHORT_APDUS
from vmtoken.iso7816.status import StatusWord

log = logging.getLogger(__name__)

_INS_SELECT = 0xA4
_SELECT_BY_NAME = 0x04
_FETCH_LENGTH = 5
_FETCH_HEADERS = frozenset(
    bytes((cla, ins, 0, 0)) for cla in (0x00, CLA) for ins in (Instruction.GET_RESPONSE, Instruction.FETCH)
)

_FEATURES = Features.RESUMPTION | Features.PERSONALISATION | Features.KEY_IMPORT | Features.SOFTWARE


class Applications(enum.Flag):
    """What an element can be used as."""

    EAP_TLS = enum.auto()
    PIV = enum.auto()


@dataclass(frozen=True, slots=True)
class ElementOptions:
    """What kind of card the element plays."""

    applications: Applications = Applications.EAP_TLS
    """With `PIV`, the element must have been created with secrets for it."""

    extended: bool = False
    """Take extended APDUs as well; else they are refused with 6700, as many readers and cards do."""

    t0: bool = False
    """Be as strict as T=0: no Le behind data, 61xx and 6Cxx (ISO/IEC 7816-3 section 12.2)."""


DEFAULT_OPTIONS = ElementOptions()


class CardApplication(Protocol):
    """One application of a powered card."""

    @property
    def cla(self) -> int:
        """CLA of its commands."""
        ...

    @property
    def fetch(self) -> bool:
        """Whether long answers are announced by 9Fxx, and fetched with FETCH."""
        ...

    @property
    def chaining(self) -> ChainingRule:
        """How it takes long commands."""
        ...

    def is_named(self, name: bytes) -> bool:
        """Whether SELECT by this name is for it."""
        ...

    def select(self) -> bytes:
        """It is the current application from now on; what answers SELECT."""
        ...

    def execute(self, command: CommandApdu) -> bytes:
        """The data that answers a command; raises `CardError`."""
        ...

    def power_down(self) -> None:
        """The card loses its power, or another application takes over: wipe what is in memory."""
        ...


class SoftwareElement:
    """A powered card. Any octets are answered with a status word; nothing is raised before `close`."""

    def __init__(
        self,
        keystore: Keystore,
        options: ElementOptions = DEFAULT_OPTIONS,
        *,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._keystore = keystore
        self._options = options
        self._random = random
        self._closed = False
        limits = EXTENDED_APDUS if options.extended else SHORT_APDUS
        self._max_data, self._max_le = limits.command_data, limits.response_data
        self._power_up()

    def transmit(self, command: bytes) -> bytes:
        """See `CardConnection.transmit`."""
        if self._closed:
            raise TokenUnavailable("The software element is closed; open it again.")
        try:
            if len(command) == _FETCH_LENGTH and command[:4] in _FETCH_HEADERS:
                return self._outgoing.next_part(command[4] or MAX_SHORT_LE)
            return self._answer(CommandApdu.decode(command))
        except CardError as error:
            return error.status.to_bytes(2, "big")
        except DecodeError:
            return StatusWord.WRONG_LENGTH.to_bytes(2, "big")
        except OSError as error:
            log.error("the file of a software element cannot be written", extra={"error": error.strerror})  # noqa: TRY400
            return StatusWord.MEMORY_FAILURE.to_bytes(2, "big")
        except Exception:  # the edge of the card: whatever breaks in here, nobody outside shares it
            log.exception("a software element broke down and was reset")
            self.reset()
            return StatusWord.NO_PRECISE_DIAGNOSIS.to_bytes(2, "big")

    def reset(self) -> None:
        """Power down and up: the application is deselected, PINs and handshakes are forgotten."""
        for application in self._applications:
            application.power_down()
        self._power_up()

    def close(self) -> None:
        """Power down for good."""
        self.reset()
        self._closed = True

    def _power_up(self) -> None:
        self._applications = self._installed()
        self._current: CardApplication | None = None
        self._incoming = IncomingParts()
        self._outgoing = OutgoingParts(t0=self._options.t0)

    def _installed(self) -> list[CardApplication]:
        applications: list[CardApplication] = []
        if Applications.EAP_TLS in self._options.applications:
            limits = EXTENDED_APDUS if self._options.extended else SHORT_APDUS
            applications.append(Application(self._keystore, limits, _FEATURES, self._random))
        if Applications.PIV in self._options.applications:
            applications.append(PivApplet(self._keystore, self._random))
        return applications

    def _answer(self, command: CommandApdu) -> bytes:
        """Refuse what a card of this kind could not even receive; else fetch, collect or execute."""
        if len(command.data) > self._max_data or (command.le or 0) > self._max_le:
            raise CardError(StatusWord.WRONG_LENGTH)
        if self._options.t0 and command.data and command.le is not None:
            raise CardError(StatusWord.WRONG_LENGTH)
        if command.ins in (Instruction.GET_RESPONSE, Instruction.FETCH):
            return self._fetch(command)
        if self._outgoing.is_waiting:
            repeated = self._outgoing.repeated(command)
            if repeated is not None:
                return repeated
        current = self._current
        if command.ins == _INS_SELECT or current is None:
            self._incoming.clear()
            selected = self._selected(command)
            return self._outgoing.begin(command, selected.select(), fetch=selected.fetch)
        whole = self._incoming.add(command, current.chaining)
        if whole is None:
            return StatusWord.SUCCESS.to_bytes(2, "big")
        return self._outgoing.begin(command, current.execute(whole), fetch=current.fetch)

    def _fetch(self, command: CommandApdu) -> bytes:
        """GET RESPONSE and FETCH in another form than the usual one."""
        if command.le is None or command.data:
            raise CardError(StatusWord.WRONG_LENGTH)
        if bytes(command[:4]) not in _FETCH_HEADERS:
            raise CardError(StatusWord.WRONG_P1_P2)
        return self._outgoing.next_part(command.le)

    def _selected(self, command: CommandApdu) -> CardApplication:
        """SELECT by name (ISO/IEC 7816-4 section 11.2.2); one that fails leaves the current application."""
        if command.ins != _INS_SELECT:
            known = command.cla in {application.cla for application in self._applications}
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED if known else StatusWord.CLA_NOT_SUPPORTED)
        if command.cla != 0x00:
            raise CardError(StatusWord.CLA_NOT_SUPPORTED)
        if (command.p1, command.p2) != (_SELECT_BY_NAME, 0x00):
            raise CardError(StatusWord.WRONG_P1_P2)
        for application in self._applications:
            if application.is_named(command.data):
                return self._switch_to(application)
        raise CardError(StatusWord.FILE_NOT_FOUND)

    def _switch_to(self, application: CardApplication) -> CardApplication:
        if self._current is not None and self._current is not application:
            self._current.power_down()
        self._current = application
        return application
