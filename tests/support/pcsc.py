"""Cards for the contract suites that are in a reader: software elements in a pcscd of the tests' own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dom0_broker.backends.base import Kept
from dom0_broker.backends.pcsc.backend import PcscBackend
from dom0_broker.backends.pcsc.settings import PcscdSettings
from dom0_broker.backends.pcsc.sharing import SharedConnection
from dom0_broker.backends.software.element import ElementOptions
from tests.support.cards import KINDS, NAME, PINS, Card, CardKind
from tests.support.pcscd import pcscd
from tests.support.piv import PIV, SECRETS, PivHolder, piv_holder
from tests.support.pki import Identity, KeyKind, client_identity, server_identity
from tests.support.waiting import wait_until
from vmtoken.cards.piv_codes import Slot
from vmtoken.iso7816.atr import AnswerToReset
from vmtoken.token import HandshakeToken


@dataclass(frozen=True)
class PcscCardKind:
    """A software element of some kind, over vpcd, pcscd and our backend."""

    element: CardKind

    @property
    def name(self) -> str:
        return f"PC/SC, {self.element.name}"

    @contextlib.contextmanager
    def card(self, directory: Path, identity: Identity | None = None) -> Iterator[PcscCard]:
        """A card that holds a client identity and trusts the root of the test servers."""
        with (
            self.element.card(directory / "elements", identity) as element,
            pcscd(directory) as daemon,
            pcsc_backend(PcscdSettings(str(daemon.socket_path))) as backend,
            daemon.readers[0].holding(element.connect(), atr_of(self.element.options)),
        ):
            serial = element.backend.serial(NAME)
            wait_until(lambda: backend.present(f"serial={serial}"))
            yield PcscCard(backend, f"serial={serial}", identity or client_identity())


@dataclass(frozen=True)
class PcscCard:
    """One personalised card in a reader."""

    backend: PcscBackend
    locator: str
    identity: Identity
    is_exclusive: bool = True

    def connect(self) -> SharedConnection:
        return self.backend.connect(self.locator)

    def token(self) -> HandshakeToken:
        return self.backend.open(self.locator, PINS.user)


@dataclass(frozen=True)
class PcscPivKind:
    """A PIV card over vpcd, pcscd and our backend, whose key the engine makes a token of."""

    kind: KeyKind
    slot: Slot
    options: ElementOptions = PIV

    @property
    def name(self) -> str:
        return f"PC/SC, PIV slot {self.slot}, {self.kind}{', T=0' if self.options.t0 else ''}"

    @contextlib.contextmanager
    def card(self, directory: Path) -> Iterator[PcscPivCard]:
        """A card with one key and its certificate."""
        with (
            piv_holder(self.kind, self.slot, self.options, directory / "elements") as holder,
            pcscd(directory) as daemon,
            pcsc_backend(PcscdSettings(str(daemon.socket_path))) as backend,
            daemon.readers[0].holding(holder.connect(), atr_of(self.options)),
        ):
            wait_until(lambda: any(found.certificate for found in backend.discover()))
            (found,) = backend.discover()
            yield PcscPivCard(backend, found.uri.removeprefix("pcsc:"), holder.identity)


@dataclass(frozen=True)
class PcscPivCard:
    """One PIV card in a reader."""

    backend: PcscBackend
    locator: str
    identity: Identity
    is_exclusive: bool = True

    def connect(self) -> SharedConnection:
        """All of it: no other key of the card may be in use."""
        return self.backend.connect(self.locator)

    def token(self) -> HandshakeToken:
        kept = Kept(tuple(self.identity.chain_der), (server_identity().root_der,))
        return self.backend.open(self.locator, SECRETS.pin, kept)


@contextlib.contextmanager
def pcsc_backend(*settings: PcscdSettings) -> Iterator[PcscBackend]:
    backend = PcscBackend(settings)
    try:
        yield backend
    finally:
        backend.close()


def atr_of(options: ElementOptions) -> bytes:
    return AnswerToReset.of_card(t0=options.t0, extended=options.extended).encode()


AnyCard = Card | PcscCard | PivHolder | PcscPivCard
"""What the suite of `CardConnection` connects to."""

PCSC_KINDS = tuple(map(PcscCardKind, KINDS))
PCSC_PIV_KINDS = (
    PcscPivKind(KeyKind.ECDSA_P256, Slot.AUTHENTICATION),
    PcscPivKind(KeyKind.RSA_2048, Slot.SIGNATURE, replace(PIV, t0=True)),
)
