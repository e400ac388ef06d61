"""Keys that can only sign, each kind as the contract suites want it.

A backend adds its own to `SIGNING_KEYS`: a `SigningKeyKind` whose holder is a context manager. The suites of
`tests/contract` then run for the key itself, and for the token that the engine makes of it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dom0_broker.backends.software.element import Applications, ElementOptions
from tests.fakes.signing_key import SoftwareKey
from tests.support.piv import piv_holder
from tests.support.pkcs11 import P11_KIT_PROXY, SOFTHSM, opensc_holder, softhsm_holder, tpm_holder
from tests.support.pki import Identity, KeyKind, client_identity
from vmtoken.cards.piv_codes import Slot
from vmtoken.tls.codes import SignatureScheme
from vmtoken.token import SigningKey

PKCS1 = (
    SignatureScheme.RSA_PKCS1_SHA256,
    SignatureScheme.RSA_PKCS1_SHA384,
    SignatureScheme.RSA_PKCS1_SHA512,
)


class KeyHolder(Protocol):
    """What has the key inside: a card, a module, memory."""

    @property
    def identity(self) -> Identity:
        """Whose key it is; its chain is what the key must give."""
        ...

    def key(self) -> SigningKey:
        """Open it; whoever asked closes it."""
        ...


@dataclass(frozen=True)
class SigningKeyKind:
    """A kind of key. Where a program is missing, `holder` skips with the reason, and fails in CI."""

    name: str
    holder: Callable[[Path], AbstractContextManager[KeyHolder]]
    """Called with an empty directory of its own."""

    tls13: bool = True
    """Whether the key can sign in TLS 1.3."""


@dataclass(frozen=True)
class _Memory:
    identity: Identity
    schemes: tuple[SignatureScheme, ...] | None

    def key(self) -> SoftwareKey:
        return SoftwareKey(self.identity, self.schemes)


@contextlib.contextmanager
def _memory(kind: KeyKind, schemes: tuple[SignatureScheme, ...] | None, _: Path) -> Iterator[_Memory]:
    yield _Memory(client_identity(kind), schemes)


def _in_memory(kind: KeyKind, schemes: tuple[SignatureScheme, ...] | None = None) -> SigningKeyKind:
    suffix = "" if schemes is None else ", PKCS#1 only"
    holder = functools.partial(_memory, kind, schemes)
    return SigningKeyKind(f"memory, {kind}{suffix}", holder, tls13=schemes is None)


def _piv(kind: KeyKind, slot: Slot, *, t0: bool = False) -> SigningKeyKind:
    options = ElementOptions(applications=Applications.PIV, t0=t0)
    suffix = ", T=0" if t0 else ""
    holder = functools.partial(piv_holder, kind, slot, options)
    return SigningKeyKind(f"PIV slot {slot}, {kind}{suffix}", holder)


def _pkcs11(name: str, kind: KeyKind, library: Path) -> SigningKeyKind:
    return SigningKeyKind(f"{name}, {kind}", functools.partial(softhsm_holder, kind, library))


def _opensc(kind: KeyKind, slot: Slot) -> SigningKeyKind:
    return SigningKeyKind(f"OpenSC, PIV slot {slot}, {kind}", functools.partial(opensc_holder, kind, slot))


def _tpm(kind: KeyKind) -> SigningKeyKind:
    return SigningKeyKind(f"TPM 2.0, {kind}", functools.partial(tpm_holder, kind))


SIGNING_KEYS = (
    _in_memory(KeyKind.ECDSA_P256),
    _in_memory(KeyKind.ECDSA_P384),
    _in_memory(KeyKind.RSA_2048),
    _in_memory(KeyKind.RSA_2048, PKCS1),
    _in_memory(KeyKind.ED25519),
    _piv(KeyKind.ECDSA_P256, Slot.AUTHENTICATION),
    _piv(KeyKind.RSA_2048, Slot.SIGNATURE),
    _piv(KeyKind.RSA_3072, Slot.KEY_MANAGEMENT),
    _piv(KeyKind.ECDSA_P384, Slot.CARD_AUTHENTICATION, t0=True),
    _pkcs11("SoftHSM", KeyKind.ECDSA_P256, SOFTHSM),
    _pkcs11("SoftHSM", KeyKind.ECDSA_P384, SOFTHSM),
    _pkcs11("SoftHSM", KeyKind.RSA_2048, SOFTHSM),
    _pkcs11("SoftHSM", KeyKind.RSA_3072, SOFTHSM),
    _pkcs11("SoftHSM", KeyKind.ED25519, SOFTHSM),
    _pkcs11("SoftHSM through p11-kit-proxy", KeyKind.ECDSA_P256, P11_KIT_PROXY),
    _pkcs11("SoftHSM through p11-kit-proxy", KeyKind.RSA_2048, P11_KIT_PROXY),
    _opensc(KeyKind.ECDSA_P256, Slot.AUTHENTICATION),
    _opensc(KeyKind.RSA_2048, Slot.SIGNATURE),
    _tpm(KeyKind.ECDSA_P256),
    _tpm(KeyKind.RSA_2048),
)
