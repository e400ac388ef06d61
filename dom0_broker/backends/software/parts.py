"""Parts of long commands and of long answers, as the card sees them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dom0_broker.backends.software.card_error import CardError
from vmtoken.iso7816.apdu import MAX_SHORT_DATA, MAX_SHORT_LE, CommandApdu
from vmtoken.iso7816.channel import Chaining
from vmtoken.iso7816.status import StatusWord

_MORE_IN_P1 = 0x01
_MORE_IN_CLA = 0x10


@dataclass(frozen=True, slots=True)
class ChainingRule:
    """How an application takes commands that are longer than an APDU."""

    mark: Chaining
    """Where a part says that more follow: P1 (draft section 9.2.1) or CLA (ISO/IEC 7816-4 section 5.3.3)."""

    cla: int
    longest: Mapping[int, int]
    """Octets of the commands that may come in parts, by INS."""

    def has_more(self, command: CommandApdu) -> bool:
        """Whether it is a part that is not the last."""
        in_p1 = self.mark is Chaining.P1
        return bool(command.p1 & _MORE_IN_P1 if in_p1 else command.cla & _MORE_IN_CLA)

    def without_mark(self, command: CommandApdu) -> CommandApdu:
        """As the last part has it."""
        if self.mark is Chaining.P1:
            return command._replace(p1=command.p1 & ~_MORE_IN_P1)
        return command._replace(cla=command.cla & ~_MORE_IN_CLA)


class IncomingParts:
    """Puts the parts of a command together, by the rule of the application that it is for."""

    def __init__(self) -> None:
        self._header = b""
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, command: CommandApdu, rule: ChainingRule) -> CommandApdu | None:
        """The whole command, or None while parts are missing. Another command in between drops the parts."""
        more = rule.has_more(command)
        if not self._parts and not more:
            return command
        whole = rule.without_mark(command)
        limit = rule.longest.get(command.ins) if whole.cla == rule.cla else None
        header = bytes(whole[:4])
        if limit is None or (header != self._header and not more):
            self.clear()
            return command
        if header != self._header:
            self.clear()
        self._collect(header, command.data, limit)
        if more:
            return None
        data = b"".join(self._parts)
        self.clear()
        return whole._replace(data=data)

    def clear(self) -> None:
        """Drop what has come so far."""
        self._header = b""
        self._parts.clear()
        self._size = 0

    def _collect(self, header: bytes, data: bytes, limit: int) -> None:
        self._size += len(data)
        if self._size > limit or not data:
            self.clear()
            raise CardError(StatusWord.NOT_ENOUGH_MEMORY if data else StatusWord.WRONG_LENGTH)
        self._header = header
        self._parts.append(data)


class OutgoingParts:
    """Gives an answer out in the parts that the interface device asks for.

    Up to 256 octets go out at once where Le allows it. Else 61xx announces up to 255 octets, to be
    had with GET RESPONSE. Longer ones are announced by 9F00 or 9Fxx, to be had with FETCH, where the
    application follows the draft (section 9.2.2); else the first of them come at once, with 61xx for the rest
    (ISO/IEC 7816-4 section 5.3.4), and a missing Le is taken for the longest one: PIV tools leave it out.
    """

    def __init__(self, *, t0: bool) -> None:
        self._t0 = t0
        self._left = b""
        self._sw1 = 0
        self._refused: CommandApdu | None = None

    def begin(self, command: CommandApdu, data: bytes, *, fetch: bool) -> bytes:
        """The first answer to a command that was executed; `fetch` for the draft's way."""
        self._left = b""
        if not data:
            return b"\x90\x00"
        le = self._usable_le(command)
        if le is None and not fetch and not self._t0:
            le = MAX_SHORT_LE
        if le is not None and len(data) <= le:
            if self._t0 and len(data) != le:
                return self._refuse_le(command, data)
            return data + b"\x90\x00"
        self._left = data
        self._sw1 = 0x9F if fetch and len(data) > MAX_SHORT_DATA else 0x61
        if le is not None and not fetch and not self._t0:
            return self.next_part(le)
        if le is not None and len(data) <= MAX_SHORT_LE:
            return self._refuse_le(command, data)
        return self._announcement()

    @property
    def is_waiting(self) -> bool:
        """Whether octets of an earlier answer were not read."""
        return bool(self._left)

    def repeated(self, command: CommandApdu) -> bytes | None:
        """The answer kept behind 6Cxx: the same command with the right Le is not executed again."""
        refused, self._refused = self._refused, None
        data = self._left
        self._left = b""
        if refused is None or command.le != len(data):
            return None
        same = refused._replace(le=command.le) == command
        return data + b"\x90\x00" if same else None

    def next_part(self, le: int) -> bytes:
        """GET RESPONSE and FETCH: up to `le` octets of what is left."""
        left = self._left
        if not left or self._refused is not None:
            raise CardError(StatusWord.CONDITIONS_NOT_SATISFIED)
        if self._t0 and le > len(left):
            return bytes((0x6C, len(left)))
        self._left = left[le:]
        size = len(left) - le
        if size <= 0:
            return left + b"\x90\x00"
        return left[:le] + bytes((self._sw1, size if size <= MAX_SHORT_DATA else 0x00))

    def _usable_le(self, command: CommandApdu) -> int | None:
        """Le, where it can be obeyed: in T=0 not behind data."""
        return None if self._t0 and command.data else command.le

    def _refuse_le(self, command: CommandApdu, data: bytes) -> bytes:
        self._left = data
        self._refused = command
        return bytes((0x6C, len(data) & 0xFF))

    def _announcement(self) -> bytes:
        size = len(self._left)
        return bytes((self._sw1, size if size <= MAX_SHORT_DATA else 0x00))
