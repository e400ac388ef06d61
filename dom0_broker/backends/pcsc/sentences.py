"""PC/SC's status numbers as sentences that name the reader and say what to do."""

from __future__ import annotations

from typing import Final

from vmtoken.errors import TokenUnavailable

UNRESPONSIVE: Final = 0x80100066
"""SCARD_W_UNRESPONSIVE_CARD (pcsclite.h); the names of the others stand behind them."""

_NO_SERVICE = "pcscd does not answer; start it with 'systemctl start pcscd.socket'."
_NO_READER = "The reader '{reader}' is gone; plug it in again."
_NO_CARD = "There is no card in the reader '{reader}' any more; put it in again."

_SENTENCES: Final = {
    0x80100003: _NO_SERVICE,  # SCARD_E_INVALID_HANDLE: the context was one of an earlier pcscd
    0x80100009: _NO_READER,  # SCARD_E_UNKNOWN_READER
    # SCARD_E_SHARING_VIOLATION
    0x8010000B: "Another program uses the card in the reader '{reader}'; end that program (gpg's scdaemon "
    "and browsers are such), or give it another reader.",
    0x8010000C: _NO_CARD,  # SCARD_E_NO_SMARTCARD
    # SCARD_E_PROTO_MISMATCH
    0x8010000F: "The card in the reader '{reader}' speaks neither T=0 nor T=1; use another card.",
    # SCARD_E_NOT_READY
    0x80100010: "The reader '{reader}' is not ready; plug it in again if it stays so.",
    0x80100013: _NO_SERVICE,  # SCARD_F_COMM_ERROR
    # SCARD_E_NOT_TRANSACTED
    0x80100016: "The card in the reader '{reader}' was lost in the middle of a command; push it in again if "
    "it does not come back by itself.",
    0x80100017: _NO_READER,  # SCARD_E_READER_UNAVAILABLE
    0x8010001D: _NO_SERVICE,  # SCARD_E_NO_SERVICE
    0x8010001E: _NO_SERVICE,  # SCARD_E_SERVICE_STOPPED
    UNRESPONSIVE: "The card in the reader '{reader}' does not answer to a reset; check that it is the right "
    "way round, clean its contacts, or try another reader.",
    # SCARD_W_UNPOWERED_CARD
    0x80100067: "The card in the reader '{reader}' has no power; push it in again.",
    # SCARD_W_RESET_CARD
    0x80100068: "The card in the reader '{reader}' was reset by another program, or put in anew; it is "
    "opened again.",
    0x80100069: _NO_CARD,  # SCARD_W_REMOVED_CARD
    # SCARD_W_SECURITY_VIOLATION: what pcscd says to one client too many
    0x8010006A: "pcscd takes no more clients, or not us; raise its '--max-thread', or look into its log.",
}


def unavailable(status: int, reader: str) -> TokenUnavailable:
    """What a status is for those above."""
    sentence = _SENTENCES.get(
        status, "The reader '{reader}' reports the PC/SC error {status:08X}; look into the log of pcscd."
    )
    return TokenUnavailable(sentence.format(reader=reader, status=status))
