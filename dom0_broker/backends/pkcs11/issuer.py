"""Pkcs11Issuer: makes keys in a PKCS#11 token and has requests signed by them, under the user PIN."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from dom0_broker.backends.base import NOTHING_KEPT
from dom0_broker.backends.pkcs11.codes import KeyType
from dom0_broker.backends.pkcs11.key import Pkcs11Key, required_key
from dom0_broker.backends.pkcs11.module import KeyInfo, Session, required_public_key
from dom0_broker.backends.pkcs11.objects import EC_PARAMS, ED25519_PARAMS, spki
from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from vmtoken import csr
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.errors import Conflict, InvalidRequest, TokenNotReady
from vmtoken.secret import SecretBytes

log = logging.getLogger(__name__)

_ID_LENGTH: Final = 16
"""Octets of a CKA_ID that we choose: random, since it has to be there before the key is."""

_LABEL: Final = "vmtoken"
"""CKA_LABEL where the URI says none."""


@dataclass(frozen=True, slots=True)
class _Template:
    key_type: KeyType
    size: int = 0
    params: tuple[bytes, ...] = (b"",)
    """CKA_EC_PARAMS, in the forms that modules take, tried in this order."""


_TEMPLATES: Final = {
    KeyAlgorithm.ECDSA_P256: _Template(KeyType.CKK_EC, params=(EC_PARAMS["secp256r1"],)),
    KeyAlgorithm.ECDSA_P384: _Template(KeyType.CKK_EC, params=(EC_PARAMS["secp384r1"],)),
    KeyAlgorithm.ED25519: _Template(KeyType.CKK_EC_EDWARDS, params=ED25519_PARAMS),
    KeyAlgorithm.RSA_2048: _Template(KeyType.CKK_RSA, 2048),
    KeyAlgorithm.RSA_3072: _Template(KeyType.CKK_RSA, 3072),
}


class Pkcs11Issuer:
    """A `TokenIssuer`; see there. The broker keeps chain and anchors; the leaf goes into the token too."""

    def __init__(self, session: Session, uri: Pkcs11Uri, pin: SecretBytes | None) -> None:
        """`session` is logged in and may write; it belongs to the issuer from now on."""
        self._session = session
        self._uri = uri
        self._pin = None if pin is None else SecretBytes(pin.reveal())

    @property
    def keeps_certificates(self) -> bool:
        """Many tokens have no room for certificates, and none keeps trust anchors apart from others."""
        return False

    def generate_key(self, algorithm: KeyAlgorithm) -> bytes:
        """See `TokenIssuer.generate_key`; the key that is there stays until the new one exists."""
        template = _TEMPLATES.get(algorithm)
        if template is None:
            raise Conflict(f"PKCS#11 tokens make no {algorithm.name} keys; choose another algorithm.")
        if self._uri.id is None and self._uri.object is None:
            raise InvalidRequest(
                "The PKCS#11 URI does not name the key to be made; add object= or id= to it."
            )
        self._session.find(self._uri)
        return spki(required_public_key(self._generated(template, algorithm), ()))

    def public_key(self) -> bytes:
        """See `TokenIssuer.public_key`."""
        with _no_key_is_a_conflict():
            key = required_key(self._session, self._uri)
            return spki(required_public_key(key, self._session.certificates()))

    def certificate_request(self, subject: str, dns_names: Sequence[str] = ()) -> bytes:
        """See `TokenIssuer.certificate_request`."""
        with _no_key_is_a_conflict():
            key = Pkcs11Key.find(self._session, self._uri, self._pin, NOTHING_KEPT)
        try:
            return csr.certificate_request(self.public_key(), key.schemes, key.sign, subject, dns_names)
        finally:
            key.forget_pin()

    def install_certificate_chain(self, chain: Sequence[bytes]) -> None:
        """See `TokenIssuer.install_certificate_chain`."""
        try:
            csr.check_chain(self.public_key(), chain)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Conflict(
                "The certificate chain does not parse, is out of order or belongs to another key; "
                "give the one issued for the request of this token, leaf first."
            ) from error
        self._store(chain[0])

    def install_trust_anchors(self, anchors: Sequence[bytes]) -> None:
        """See `TokenIssuer.install_trust_anchors`: looks at them only, the broker keeps them."""
        if not anchors:
            raise InvalidRequest("There is nothing to store; give at least one certificate.")
        try:
            for anchor in anchors:
                x509.load_der_x509_certificate(anchor).public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Conflict("The trust anchors cannot be read; give X.509 certificates of CAs.") from error

    def destroy_key(self) -> None:
        """See `TokenIssuer.destroy_key`."""
        with _no_key_is_a_conflict():
            required_key(self._session, self._uri)
        self._session.destroy_key()

    def close(self) -> None:
        """See `TokenIssuer.close`."""
        if self._pin is not None:
            self._pin.wipe()
        self._session.close()

    def _generated(self, template: _Template, algorithm: KeyAlgorithm) -> KeyInfo:
        key_id = self._uri.id or secrets.token_bytes(_ID_LENGTH)
        label = self._uri.object or _LABEL
        for params in template.params:
            try:
                return self._session.generate(template.key_type, template.size, params, key_id, label)
            except Conflict as error:
                refusal = error
        raise Conflict(
            f"The PKCS#11 token makes no {algorithm.name} keys; choose another algorithm."
        ) from refusal

    def _store(self, certificate: bytes) -> None:
        """For other programs that look into the token; the broker does not need it there."""
        leaf = x509.load_der_x509_certificate(certificate)
        label = self._uri.object or _LABEL
        try:
            self._session.store_certificate(leaf.subject.public_bytes(), label, certificate)
        except Conflict as error:
            log.info("token takes no certificate, the broker keeps it", extra={"because": error.message})


@contextlib.contextmanager
def _no_key_is_a_conflict() -> Iterator[None]:
    try:
        yield
    except TokenNotReady as error:
        raise Conflict(error.message) from error
