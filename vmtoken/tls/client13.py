"""The states of a TLS 1.3 client, from the ServerHello to its own Finished (RFC 8446)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from vmtoken.secret import SecretBytes
from vmtoken.tls.certificates import CertificateVerifier, CertifiedKey, VerifiedServer
from vmtoken.tls.codes import ExtensionType, HandshakeType, NamedGroup, ProtocolVersion, SignatureScheme
from vmtoken.tls.config import EMPTY_CERTIFICATE, ClientConfig, Credential
from vmtoken.tls.errors import DecryptError, IllegalParameter, MissingExtension, UnexpectedMessage
from vmtoken.tls.events import HandshakeComplete, ServerAuthenticated, SignatureNeeded
from vmtoken.tls.extensions import (
    CertificateAuthorities,
    Context,
    KeyShareServerHello,
    OcspStatus,
    SelectedPsk,
    SignatureAlgorithms,
)
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.key_exchange import KeyExchange
from vmtoken.tls.key_schedule import (
    EarlySecret,
    HandshakeSecret,
    MasterSecret,
    export_keying_material,
    finished_verify_data,
)
from vmtoken.tls.keylog import KeyLogLabel
from vmtoken.tls.messages import (
    Certificate13,
    CertificateEntry,
    CertificateRequest13,
    CertificateVerify,
    EncryptedExtensions,
    Finished,
    HandshakeMessage,
    ServerHello,
)
from vmtoken.tls.negotiation import (
    RecordLimits,
    agreed_limits,
    check_certificate_may_be_left_out,
    chosen_alpn,
    usable_credential,
)
from vmtoken.tls.offer import Offer
from vmtoken.tls.signatures import client_content, server_content
from vmtoken.tls.state import Connected, ExpectSignature, Output, State
from vmtoken.tls.suites import Suite, suite_of
from vmtoken.tls.tickets import ResumableSession, ResumptionSecret
from vmtoken.tls.transcript import Transcript


def start(offer: Offer, suite: Suite, hello: ServerHello, transcript: Transcript, output: Output) -> State:
    """Take share and PSK from the ServerHello, which the transcript ends with; change to handshake keys."""
    hello.extensions.check_answers(offer.extension_types, Context.SERVER_HELLO_13)
    session = _accepted_session(offer, suite, hello)
    share, peer = _key_share(offer, hello)
    early = EarlySecret(suite, session.secret.reveal()) if session else EarlySecret.without_psk(suite)
    secret = early.handshake_secret(share.shared_secret(peer))
    digest = transcript.digest()
    client_secret = secret.client_traffic_secret(digest)
    server_secret = secret.server_traffic_secret(digest)
    output.log_key(KeyLogLabel.CLIENT_HANDSHAKE_TRAFFIC_SECRET, offer.random, client_secret)
    output.log_key(KeyLogLabel.SERVER_HANDSHAKE_TRAFFIC_SECRET, offer.random, server_secret)
    output.protect_reading(suite, server_secret)
    output.protect_writing(suite, client_secret)
    return ExpectEncryptedExtensions(
        Handshake(offer, suite, share.group, session, transcript, secret, client_secret, server_secret)
    )


def _accepted_session(offer: Offer, suite: Suite, hello: ServerHello) -> ResumableSession | None:
    selected = hello.extensions.find(SelectedPsk)
    if selected is None:
        return None
    session = offer.psk
    if session is None or selected.selected_identity != 0:
        raise IllegalParameter("the server chose a PSK that was not offered")
    psk_suite = suite_of(session.cipher_suite)
    if psk_suite is None or psk_suite.hash_name != suite.hash_name:
        raise IllegalParameter("the server chose a cipher suite whose hash is not the one of the PSK")
    return session


def _key_share(offer: Offer, hello: ServerHello) -> tuple[KeyExchange, bytes]:
    """A PSK without a share is psk_ke, which was not offered."""
    extension = hello.extensions.find(KeyShareServerHello)
    if extension is None:
        raise MissingExtension(ExtensionType.KEY_SHARE)
    share = offer.share(extension.server_share.group)
    if share is None:
        raise IllegalParameter("the server chose a group for which no share was sent")
    return share, extension.server_share.key_exchange


@dataclass(frozen=True, slots=True)
class Handshake:
    """What all states know once the keys of the handshake are there."""

    offer: Offer
    suite: Suite
    group: NamedGroup
    session: ResumableSession | None
    """The session that is resumed."""

    transcript: Transcript
    secret: HandshakeSecret = field(repr=False)
    client_secret: bytes = field(repr=False)
    """client_handshake_traffic_secret"""

    server_secret: bytes = field(repr=False)
    """server_handshake_traffic_secret"""

    @property
    def config(self) -> ClientConfig:
        """The settings."""
        return self.offer.config

    def verify_data(self, base_key: bytes) -> bytes:
        """Of a Finished message that comes now (section 4.4.4)."""
        return finished_verify_data(self.suite, base_key, self.transcript.digest())


@dataclass(frozen=True, slots=True)
class Agreement:
    """What EncryptedExtensions settled."""

    alpn: str | None
    limits: RecordLimits


class _Encrypted(State):
    """States that read under the handshake key."""

    __slots__ = ()
    version = ProtocolVersion.TLS_1_3
    ignores_change_cipher_spec = True


@dataclass(frozen=True, slots=True)
class ExpectEncryptedExtensions(_Encrypted):
    """Section 4.3.1."""

    expected = (HandshakeType.ENCRYPTED_EXTENSIONS,)

    handshake: Handshake

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Check the server's choices. A resumption has no certificates."""
        if not isinstance(message, EncryptedExtensions):
            raise UnexpectedMessage(message.handshake_type, self.expected)
        handshake = self.handshake
        message.extensions.check_answers(handshake.offer.extension_types, Context.ENCRYPTED_EXTENSIONS)
        if ExtensionType.EARLY_DATA in message.extensions:
            raise IllegalParameter("the server accepts early data, which was not offered")
        alpn = chosen_alpn(handshake.config, message.extensions)
        limits = agreed_limits(handshake.config, message.extensions, ProtocolVersion.TLS_1_3)
        agreement = Agreement(alpn, limits)
        output.limit_records(limits)
        handshake.transcript.add(encoded)
        if handshake.session is not None:
            return ExpectFinished(handshake, agreement, handshake.session.server, None)
        return ExpectCertificateOrRequest(handshake, agreement)


