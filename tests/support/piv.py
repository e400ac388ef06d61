"""PIV cards for tests: the software element with the PIV application, personalised as an operator would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_der_public_key

from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import Applications, ElementOptions, SoftwareElement
from dom0_broker.backends.software.piv_store import PivSecrets
from tests.support.cards import NAME, PINS, SEALING_KEY
from tests.support.pki import Identity, KeyKind, Usage, pki
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_codes import Slot
from vmtoken.cards.piv_issuer import PivIssuer
from vmtoken.csr import KeyElsewhere
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.signatures import PublicKey

SECRETS = PivSecrets(
    pin=SecretBytes(b"654321"),
    puk=SecretBytes(b"87654321"),
    management_key=SecretBytes(bytes(range(32))),
)
MANAGEMENT_KEY = SecretBytes(bytes(range(32)).hex().encode())
PIV = ElementOptions(applications=Applications.PIV)
BOTH = ElementOptions(applications=Applications.EAP_TLS | Applications.PIV)

ALGORITHMS = {
    KeyKind.ECDSA_P256: KeyAlgorithm.ECDSA_P256,
    KeyKind.ECDSA_P384: KeyAlgorithm.ECDSA_P384,
    KeyKind.RSA_2048: KeyAlgorithm.RSA_2048,
}


def piv_backend(
    directory: Path, secrets: PivSecrets = SECRETS, options: ElementOptions = PIV
) -> SoftwareBackend:
    """With one element that has the PIV application, and no key."""
    backend = SoftwareBackend(directory, SEALING_KEY, options=options)
    backend.create(NAME, PINS, secrets)
    return backend


@dataclass
class PivHolder:
    """One PIV card with a key and a certificate."""

    backend: SoftwareBackend
    identity: Identity
    slot: Slot = Slot.AUTHENTICATION
    t0: bool = False

    def connect(self) -> SoftwareElement:
        return self.backend.connect(NAME)

    def key(self) -> PivCard:
        return PivCard(
            self.connect(), SECRETS.pin, slot=self.slot, kept_chain=self.identity.chain_der, t0=self.t0
        )

    def issuer(self) -> PivIssuer:
        return PivIssuer(self.connect(), MANAGEMENT_KEY, SECRETS.pin, slot=self.slot, t0=self.t0)


def personalised(
    backend: SoftwareBackend,
    kind: KeyKind = KeyKind.ECDSA_P256,
    slot: Slot = Slot.AUTHENTICATION,
    *,
    t0: bool = False,
) -> PivHolder:
    """Make a key on the card and have a certificate issued for its request."""
    with contextlib.closing(
        PivIssuer(backend.connect(NAME), MANAGEMENT_KEY, SECRETS.pin, slot=slot, t0=t0)
    ) as issuer:
        info = issuer.generate_key(ALGORITHMS[kind])
        public = PublicKey(load_der_public_key(info))
        key = KeyElsewhere.of(info, public.schemes(), _not_asked).stand_in
        identity = pki().intermediate.issue("web01", kind, usage=Usage.CLIENT, key=key)
        issuer.install_certificate_chain(identity.chain_der)
    return PivHolder(backend, identity, slot, t0)


def _not_asked(scheme: SignatureScheme, content: bytes) -> bytes:
    raise AssertionError("certificates are signed by a CA")


@contextlib.contextmanager
def piv_holder(kind: KeyKind, slot: Slot, options: ElementOptions, directory: Path) -> Iterator[PivHolder]:
    """For the contract suites."""
    yield personalised(piv_backend(directory, options=options), kind, slot, t0=options.t0)
