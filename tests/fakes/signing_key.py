"""A SigningKey in memory that behaves like one in a card: it refuses what it cannot, and can be gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.support.pki import Identity
from vmtoken.errors import TokenUnavailable
from vmtoken.tls.codes import SignatureScheme
from vmtoken.tls.signatures import PublicKey, sign


class SoftwareKey:
    """The key of an identity, or what is left of its abilities when `schemes` says less."""

    def __init__(
        self,
        identity: Identity,
        schemes: Sequence[SignatureScheme] | None = None,
        *,
        chain: Sequence[bytes] | None = None,
        before_signing: Callable[[], None] = lambda: None,
        spoil: Callable[[bytes], bytes] = lambda signature: signature,
    ) -> None:
        """`chain` replaces the identity's; `before_signing` may fail, `spoil` is a fault in the hardware."""
        self.certificate_chain = identity.chain_der if chain is None else tuple(chain)
        self.schemes = PublicKey.of(identity.certificate).schemes() if schemes is None else tuple(schemes)
        self.closed = 0
        self.used: list[SignatureScheme] = []
        """Of the signatures made so far, as a card's counter of signatures would tell."""
        self._private_key = identity.key
        self._before_signing = before_signing
        self._spoil = spoil

    @property
    def signatures(self) -> int:
        return len(self.used)

    def sign(self, scheme: SignatureScheme, content: bytes) -> bytes:
        if self.closed:
            raise TokenUnavailable("The key in memory was closed.")
        if scheme not in self.schemes:
            raise ValueError(f"a key that cannot {scheme.name}")
        self._before_signing()
        self.used.append(scheme)
        return self._spoil(sign(self._private_key, scheme, content))

    def close(self) -> None:
        self.closed += 1