@dataclass(frozen=True, slots=True)
class ExpectCertificateOrRequest(_Encrypted):
    """The server may ask for a certificate before it sends its own."""

    expected = (HandshakeType.CERTIFICATE_REQUEST, HandshakeType.CERTIFICATE)

    handshake: Handshake
    agreement: Agreement

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Section 4.3.2."""
        if not isinstance(message, CertificateRequest13):
            return ExpectCertificate(self.handshake, self.agreement, None).handle(message, encoded, output)
        if message.certificate_request_context:
            raise IllegalParameter("the server's CertificateRequest has a context within the handshake")
        if ExtensionType.SIGNATURE_ALGORITHMS not in message.extensions:
            raise MissingExtension(ExtensionType.SIGNATURE_ALGORITHMS)
        self.handshake.transcript.add(encoded)
        return ExpectCertificate(self.handshake, self.agreement, message)


@dataclass(frozen=True, slots=True)
class ExpectCertificate(_Encrypted):
    """Section 4.4.2."""

    expected = (HandshakeType.CERTIFICATE,)

    handshake: Handshake
    agreement: Agreement
    request: CertificateRequest13 | None

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Verify path, name and dates."""
        if not isinstance(message, Certificate13):
            raise UnexpectedMessage(message.handshake_type, self.expected)
        if message.certificate_request_context:
            raise IllegalParameter("the server's Certificate has a context")
        staples = [self._staple(entry) for entry in message.entries]
        config = self.handshake.config
        verifier = CertificateVerifier(config.server_name, config.subject, config.trust, config.time)
        certified = verifier.verify(message.chain, staples)
        self.handshake.transcript.add(encoded)
        return ExpectCertificateVerify(self.handshake, self.agreement, self.request, certified)

    def _staple(self, entry: CertificateEntry) -> bytes | None:
        if not entry.extensions.items:
            return None
        entry.extensions.check_answers(self.handshake.offer.extension_types, Context.CERTIFICATE)
        status = entry.extensions.find(OcspStatus)
        return status.response if status else None


