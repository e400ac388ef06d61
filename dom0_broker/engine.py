"""EngineToken: a key that can only sign, made into a token by running the handshake on this side of the link.

The only caller of `SigningKey.sign`, and what it signs is a transcript that `vmtoken.tls` built here, after
the server proved who it is and policy said yes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from cryptography import x509

from dom0_broker.tls_client.handshake import Client, ClientHandshake
from dom0_broker.tls_client.key_shares import KeyShareStock
from dom0_broker.tls_client.sessions import SessionTable, identity_of
from vmtoken.errors import (
    InvalidRequest,
    TlsHandshakeFailed,
    TlsVersionUnsupported,
    TokenNotReady,
    TokenUnavailable,
    VmTokenError,
)
from vmtoken.tls.certificates import VerifiedServer
from vmtoken.tls.codes import AlertDescription, ProtocolVersion, SignatureScheme
from vmtoken.tls.config import Credential, TrustStore
from vmtoken.tls.errors import AlertReceived, BadCertificate, TlsError
from vmtoken.tls.events import HandshakeComplete, ServerAuthenticated
from vmtoken.tls.ocsp import UNPARSABLE
from vmtoken.tls.signatures import PublicKey
from vmtoken.token import (
    Assurance,
    Authorize,
    HandshakeFailed,
    HandshakeResult,
    HandshakeStart,
    HandshakeStep,
    Resumption,
    SigningKey,
    TokenDescription,
    Traffic,
)


class EngineToken:
    """A `HandshakeToken`; see there what its methods promise.

    TLS is offered in the versions in which the key can sign: not 1.3 if it can only PKCS#1 v1.5
    (RFC 8446 section 4.4.3). Each signature is verified before it leaves. Whatever the key raises
    closes the token, and the key with it.
    """

    def __init__(
        self,
        key: SigningKey,
        *,
        anchors: Sequence[bytes],
        serial: str,
        application: str,
        assurance: Assurance = Assurance.CARD_SIGNATURE,
        traffic: Callable[[], Traffic] | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """The key is asked for its certificates and schemes once, when they are first needed.

        `anchors` are the CA certificates, DER, that servers are verified with; `serial` and `application`
        are for the description; `traffic` tells what went to the card since the key was opened.
        """
        self._key = key
        self._anchors = tuple(anchors)
        self._serial = serial
        self._application = application
        self._assurance = assurance
        self._all_traffic = traffic or Traffic
        self._before = Traffic()
        self._random = random
        self._sessions = SessionTable(random)
        self._shares = KeyShareStock()
        self._credential: Credential | None = None
        self._client: Client | None = None
        self._handshake: EngineHandshake | None = None
        self._closed = False

    @property
    def assurance(self) -> Assurance:
        """See `HandshakeToken.assurance`."""
        return self._assurance

    @property
    def traffic(self) -> Traffic:
        """See `HandshakeToken.traffic`."""
        now = self._all_traffic()
        return Traffic(now.apdus - self._before.apdus, now.octets - self._before.octets)

    def describe(self) -> TokenDescription:
        """See `HandshakeToken.describe`; without a certificate that can be used, no version is named."""
        with self._closed_on_error():
            chain = tuple(self._key.certificate_chain)
            try:
                versions = self._usable_credential().versions
            except TokenNotReady:
                versions = ()
        return TokenDescription(self._serial, self._assurance, chain, versions, self._application)

    def start(self, start: HandshakeStart, authorize: Authorize) -> HandshakeStep:
        """See `HandshakeToken.start`."""
        self._handshake = None
        self._before = self._all_traffic()
        with self._closed_on_error():
            client = self._client = self._client or self._usable_client()
            self._handshake = EngineHandshake(client, start, authorize)
            return self._handshake.hello()

    def process(self, server_records: bytes) -> HandshakeStep:
        """See `HandshakeToken.process`."""
        handshake, self._handshake = self._handshake, None
        with self._closed_on_error():
            if handshake is None:
                raise HandshakeFailed(
                    TlsHandshakeFailed(
                        "The token has no handshake that could take these records; begin another."
                    )
                )
            step = handshake.process(server_records)
        if step.result is None:
            self._handshake = handshake
        return step

    def accept_ticket(self, session: bytes, message: bytes) -> Resumption | None:
        """See `HandshakeToken.accept_ticket`."""
        with self._closed_on_error():
            try:
                return self._sessions.accept_ticket(session, message)
            except KeyError:
                return None
            except TlsError as error:
                unparsable = TlsHandshakeFailed("The server's NewSessionTicket does not parse.")
                raise HandshakeFailed(unparsable) from error

    def abort(self) -> None:
        """See `HandshakeToken.abort`; makes the ephemeral keys of the next handshake."""
        self._handshake = None
        if self._credential is not None and ProtocolVersion.TLS_1_3 in self._credential.versions:
            self._shares.prepare()

    def close(self) -> None:
        """See `HandshakeToken.close`."""
        if not self._closed:
            self._closed = True
            self._handshake = None
            self._sessions.clear()
            self._key.close()

    def _usable_client(self) -> Client:
        try:
            credential, trust = self._usable_credential(), _trust(self._anchors)
        except TokenNotReady as error:
            raise HandshakeFailed(error) from error
        return Client(credential, self._sign, trust, self._sessions, self._shares, self._random)

    def _usable_credential(self) -> Credential:
        self._credential = self._credential or _credential(self._key)
        return self._credential

    def _sign(self, scheme: SignatureScheme, content: bytes) -> bytes:
        """Verified before it leaves: an RSA signature that a fault spoilt can tell the private key."""
        signature = self._key.sign(scheme, content)
        if not self._usable_credential().public_key.has_signed(scheme, signature, content):
            raise TokenUnavailable(
                "The token made a signature that does not verify under its certificate; check that the "
                "certificate belongs to the key, and replace the token if it does."
            )
        return signature

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """A key that is gone, or whose PIN is in doubt, is given back."""
        if self._closed:
            raise TokenUnavailable("The token was closed; open it again.")
        try:
            yield
        except VmTokenError:
            self.close()
            raise


class EngineHandshake:
    """One handshake for one server; raises `HandshakeFailed`, and what the key raises."""

    def __init__(self, client: Client, start: HandshakeStart, authorize: Authorize) -> None:
        """Fails for a start that makes no sense, or one that the key cannot serve."""
        self._client = client
        self._start = start
        self._authorize = authorize
        self._is_server_known = False
        try:
            self._handshake = ClientHandshake(client, _offered(start, client.credential))
        except ValueError as error:
            senseless = InvalidRequest(f"The handshake that was asked for makes no sense: {error}.")
            raise HandshakeFailed(senseless) from error

    def hello(self) -> HandshakeStep:
        """The ClientHello, once."""
        return HandshakeStep(self._handshake.flight())

    def process(self, records: bytes) -> HandshakeStep:
        """See `HandshakeToken.process`."""
        try:
            done = self._run(records)
        except TlsError as error:
            raise HandshakeFailed(self._meaning(error), self._handshake.flight()) from error
        flight = self._handshake.flight()
        return HandshakeStep(flight, None if done is None else self._result(done))

    def _run(self, records: bytes) -> HandshakeComplete | None:
        for event in self._handshake.events(records):
            match event:
                case ServerAuthenticated(server):
                    self._ask_policy(server)
                case HandshakeComplete():
                    return event
        return None

    def _ask_policy(self, server: VerifiedServer) -> None:
        """Before the key signs anything, and before anything that answers the server exists."""
        self._is_server_known = True
        try:
            self._authorize(identity_of(server))
        except VmTokenError as error:
            self._handshake.refuse()
            raise HandshakeFailed(error, self._handshake.flight()) from error

    def _result(self, done: HandshakeComplete) -> HandshakeResult:
        key_block, session = self._handshake.hand_over()
        return HandshakeResult(
            key_block=key_block,
            session=session,
            server=identity_of(done.server),
            resumed=done.resumed,
            alpn=done.alpn,
            group=None if done.group is None else done.group.name,
            client_certificate_sent=done.client_certificate_sent,
        )

    def _meaning(self, error: TlsError) -> VmTokenError:
        """A server that refuses our ClientHello may want a version that was left out for the key's sake."""
        meaning, credential = self._handshake.meaning(error), self._client.credential
        allowed = {version for version in ProtocolVersion if _is_allowed(version, self._start)}
        left_out = allowed.difference(credential.versions)
        is_refusal = isinstance(error, AlertReceived) and error.description in _HELLO_REFUSED
        if left_out and is_refusal and not self._is_server_known:
            who = f"the server {self._start.server_name} agrees to"
            return _unsupported(left_out.pop(), who, credential, **meaning.metadata)
        return meaning


