"""What the PKCS#11 backend is told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pkcs11Settings:
    """The modules that are looked through, and how long they are waited for."""

    modules: tuple[Path, ...] = ()
    """Libraries; those of a URI with module-path need not be here."""

    timeout: float = 25.0
    """Seconds for one call: below `limits.card_timeout`, so that a hung module ends before its token."""
