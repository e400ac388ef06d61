"""How code inside the element refuses a command."""

from __future__ import annotations

from vmtoken.iso7816.status import StatusWord


class CardError(Exception):
    """The command ends with this status word."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status:04X}")
        self.status = StatusWord(status)