_PKCS1: Final = frozenset(
    {SignatureScheme.RSA_PKCS1_SHA256, SignatureScheme.RSA_PKCS1_SHA384, SignatureScheme.RSA_PKCS1_SHA512}
)
_HELLO_REFUSED: Final = (AlertDescription.PROTOCOL_VERSION, AlertDescription.HANDSHAKE_FAILURE)
"""What servers send that share no version with us; those that look for a cipher suite first, the latter."""

_WORDS: Final = {ProtocolVersion.TLS_1_2: "TLS 1.2", ProtocolVersion.TLS_1_3: "TLS 1.3"}


def _offered(start: HandshakeStart, credential: Credential) -> HandshakeStart:
    """The start with the versions in which the key can sign; raises `HandshakeFailed` if none is left."""
    versions = [version for version in credential.versions if _is_allowed(version, start)]
    if not versions and start.min_version <= start.max_version:
        raise HandshakeFailed(_unsupported(start.max_version, "the request allows", credential))
    return replace(start, min_version=versions[-1], max_version=versions[0]) if versions else start


def _is_allowed(version: ProtocolVersion, start: HandshakeStart) -> bool:
    return start.min_version <= version <= start.max_version


def _unsupported(
    version: ProtocolVersion, who: str, credential: Credential, **metadata: str
) -> TlsVersionUnsupported:
    can, other = _ability(credential), _WORDS[credential.versions[0]]
    return TlsVersionUnsupported(
        f"The key of the token can only sign {can}, which {_WORDS[version]} does not take, and {who} nothing "
        f"else; allow {other} there, or connect with another token.",
        retry_after=None,
        **metadata,
    )


