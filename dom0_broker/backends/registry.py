"""Backends by URI scheme: `soft:` software elements, `pcsc:` cards in readers, `pkcs11:` keys of modules."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from dom0_broker.backends.base import Pins, TokenBackend, TokenIssuer
from dom0_broker.backends.pcsc.settings import PcscdSettings
from dom0_broker.backends.pkcs11.settings import Pkcs11Settings
from vmtoken.errors import InvalidRequest
from vmtoken.secret import SecretBytes

__all__ = [
    "SCHEMES",
    "BackendSettings",
    "PcscdSettings",
    "Pins",
    "Pkcs11Settings",
    "TokenBackend",
    "TokenIssuer",
    "backend_for",
]

SCHEMES: Final = ("soft", "pcsc", "pkcs11")
"""What `backend_for` knows, in the order in which tokens are shown."""


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """What backends are told when they are made."""

    elements_directory: Path
    """Where software elements keep their sealed files."""

    sealing_key: SecretBytes
    """The host's, from `software.sealing.load_sealing_key`; never in configuration."""

    apdus: Literal["short", "extended", "t0"] = "short"
    """What software elements take: chained short APDUs, extended ones too, or as strict as T=0."""

    pin_reserve: int = 1
    """Tries of a PIN that are never spent: with so many left, or fewer, it is not tried."""

    pcsc: tuple[PcscdSettings, ...] = (PcscdSettings(),)
    """The pcscd whose readers are looked into."""

    pkcs11: Pkcs11Settings = field(default_factory=Pkcs11Settings)
    """The PKCS#11 modules that are looked into."""


def backend_for(scheme: str, settings: BackendSettings) -> TokenBackend:
    """A backend, to be kept: it knows what it has open. Raises `InvalidRequest` for other schemes."""
    match scheme:
        case "soft":
            from dom0_broker.backends.software.backend import SoftwareBackend
            from dom0_broker.backends.software.element import ElementOptions

            return SoftwareBackend(
                settings.elements_directory,
                settings.sealing_key,
                options=ElementOptions(extended=settings.apdus == "extended", t0=settings.apdus == "t0"),
                pin_reserve=settings.pin_reserve,
            )
        case "pcsc":
            from dom0_broker.backends.pcsc.backend import PcscBackend

            return PcscBackend(settings.pcsc, pin_reserve=settings.pin_reserve)
        case "pkcs11":
            from dom0_broker.backends.pkcs11.backend import Pkcs11Backend

            modules, timeout = settings.pkcs11.modules, settings.pkcs11.timeout
            return Pkcs11Backend(modules, timeout=timeout, pin_reserve=settings.pin_reserve)
    raise InvalidRequest(
        f"There are no tokens of the scheme {scheme!r}; use soft:NAME, pcsc:serial=HEX or pkcs11:token=LABEL."
    )