@dataclass(frozen=True, slots=True)
class ExpectCertificateVerify(_Encrypted):
    """The server must prove that the certificate it sent is its own (section 4.4.3)."""

    expected = (HandshakeType.CERTIFICATE_VERIFY,)

    handshake: Handshake
    agreement: Agreement
    request: CertificateRequest13 | None
    certified: CertifiedKey

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Verify the signature over all that came before."""
        if not isinstance(message, CertificateVerify):
            raise UnexpectedMessage(message.handshake_type, self.expected)
        transcript = self.handshake.transcript
        content = server_content(transcript.digest())
        server = self.certified.prove(message.algorithm, ProtocolVersion.TLS_1_3, message.signature, content)
        transcript.add(encoded)
        return ExpectFinished(self.handshake, self.agreement, server, self.request)


@dataclass(frozen=True, slots=True)
class ExpectFinished(_Encrypted):
    """Section 4.4.4: after it the server is known, certificate or PSK."""

    expected = (HandshakeType.FINISHED,)

    handshake: Handshake
    agreement: Agreement
    server: VerifiedServer
    request: CertificateRequest13 | None

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Verify the MAC over all that came before; then ask the driver whether to go on."""
        if not isinstance(message, Finished):
            raise UnexpectedMessage(message.handshake_type, self.expected)
        handshake = self.handshake
        if not hmac.compare_digest(message.verify_data, handshake.verify_data(handshake.server_secret)):
            raise DecryptError("the server's Finished does not verify")
        output.end_messages()
        handshake.transcript.add(encoded)
        application = _application_secrets(handshake, output)
        output.emit(ServerAuthenticated(self.server, resumed=handshake.session is not None))
        return AwaitConsent(handshake, self.agreement, self.server, self.request, application)


@dataclass(frozen=True, slots=True)
class ApplicationSecrets:
    """Of the traffic after the handshake (section 7.1)."""

    master: MasterSecret = field(repr=False)
    client: bytes = field(repr=False)
    server: bytes = field(repr=False)
    digest: bytes
    """Transcript-Hash up to the server's Finished, which the exporter starts from too."""

    @property
    def exporter(self) -> bytes:
        """exporter_master_secret."""
        return self.master.exporter_secret(self.digest)


def _application_secrets(handshake: Handshake, output: Output) -> ApplicationSecrets:
    master = handshake.secret.master_secret()
    digest = handshake.transcript.digest()
    client, server = master.client_traffic_secret(digest), master.server_traffic_secret(digest)
    secrets = ApplicationSecrets(master, client, server, digest)
    if handshake.config.key_log is not None:
        random = handshake.offer.random
        output.log_key(KeyLogLabel.CLIENT_TRAFFIC_SECRET_0, random, client)
        output.log_key(KeyLogLabel.SERVER_TRAFFIC_SECRET_0, random, server)
        output.log_key(KeyLogLabel.EXPORTER_SECRET, random, secrets.exporter)
    return secrets


class _ServerFinished(State):
    """The server has said all that it may before it hears from us."""

    __slots__ = ()
    version = ProtocolVersion.TLS_1_3