def _ability(credential: Credential) -> str:
    if _PKCS1.issuperset(credential.schemes):
        return "PKCS#1 v1.5"
    return ", ".join(scheme.name for scheme in credential.schemes)


def _credential(key: SigningKey) -> Credential:
    """What the key and its certificate can do together; raises `TokenNotReady`."""
    chain = tuple(key.certificate_chain)
    if not chain:
        raise TokenNotReady("The token has no certificate for its key yet; the operator has to install one.")
    try:
        public_key = PublicKey.of(x509.load_der_x509_certificate(chain[0]))
        schemes = (scheme for scheme in key.schemes if _fits(scheme, public_key))
        return Credential(chain, tuple(schemes))
    except (*UNPARSABLE, BadCertificate) as error:
        raise TokenNotReady(
            "The certificate of the token does not parse, or is for another kind of key; the operator has "
            "to install the right one."
        ) from error


def _fits(scheme: SignatureScheme, public_key: PublicKey) -> bool:
    return any(public_key.can_use(scheme, version) for version in ProtocolVersion)


def _trust(anchors: Sequence[bytes]) -> TrustStore:
    """Raises `TokenNotReady`."""
    if not anchors:
        raise TokenNotReady("The token has no trust anchors yet; the operator has to install some.")
    try:
        return TrustStore(anchors)
    except UNPARSABLE as error:
        raise TokenNotReady(
            "The trust anchors of the token do not parse; the operator has to install them again."
        ) from error
