"""Which pcscd there are, and how patient we are with their cards."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PcscdSettings:
    """`[[pcsc]]` of broker.toml."""

    socket: str = ""
    """Of the pcscd; empty: the usual one."""

    timeout: float = 15.0
    """Seconds that a card gets for one APDU."""

    reset_command: tuple[str, ...] = ()
    """Program and arguments that get a hung reader of this pcscd going again; empty: none."""

    @property
    def name(self) -> str:
        """For people."""
        return f"pcscd at {self.socket}" if self.socket else "pcscd"
