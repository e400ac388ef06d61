"""PIV cards for tests: the software element with the PIV application, personalised as an operator would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_der_public_key

from dom0_broker.backends.software.backend import SoftwareBackend
from dom0_broker.backends.software.element import Applications, ElementOptions, SoftwareElement
from dom0_broker.backends.software.piv_store import PivSecrets
from tests.support.cards import NAME, PINS, SEALING_KEY, Dialect
from tests.support.pki import Identity, KeyKind, Usage, pki
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.cards.piv import PivCard
from vmtoken.cards.piv_codes import AID, Slot
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
YUBIKEY_4_ATR = bytes.fromhex("3BF81300008131FE15597562696B657934D4")
"""OpenSC takes a PIV card for one that does ECDSA only by its ATR; this is one that it knows."""

PIV = ElementOptions(applications=Applications.PIV)
BOTH = ElementOptions(applications=Applications.EAP_TLS | Applications.PIV)

ALGORITHMS = {
    KeyKind.ECDSA_P256: KeyAlgorithm.ECDSA_P256,
    KeyKind.ECDSA_P384: KeyAlgorithm.ECDSA_P384,
    KeyKind.RSA_2048: KeyAlgorithm.RSA_2048,
    KeyKind.RSA_3072: KeyAlgorithm.RSA_3072,
}


PIV_DIALECT = Dialect(
    select=bytes.fromhex("00 A4 04 00 0B") + AID,
    needs_selection=bytes.fromhex("00 CB 3F FF 05 5C 03 5F C1 02 00"),
    pin_status=bytes.fromhex("00 20 00 80"),
    verify=bytes.fromhex("00 20 00 80 08 36 35 34 33 32 31 FF FF"),
    pin_outlives_select=True,
)
"""SP 800-73-4 part 2 section 3.1.1: who selects the application again changes nothing."""


def piv_backend(
    directory: Path, secrets: PivSecrets = SECRETS, options: ElementOptions = PIV
) -> SoftwareBackend:
    """With one element that has the PIV application, and no key."""
    backend = SoftwareBackend(directory, SEALING_KEY, options=options)
    backend.create(NAME, PINS, secrets)
    return backend


def management_key(owner: PivSecrets = SECRETS) -> SecretBytes:
    """As an operator gives it."""
    return SecretBytes(owner.management_key.reveal().hex().encode())


@dataclass
class PivHolder:
    """One PIV card with a key and a certificate."""

    backend: SoftwareBackend
    identity: Identity
    slot: Slot = Slot.AUTHENTICATION
    t0: bool = False
    owner: PivSecrets = SECRETS
    is_exclusive: bool = False

    def connect(self) -> SoftwareElement:
        return self.backend.connect(NAME)

    def key(self) -> PivCard:
        return PivCard(
            self.connect(), self.owner.pin, slot=self.slot, kept_chain=self.identity.chain_der, t0=self.t0
        )

    def issuer(self) -> PivIssuer:
        return piv_issuer(self.backend, self.slot, self.owner, t0=self.t0)


def piv_issuer(
    backend: SoftwareBackend,
    slot: Slot = Slot.AUTHENTICATION,
    owner: PivSecrets = SECRETS,
    *,
    t0: bool = False,
) -> PivIssuer:
    return PivIssuer(backend.connect(NAME), management_key(owner), owner.pin, slot=slot, t0=t0)


def personalised(
    backend: SoftwareBackend,
    kind: KeyKind = KeyKind.ECDSA_P256,
    slot: Slot = Slot.AUTHENTICATION,
    owner: PivSecrets = SECRETS,
    *,
    t0: bool = False,
) -> PivHolder:
    """Make a key on the card and have a certificate issued for it."""
    with contextlib.closing(piv_issuer(backend, slot, owner, t0=t0)) as issuer:
        identity = certified(issuer.generate_key(ALGORITHMS[kind]), kind)
        issuer.install_certificate_chain(identity.chain_der)
    return PivHolder(backend, identity, slot, t0, owner)


def certified(
    public_key_info: bytes,
    kind: KeyKind = KeyKind.ECDSA_P256,
    dns_names: Sequence[str] | None = None,
) -> Identity:
    """A client below the root of the test servers, whose private key is elsewhere."""
    public = PublicKey(load_der_public_key(public_key_info))
    key = KeyElsewhere.of(public_key_info, public.schemes(), _not_asked).stand_in
    return pki().intermediate.issue("web01", kind, usage=Usage.CLIENT, dns_names=dns_names, key=key)


def _not_asked(scheme: SignatureScheme, content: bytes) -> bytes:
    raise AssertionError("certificates are signed by a CA")


@contextlib.contextmanager
def piv_holder(kind: KeyKind, slot: Slot, options: ElementOptions, directory: Path) -> Iterator[PivHolder]:
    """For the contract suites."""
    yield personalised(piv_backend(directory, options=options), kind, slot, t0=options.t0)


@dataclass(frozen=True)
class PivKind:
    """A kind of PIV card for the suite of `CardConnection`."""

    name: str
    options: ElementOptions

    @contextlib.contextmanager
    def card(self, directory: Path) -> Iterator[PivHolder]:
        with piv_holder(KeyKind.ECDSA_P256, Slot.AUTHENTICATION, self.options, directory) as holder:
            yield holder


PIV_KINDS = (
    PivKind("software, PIV", PIV),
    PivKind("software, both applications, T=0", ElementOptions(applications=BOTH.applications, t0=True)),
)