@dataclass(frozen=True, slots=True)
class AwaitConsent(_ServerFinished):
    """Nothing that answers the server exists before the driver goes on."""

    handshake: Handshake
    agreement: Agreement
    server: VerifiedServer
    request: CertificateRequest13 | None
    application: ApplicationSecrets

    def proceed(self, output: Output) -> State:
        """Send our certificate, if the server asks for one, and then Finished."""
        answer = self._credential()
        if not self.handshake.offer.retried:
            output.send_change_cipher_spec()
        if self.request is not None:
            messages = answer[0].messages if answer else EMPTY_CERTIFICATE
            output.send_encoded(messages[ProtocolVersion.TLS_1_3])
            self.handshake.transcript.add(messages[ProtocolVersion.TLS_1_3])
        if answer is None:
            return self._finish(output, certificate_sent=self._was_certificate_sent())
        content = client_content(self.handshake.transcript.digest())
        output.emit(SignatureNeeded(answer[1], content))
        return _Sign(answer[1], self)

    def _credential(self) -> tuple[Credential, SignatureScheme] | None:
        config = self.handshake.config
        if self.request is None:
            if self.handshake.session is None:
                check_certificate_may_be_left_out(config)
            return None
        extensions = self.request.extensions
        schemes = extensions.find(SignatureAlgorithms)
        authorities = extensions.find(CertificateAuthorities)
        return usable_credential(
            config,
            ProtocolVersion.TLS_1_3,
            schemes.schemes if schemes else (),
            authorities.authorities if authorities else (),
        )

    def _was_certificate_sent(self) -> bool:
        session = self.handshake.session
        return session is not None and session.client_certificate_sent

    def send_signature(self, scheme: SignatureScheme, signature: bytes, output: Output) -> State:
        """CertificateVerify, then Finished."""
        self.handshake.transcript.add(output.send(CertificateVerify(scheme, signature)))
        return self._finish(output, certificate_sent=True)

    def _finish(self, output: Output, *, certificate_sent: bool) -> State:
        handshake = self.handshake
        handshake.transcript.add(output.send(Finished(handshake.verify_data(handshake.client_secret))))
        complete = HandshakeComplete(
            version=ProtocolVersion.TLS_1_3,
            cipher_suite=handshake.suite.code,
            group=handshake.group,
            alpn=self.agreement.alpn,
            resumed=handshake.session is not None,
            client_certificate_sent=certificate_sent,
            server=self.server,
        )
        output.emit(complete)
        return Connected(self._key_block(), self._exporter, self._resumption(certificate_sent), None)

    def _key_block(self) -> KeyBlock:
        return KeyBlock(
            version=ProtocolVersion.TLS_1_3,
            cipher_suite=self.handshake.suite.code,
            client_secret=SecretBytes(self.application.client),
            server_secret=SecretBytes(self.application.server),
            client_sequence=0,
            server_sequence=0,
            send_limit=self.agreement.limits.send,
            receive_limit=self.agreement.limits.receive,
        )

    def _exporter(self, label: str, context: bytes | None, length: int) -> bytes:
        suite, secret = self.handshake.suite, self.application.exporter
        return export_keying_material(suite, secret, label, context or b"", length)

    def _resumption(self, certificate_sent: bool) -> ResumptionSecret:
        digest = self.handshake.transcript.digest()
        return ResumptionSecret(
            suite=self.handshake.suite,
            secret=SecretBytes(self.application.master.resumption_secret(digest)),
            server=self.server,
            client_certificate_sent=certificate_sent,
            alpn=self.agreement.alpn,
        )


@dataclass(frozen=True, slots=True)
class _Sign(ExpectSignature):
    """The client's key signs."""

    consent: AwaitConsent

    def sign(self, scheme: SignatureScheme, signature: bytes, output: Output) -> State:
        """Send it, and Finished."""
        self.check(scheme)
        return self.consent.send_signature(scheme, signature, output)
