"""The use cases of dom0's operator for tokens: make, make known, personalise, forget.

Work on a card runs in the token's own thread, between two handshakes. Every change is in the audit log.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from dom0_broker.administration import recorded
from dom0_broker.audit import Fields
from dom0_broker.backends.base import FoundToken, Kept, TokenIssuer
from dom0_broker.certificates import check_chain, is_valid, names_to_renew
from dom0_broker.domains import checked_name
from dom0_broker.elements import Elements, random_pins
from dom0_broker.handshake import Desk
from dom0_broker.inventory import Token
from dom0_broker.pins import PinKeeper
from dom0_broker.pool import check_replacement
from dom0_broker.store import PinRole, Store, TokenRecord
from vmtoken.cards.codes import KeyAlgorithm
from vmtoken.errors import AlreadyExists, Conflict, NotFound, TokenNotReady
from vmtoken.secret import SecretBytes

__all__ = ["KeyAlgorithm", "TokenAdministration"]

Result = TypeVar("Result")


class TokenAdministration:
    """Tokens. Used from the event loop; cards and store work in threads."""

    def __init__(
        self, store: Store, desk: Desk, elements: Elements, pins: PinKeeper, one_at_a_time: asyncio.Lock
    ) -> None:
        self._store = store
        self._desk = desk
        self._elements = elements
        self._pins = pins
        self._one_at_a_time = one_at_a_time

    async def create(self, name: str, uri: str, algorithm: KeyAlgorithm) -> tuple[str, bytes]:
        """A new token with a key pair inside: its URI and public key. Raises `AlreadyExists`, `Conflict`."""
        uri = uri or f"soft:{name}"
        async with self._one_at_a_time:
            self._check_free(name, uri)
            record = self._elements.record(name, uri)
            await asyncio.to_thread(self._make, record)
            token = self._desk.inventory.put_token(record)
            await self._record("token-created", token, {"uri": uri, "algorithm": algorithm.name})
        return uri, await self._with_key(token, algorithm, destroy=True)

    async def create_in(
        self,
        name: str,
        uri: str,
        algorithm: KeyAlgorithm,
        user_pin: SecretBytes | None,
        operator_pin: SecretBytes | None,
    ) -> bytes:
        """As `create`, in a card that exists and holds no certificate. Errors as `add`, and `Conflict`."""
        token = await self.add(name, uri, user_pin, operator_pin)
        return await self._with_key(token, algorithm, destroy=False)

    async def generate_key(self, name: str, algorithm: KeyAlgorithm, *, replace_key: bool) -> bytes:
        """A key pair made inside a token; its SubjectPublicKeyInfo, DER. The earlier certificate is gone.

        Raises `Conflict` when there is a certificate and the key is not to be replaced, or the token cannot.
        """
        token = self._desk.inventory.token(name)
        if not replace_key and (await self._opened(token)).leaf:
            raise Conflict(
                f"Token '{name}' has a certificate, which is of no use with another key; "
                "'vmtokenctl token renew --new-key' replaces both."
            )
        public_key = await self._issue(token, lambda issuer: issuer.generate_key(algorithm))
        await self._key_replaced(token, algorithm)
        return public_key

    async def add(
        self, name: str, uri: str, user_pin: SecretBytes | None, operator_pin: SecretBytes | None
    ) -> Token:
        """Make a token known that exists. Raises `AlreadyExists`, `InvalidRequest`, `PinRejected`.

        A PIN that is known from another token of its card need not be given; another is a `Conflict`.
        """
        async with self._one_at_a_time:
            self._check_free(name, uri)
            record = self._elements.record(name, uri)
            given = {PinRole.USER: user_pin, PinRole.OPERATOR: operator_pin}
            pins = {role: pin for role, pin in given.items() if pin is not None}
            await asyncio.to_thread(self._keep_new, record, pins)
            token = self._desk.inventory.put_token(record)
            await self._record("token-added", token, {"uri": uri})
        return token

    async def remove(self, name: str, *, destroy: bool) -> None:
        """Forget a token, and destroy the element if asked. Raises `NotFound`, `Conflict` (it is bound)."""
        async with self._one_at_a_time:
            token = self._desk.inventory.token(name)
            if self._desk.inventory.vms_of(name):
                raise Conflict(f"Token '{name}' is bound to a VM; unbind it first.")
            await self._desk.inventory.remove_token(name, NotFound(f"Token '{name}' was removed."))
            try:
                await asyncio.to_thread(self._unmake, token.record, destroy)
            except BaseException:
                self._desk.inventory.put_token(token.record)
                raise
            self._desk.sessions.forget_token(name)
            await self._record("token-destroyed" if destroy else "token-removed", token)

    async def discover(self) -> list[tuple[FoundToken, Token | None]]:
        """What could be made a token, and which token it is already."""
        found = await asyncio.to_thread(self._elements.discover)
        known = {_full_uri(token.record.uri): token for token in self._desk.inventory.tokens()}
        return [(each, known.get(_full_uri(each.uri))) for each in found]

    async def reset(self, name: str) -> Token:
        """Get a token that hangs going again, and open it anew. Raises `NotFound`, `TokenUnavailable`."""
        token = self._desk.inventory.token(name)
        await asyncio.to_thread(self._elements.reset, token.record)
        token.worker.look_again(lambda: False)
        await self._record("token-reset", token)
        return token

    async def certificate_request(self, name: str, subject: str, dns_names: Sequence[str]) -> bytes:
        """PKCS#10, DER, signed inside the token. Raises `NotFound`, `InvalidRequest`, card errors."""
        token = self._desk.inventory.token(name)
        names = tuple(dns_names)
        return await self._issue(token, lambda issuer: issuer.certificate_request(subject, names))

    async def renewal_request(self, name: str, new_key: KeyAlgorithm | None) -> bytes:
        """As `certificate_request`, with the names of the present certificate, for its key or a new one.

        With a new key the token has no certificate until the next one is installed. Raises `Conflict` without
        a certificate, or when its names cannot be asked for again.
        """
        token = self._desk.inventory.token(name)
        leaf = (await self._opened(token)).leaf
        if not leaf:
            raise Conflict(f"Token '{name}' has no certificate to renew; use 'vmtokenctl token enroll'.")
        subject, names = names_to_renew(leaf)

        if new_key is not None:
            await self.generate_key(name, new_key, replace_key=True)
        return await self._issue(token, lambda issuer: issuer.certificate_request(subject, names))

    async def install_certificate(self, name: str, chain: Sequence[bytes]) -> list[str]:
        """Store a chain, leaf first, for the next handshake on; what the operator should know of it.

        Raises `Conflict`, and the earlier one stays, when it does not match the key, no server would take it,
        or it does not fit a pool. Handshakes under way go on; sessions made before are not resumed.
        """
        token = self._desk.inventory.token(name)
        certificates, now = tuple(chain), self._desk.clock.now()
        warnings = check_chain(certificates, now)
        leaf = certificates[0]
        await token.state()
        if token.leaf and is_valid(token.leaf, now) and not is_valid(leaf, now):
            message = "The present certificate stays; install the other one when it has become valid."
            raise Conflict(" ".join((message, *warnings)))
        check_replacement(self._desk.inventory, token, leaf)

        def install(issuer: TokenIssuer) -> bool:
            issuer.install_certificate_chain(certificates)
            return issuer.keeps_certificates

        if not await self._issue(token, install):
            await self._keep(token, replace(token.record.kept, chain=certificates))
            await token.alone(lambda: None)
        self._desk.sessions.forget_token(name)
        digest = hashlib.sha256(leaf).hexdigest()
        fields: Fields = {"certificates": len(certificates), "leaf_sha256": digest}
        await self._record("certificate-installed", token, fields)
        await token.state()
        return warnings

    async def install_trust(self, name: str, anchors: Sequence[bytes]) -> None:
        """Store trust anchors; sessions made with the earlier ones are not resumed."""
        token = self._desk.inventory.token(name)
        certificates = tuple(anchors)

        def install(issuer: TokenIssuer) -> bool:
            issuer.install_trust_anchors(certificates)
            return issuer.keeps_certificates

        token_keeps = await self._issue(token, install)
        await self._keep(token, replace(token.record.kept, anchors=certificates))
        if not token_keeps:
            await token.alone(lambda: None)
        self._desk.sessions.forget_token(name)
        await self._record("trust-installed", token, {"anchors": len(certificates)})
        await token.state()

    async def _with_key(self, token: Token, algorithm: KeyAlgorithm, *, destroy: bool) -> bytes:
        """The first key of a token; one that cannot have it is not left behind half made."""
        try:
            return await self.generate_key(token.name, algorithm, replace_key=False)
        except BaseException:
            await self.remove(token.name, destroy=destroy)
            raise

    async def _key_replaced(self, token: Token, algorithm: KeyAlgorithm) -> None:
        if token.record.kept.chain:
            await self._keep(token, replace(token.record.kept, chain=()))
            await token.alone(lambda: None)
        self._desk.sessions.forget_token(token.name)
        await self._record("key-generated", token, {"algorithm": algorithm.name})

    async def _opened(self, token: Token) -> Token:
        """A token after a try to open it, so that it shows what it holds. Raises why it cannot be opened."""
        problem = (await token.state()).problem
        if token.leaf is None and problem is not None and not isinstance(problem, TokenNotReady):
            raise problem
        return token

    def _make(self, record: TokenRecord) -> None:
        """PINs first: killed in between, there is a token without an element, and never the reverse."""
        pins = random_pins()
        self._keep_new(record, {PinRole.USER: pins.user, PinRole.OPERATOR: pins.operator})
        try:
            self._elements.create(record, pins)
        except BaseException:
            self._store.remove_token(record.name)
            self._pins.forget(record.name)
            raise

    def _keep_new(self, record: TokenRecord, pins: Mapping[PinRole, SecretBytes]) -> None:
        """A token and its PINs, which may be those of another token of its card."""
        self._pins.add(record, pins, self._elements.pin_holder(record.uri))

    def _unmake(self, record: TokenRecord, destroy: bool) -> None:
        """The element first, for the same reason."""
        if destroy:
            self._elements.delete(record)
        self._store.remove_token(record.name)
        self._pins.forget(record.name)

    async def _keep(self, token: Token, kept: Kept) -> None:
        """What the token cannot keep itself, or not show: it is given back when the token is opened anew."""
        await asyncio.to_thread(self._store.keep_certificates, token.name, kept)
        token.record = replace(token.record, kept=kept)

    async def _issue(self, token: Token, work: Callable[[TokenIssuer], Result]) -> Result:
        """Personalise a card while nobody else has it."""

        def issue() -> Result:
            with self._elements.issuing(token.record) as issuer:
                return work(issuer)

        return await token.alone(issue)

    def _check_free(self, name: str, uri: str) -> None:
        checked_name(name, "token")
        if any(name == each.name or uri == each.record.uri for each in self._desk.inventory.tokens()):
            raise AlreadyExists(f"There is a token '{name}' or one at {uri} already.")

    async def _record(self, event: str, token: Token, fields: Fields | None = None) -> None:
        await recorded(self._desk.audit, event, {"token": token.name, **(fields or {})})


def _full_uri(uri: str) -> str:
    """Two URIs of one token as the same text: the usual slot of a PIV card may be left out."""
    return uri.lower().removesuffix(";slot=9a")
