"""Pkcs11Key: a `SigningKey` behind a PKCS#11 module."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes

from dom0_broker.backends.base import Kept
from dom0_broker.backends.pkcs11.module import KeyInfo, Session, TokenInfo, required_public_key
from dom0_broker.backends.pkcs11.objects import Found, chain_for, spki
from dom0_broker.backends.pkcs11.signing import bits_of, is_usable, ways_of
from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from vmtoken.errors import PinMissing, TokenNotReady, TokenUnavailable
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import SignatureScheme


class Pkcs11Key:
    """A `SigningKey`; see there. `sign` raises `TokenUnavailable`, and what becomes of a PIN.

    A key with CKA_ALWAYS_AUTHENTICATE keeps the PIN as long as it is open, and gives it for each signature.
    """

    def __init__(
        self,
        session: Session,
        public_key: PublicKeyTypes,
        chain: Sequence[bytes],
        pin: SecretBytes | None,
    ) -> None:
        self._session = session
        self._bits = bits_of(public_key)
        self._ways = ways_of(public_key, session.token.mechanisms)
        self._chain = tuple(chain)
        self._pin = pin

    @classmethod
    def find(cls, session: Session, uri: Pkcs11Uri, pin: SecretBytes | None, kept: Kept) -> Pkcs11Key:
        """Raises `TokenNotReady`, `PinMissing`, `Conflict`. The session stays the caller's when it raises."""
        key = required_key(session, uri)
        certificates = session.certificates()
        public_key = required_public_key(key, certificates)
        if not is_usable(public_key):
            raise TokenNotReady("The key of the PKCS#11 token is of a kind that TLS does not use here.")
        if key.always_authenticate and pin is None:
            raise PinMissing(
                "The key of the PKCS#11 token wants the PIN for each signature; give it to the broker."
            )
        own_pin = SecretBytes(pin.reveal()) if pin is not None and key.always_authenticate else None
        chain = _chain(key, public_key, certificates, kept)
        return cls(session, public_key, chain, own_pin)

    @property
    def token(self) -> TokenInfo:
        """Where it is, as it was when it was opened."""
        return self._session.token

    @property
    def certificate_chain(self) -> Sequence[bytes]:
        """See `SigningKey.certificate_chain`; empty when no certificate is of this key."""
        return self._chain

    @property
    def schemes(self) -> Sequence[SignatureScheme]:
        """See `SigningKey.schemes`: those that the mechanisms of the token allow."""
        return tuple(self._ways)

    def sign(self, scheme: SignatureScheme, content: bytes) -> bytes:
        """See `SigningKey.sign`. Raises `ValueError` for a scheme that is not offered."""
        way = self._ways.get(scheme)
        if way is None:
            raise ValueError(f"a PKCS#11 key that does not sign with {scheme.name}")
        raw = self._session.sign(way, way.prepare(scheme, content, self._bits), self._pin)
        try:
            return way.finish(raw)
        except ValueError as error:
            raise TokenUnavailable("The PKCS#11 module made a signature that makes no sense.") from error

    def forget_pin(self) -> None:
        """For whoever goes on with the session, but not with the key."""
        if self._pin is not None:
            self._pin.wipe()

    def close(self) -> None:
        """See `SigningKey.close`."""
        self.forget_pin()
        self._session.close()


def required_key(session: Session, uri: Pkcs11Uri) -> KeyInfo:
    """Raises `TokenNotReady` without a key, `PinMissing` when it may be behind a PIN that was not given."""
    key = session.find(uri)
    if key is not None and (session.logged_in or not key.private or not session.needs_login):
        return key
    if session.needs_login and not session.logged_in:
        raise PinMissing(
            "The PKCS#11 token needs its user PIN, and none was given; the operator has to give it."
        )
    raise TokenNotReady("The PKCS#11 token has no key at this URI; generate one, or correct the URI.")


def _chain(
    key: KeyInfo, public_key: PublicKeyTypes, certificates: Sequence[Found], kept: Kept
) -> tuple[bytes, ...]:
    """What the broker keeps counts, unless it is of an earlier key; then what lies in the token."""
    wanted = spki(public_key)
    if kept.chain:
        leaf = Found(b"", kept.chain[0]).public_key()
        if leaf is not None and spki(leaf) == wanted:
            return kept.chain
    return chain_for(wanted, certificates, key.id)
