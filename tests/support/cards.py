"""Personalised cards for tests, each kind as the contract suites want it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dom0_broker.backends.base import Pins
from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import DEFAULT_OPTIONS, ElementOptions, SoftwareElement
from tests.support.pki import Identity, client_identity, server_identity
from vmtoken.cards.codes import AID
from vmtoken.cards.eap_tls import EapTlsCard
from vmtoken.cards.issuer import EapTlsIssuer
from vmtoken.iso7816.connection import CardConnection
from vmtoken.secret import SecretBytes

PINS = Pins(user=SecretBytes(b"1234"), operator=SecretBytes(b"87654321"))
SEALING_KEY = SecretBytes(bytes(range(32)))
NAME = "web01"


@dataclass(frozen=True)
class Dialect:
    """Commands of one application, for tests of what is below it."""

    select: bytes
    needs_selection: bytes
    pin_status: bytes
    verify: bytes
    pin_outlives_select: bool = False


EAP_TLS_DIALECT = Dialect(
    select=bytes.fromhex("00 A4 04 00 10") + AID,
    needs_selection=bytes.fromhex("A0 19 00 00 01"),
    pin_status=bytes.fromhex("A0 20 00 00"),
    verify=bytes.fromhex("A0 20 00 00 08 31 32 33 34 FF FF FF FF"),
)


@dataclass(frozen=True)
class CardKind:
    """A kind of card; another backend adds one of its own with the same methods."""

    name: str
    options: ElementOptions = DEFAULT_OPTIONS

    def backend(self, directory: Path) -> SoftwareBackend:
        return SoftwareBackend(directory, SEALING_KEY, options=self.options)

    @contextlib.contextmanager
    def card(self, directory: Path, identity: Identity | None = None) -> Iterator[Card]:
        """A card that holds a client identity and trusts the root of the test servers."""
        backend = self.backend(directory)
        backend.create(NAME, PINS)
        issuer = backend.open_issuer(NAME, PINS.operator)
        personalise(issuer, identity or client_identity())
        issuer.close()
        yield Card(backend, identity or client_identity())


@dataclass(frozen=True)
class Card:
    """One personalised card."""

    backend: SoftwareBackend
    identity: Identity
    pins: Pins = PINS
    is_exclusive: bool = False
    """Whether a second connection is refused while there is one."""

    def connect(self) -> CardConnection:
        return self.backend.connect(NAME)

    def token(self) -> EapTlsCard:
        return self.backend.open(NAME, PINS.user)

    def issuer(self) -> EapTlsIssuer:
        return self.backend.open_issuer(NAME, PINS.operator)


KINDS = (
    CardKind("software, short APDUs"),
    CardKind("software, extended APDUs", ElementOptions(extended=True)),
    CardKind("software, T=0", ElementOptions(t0=True)),
)


def personalise(issuer: EapTlsIssuer, identity: Identity) -> None:
    issuer.install_private_key(SecretBytes(identity.key_der))
    issuer.install_certificate_chain(identity.chain_der)
    issuer.install_trust_anchors([server_identity().root_der])


def bare_element(directory: Path, options: ElementOptions = DEFAULT_OPTIONS) -> SoftwareElement:
    """An element with PINs and nothing else."""
    backend = SoftwareBackend(directory, SEALING_KEY, options=options)
    backend.create(NAME, PINS)
    return backend.connect(NAME)
