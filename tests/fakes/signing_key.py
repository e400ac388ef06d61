"""A SigningKey in memory that behaves like one in a card: it refuses what it cannot, and can be gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.support.pki import Identity
from vmtoken.errors import TokenUnavailable
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.signatures import PublicKey, sign
from vmtoken.token import Traffic


class SoftwareKey:
    """The key of an identity, or what is left of its abilities when `schemes` says less."""

    def __init__(
        self,
        identity: Identity,
        schemes: Sequence[SignatureScheme] | None = None,
        *,
        chain: Sequence[bytes] | None = None,
        before_signing: Callable[[], None] = lambda: None,
    ) -> None:
        """`chain` replaces the identity's; `before_signing` may hold the key back or make it fail."""
        self.certificate_chain = identity.chain_der if chain is None else tuple(chain)
        self.schemes = PublicKey.of(identity.certificate).schemes() if schemes is None else tuple(schemes)
        self.closed = 0
        self.traffic = Traffic()
        self._private_key = identity.key
        self._before_signing = before_signing

    def sign(self, scheme: SignatureScheme, content: bytes) -> bytes:
        if self.closed:
            raise TokenUnavailable("The key in memory was closed.")
        if scheme not in self.schemes:
            raise ValueError(f"a key that cannot {scheme.name}")
        self._before_signing()
        signature = sign(self._private_key, scheme, content)
        octets = self.traffic.octets + len(content) + len(signature)
        self.traffic = Traffic(self.traffic.apdus + 1, octets)
        return signature

    def close(self) -> None:
        self.closed += 1
