"""Status words: how a card says what became of a command, ISO/IEC 7816-4 section 5.6."""

from __future__ import annotations


class StatusWord(int):
    """SW1 SW2 as one number.

    The constants are those that the applications here give or act on; any other value is a
    status word as well.
    """

    SUCCESS: StatusWord
    SILENTLY_DISCARDED: StatusWord
    """The EAP packet was dropped as RFC 3748 demands (draft-urien-eap-smartcard section 9.13)."""

    AUTHENTICATION_FAILED: StatusWord
    """The EAP method failed (draft-urien-eap-smartcard section 9.13)."""

    MEMORY_FAILURE: StatusWord
    WRONG_LENGTH: StatusWord
    LAST_COMMAND_OF_CHAIN_EXPECTED: StatusWord
    SECURITY_STATUS_NOT_SATISFIED: StatusWord
    PIN_BLOCKED: StatusWord
    CONDITIONS_NOT_SATISFIED: StatusWord
    WRONG_DATA: StatusWord
    FUNCTION_NOT_SUPPORTED: StatusWord
    FILE_NOT_FOUND: StatusWord
    NOT_ENOUGH_MEMORY: StatusWord
    INCORRECT_P1_P2: StatusWord
    REFERENCED_DATA_NOT_FOUND: StatusWord
    WRONG_P1_P2: StatusWord
    INS_NOT_SUPPORTED: StatusWord
    CLA_NOT_SUPPORTED: StatusWord
    NO_PRECISE_DIAGNOSIS: StatusWord

    @property
    def sw1(self) -> int:
        """The first octet: the kind."""
        return self >> 8

    @property
    def sw2(self) -> int:
        """The second octet: a length, a counter or a detail."""
        return self & 0xFF

    @property
    def octets_left(self) -> int | None:
        """Octets that wait to be fetched, 256 for that many or more; None if this is not 61xx or 9Fxx."""
        return (self.sw2 or 256) if self.sw1 in (0x61, 0x9F) else None

    @property
    def correct_le(self) -> int | None:
        """Repeat the command with this Le; None if this is not 6Cxx."""
        return (self.sw2 or 256) if self.sw1 == 0x6C else None

    @property
    def retries_left(self) -> int | None:
        """Tries left of a PIN that was wrong or is still to be given; None if this says nothing of it.

        63Cx is ISO/IEC 7816-4, 630x is draft-urien-eap-smartcard section 9.1, 6983 is blocked.
        """
        if self == StatusWord.PIN_BLOCKED:
            return 0
        counts = self.sw1 == 0x63 and self.sw2 >> 4 in (0x0, 0xC)
        return self.sw2 & 0x0F if counts else None

    def __repr__(self) -> str:
        return f"StatusWord(0x{self:04X})"

    def __str__(self) -> str:
        return f"{self:04X}"


StatusWord.SUCCESS = StatusWord(0x9000)
StatusWord.SILENTLY_DISCARDED = StatusWord(0x7000)
StatusWord.AUTHENTICATION_FAILED = StatusWord(0x7001)
StatusWord.MEMORY_FAILURE = StatusWord(0x6581)
StatusWord.WRONG_LENGTH = StatusWord(0x6700)
StatusWord.LAST_COMMAND_OF_CHAIN_EXPECTED = StatusWord(0x6883)
StatusWord.SECURITY_STATUS_NOT_SATISFIED = StatusWord(0x6982)
StatusWord.PIN_BLOCKED = StatusWord(0x6983)
StatusWord.CONDITIONS_NOT_SATISFIED = StatusWord(0x6985)
StatusWord.WRONG_DATA = StatusWord(0x6A80)
StatusWord.FUNCTION_NOT_SUPPORTED = StatusWord(0x6A81)
StatusWord.FILE_NOT_FOUND = StatusWord(0x6A82)
StatusWord.NOT_ENOUGH_MEMORY = StatusWord(0x6A84)
StatusWord.INCORRECT_P1_P2 = StatusWord(0x6A86)
StatusWord.REFERENCED_DATA_NOT_FOUND = StatusWord(0x6A88)
StatusWord.WRONG_P1_P2 = StatusWord(0x6B00)
StatusWord.INS_NOT_SUPPORTED = StatusWord(0x6D00)
StatusWord.CLA_NOT_SUPPORTED = StatusWord(0x6E00)
StatusWord.NO_PRECISE_DIAGNOSIS = StatusWord(0x6F00)


class StatusWordError(Exception):
    """The card refused a command."""

    def __init__(self, status: StatusWord, ins: int) -> None:
        super().__init__(f"the card answered {status} to the command with INS {ins:02X}")
        self.status = status
        self.ins = ins
