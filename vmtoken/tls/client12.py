"""The states of a TLS 1.2 client, from the ServerHello to both Finished (RFC 5246, RFC 8422, RFC 7627)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field, replace

from vmtoken.secret import SecretBytes
from vmtoken.tls import key_exchange
from vmtoken.tls.certificates import CertificateVerifier, CertifiedKey, VerifiedServer
from vmtoken.tls.codes import (
    ClientCertificateType,
    EcPointFormat,
    ExtensionType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    SignatureScheme,
)
from vmtoken.tls.config import EMPTY_CERTIFICATE, ClientConfig, Credential
from vmtoken.tls.errors import (
    DecryptError,
    HandshakeFailure,
    IllegalParameter,
    UnexpectedMessage,
    UnsupportedCertificate,
)
from vmtoken.tls.events import HandshakeComplete, ServerAuthenticated, SignatureNeeded
from vmtoken.tls.extensions import Context, EcPointFormats, RenegotiationInfo
from vmtoken.tls.key_block import KeyBlock
from vmtoken.tls.keylog import KeyLogLabel
from vmtoken.tls.messages import (
    Certificate12,
    CertificateRequest12,
    CertificateStatus,
    CertificateVerify,
    ClientKeyExchange,
    Finished,
    HandshakeMessage,
    NewSessionTicket12,
    ServerHello,
    ServerHelloDone,
    ServerKeyExchange,
)
from vmtoken.tls.negotiation import (
    RecordLimits,
    agreed_limits,
    check_certificate_may_be_left_out,
    chosen_alpn,
    usable_credential,
)
from vmtoken.tls.offer import Offer
from vmtoken.tls.prf import (
    client_verify_data,
    export_keying_material,
    extended_master_secret,
    record_secrets,
    server_verify_data,
)
from vmtoken.tls.signatures import server_key_exchange_content
from vmtoken.tls.state import Connected, ExpectSignature, Output, State
from vmtoken.tls.suites import Authentication, Suite
from vmtoken.tls.tickets import DEFAULT_TLS12_LIFETIME, MAX_LIFETIME, ResumableSession
from vmtoken.tls.transcript import TranscriptBuffer


def start(
    offer: Offer, suite: Suite, hello: ServerHello, transcript: TranscriptBuffer, output: Output
) -> State:
    """Check the ServerHello, the last message in the transcript, and see whether it resumes."""
    extensions = hello.extensions
    extensions.check_answers(offer.extension_types, Context.SERVER_HELLO_12)
    _check_secure(hello)
    handshake = Handshake(
        offer=offer,
        suite=suite,
        server_random=hello.random,
        session_id=hello.legacy_session_id_echo,
        alpn=chosen_alpn(offer.config, extensions),
        limits=agreed_limits(offer.config, extensions, ProtocolVersion.TLS_1_2),
        ticket_promised=ExtensionType.SESSION_TICKET in extensions,
        staple_promised=ExtensionType.STATUS_REQUEST in extensions,
        transcript=transcript,
    )
    output.limit_records(handshake.limits)
    if offer.session_id and hello.legacy_session_id_echo == offer.session_id:
        return _resume(handshake)
    return ExpectCertificate(handshake)


def _check_secure(hello: ServerHello) -> None:
    if ExtensionType.EXTENDED_MASTER_SECRET not in hello.extensions:
        raise HandshakeFailure(
            "the server's TLS 1.2 lacks the extended master secret (RFC 7627); its operator has to update it"
        )
    renegotiation = hello.extensions.find(RenegotiationInfo)
    if renegotiation is None:
        raise HandshakeFailure(
            "the server's TLS 1.2 lacks secure renegotiation (RFC 5746); its operator has to update it"
        )
    if renegotiation.renegotiated_connection:
        raise HandshakeFailure("the server takes the first handshake for a renegotiation")
    formats = hello.extensions.find(EcPointFormats)
    if formats is not None and EcPointFormat.UNCOMPRESSED not in formats.formats:
        raise IllegalParameter("the server does not take uncompressed points")


def _resume(handshake: Handshake) -> State:
    """RFC 5246 section 7.3, figure 2; RFC 5077 section 3.4."""
    session = handshake.offer.tls12_session
    if session is None:
        raise IllegalParameter("the server resumes a session that was not offered")
    if session.cipher_suite != handshake.suite.code:
        raise IllegalParameter("the server resumes the session with another cipher suite")
    ending = Ending(
        handshake,
        session.secret.reveal(),
        session.server,
        group=None,
        certificate_sent=session.client_certificate_sent,
        resumed=session,
    )
    return ExpectChangeCipherSpec(ending)


@dataclass(frozen=True, slots=True)
class Handshake:
    """What all states know once both hellos are there."""

    offer: Offer
    suite: Suite
    server_random: bytes
    session_id: bytes
    alpn: str | None
    limits: RecordLimits
    ticket_promised: bool
    staple_promised: bool
    transcript: TranscriptBuffer

    @property
    def config(self) -> ClientConfig:
        """The settings."""
        return self.offer.config


class _Clear(State):
    """States before the server's change_cipher_spec."""

    __slots__ = ()
    version = ProtocolVersion.TLS_1_2


@dataclass(frozen=True, slots=True)
class ExpectCertificate(_Clear):
    """RFC 5246 section 7.4.2."""

    expected = (HandshakeType.CERTIFICATE,)

    handshake: Handshake

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """A staple may follow, so verification waits for the message after it."""
        if not isinstance(message, Certificate12):
            raise UnexpectedMessage(message.handshake_type, self.expected)
        self.handshake.transcript.add(encoded)
        return ExpectServerKeyExchange(self.handshake, message.chain)


@dataclass(frozen=True, slots=True)
class ExpectServerKeyExchange(_Clear):
    """RFC 8422 section 5.4; before it, perhaps, CertificateStatus (RFC 6066 section 8)."""

    expected = (HandshakeType.CERTIFICATE_STATUS, HandshakeType.SERVER_KEY_EXCHANGE)

    handshake: Handshake
    chain: tuple[bytes, ...]
    staple: bytes | None = None

    @property
    def _may_staple(self) -> bool:
        return self.handshake.staple_promised and self.staple is None

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Verify the chain, and the signature over both randoms and the server's share."""
        match message:
            case CertificateStatus() if self._may_staple:
                self.handshake.transcript.add(encoded)
                return replace(self, staple=message.response)
            case ServerKeyExchange():
                server = self._prove(message)
                self.handshake.transcript.add(encoded)
                share = ServerShare(self._group(message), message.public)
                return ExpectRequestOrDone(self.handshake, server, share)
            case _:
                raise UnexpectedMessage(message.handshake_type, self.expected)

    def _prove(self, message: ServerKeyExchange) -> VerifiedServer:
        handshake, config = self.handshake, self.handshake.config
        verifier = CertificateVerifier(config.server_name, config.subject, config.trust, config.time)
        certified = verifier.verify(self.chain, (self.staple,))
        _check_suite(handshake.suite, certified)
        content = server_key_exchange_content(handshake.offer.random, handshake.server_random, message.params)
        return certified.prove(message.algorithm, ProtocolVersion.TLS_1_2, message.signature, content)

    def _group(self, message: ServerKeyExchange) -> NamedGroup:
        if message.group not in self.handshake.offer.tls12_groups:
            raise IllegalParameter(f"the server chose group {message.group:#06x}, which was not offered")
        return NamedGroup(message.group)


def _check_suite(suite: Suite, certified: CertifiedKey) -> None:
    """The suite says what kind of key the server has (RFC 8422 section 2, table 2)."""
    is_rsa = certified.public_key.certificate_type is ClientCertificateType.RSA_SIGN
    if is_rsa is not (suite.authentication is Authentication.RSA):
        raise UnsupportedCertificate(f"the server's certificate does not fit {suite.code.name}")


@dataclass(frozen=True, slots=True)
class ServerShare:
    """The server's half of the key exchange."""

    group: NamedGroup
    public: bytes


@dataclass(frozen=True, slots=True)
class ExpectRequestOrDone(_Clear):
    """RFC 5246 sections 7.4.4 and 7.4.5."""

    expected = (HandshakeType.CERTIFICATE_REQUEST, HandshakeType.SERVER_HELLO_DONE)

    handshake: Handshake
    server: VerifiedServer
    share: ServerShare
    request: CertificateRequest12 | None = None

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """At ServerHelloDone the server is known; ask the driver whether to go on."""
        match message:
            case CertificateRequest12() if self.request is None:
                self.handshake.transcript.add(encoded)
                return replace(self, request=message)
            case ServerHelloDone():
                self.handshake.transcript.add(encoded)
                output.emit(ServerAuthenticated(self.server, resumed=False))
                return AwaitConsent(self.handshake, self.server, self.share, self.request)
            case _:
                raise UnexpectedMessage(message.handshake_type, self.expected)


@dataclass(frozen=True, slots=True)
class AwaitConsent(_Clear):
    """Nothing that answers the server exists before the driver goes on."""

    handshake: Handshake
    server: VerifiedServer
    share: ServerShare
    request: CertificateRequest12 | None

    def proceed(self, output: Output) -> State:
        """Certificate if asked for, ClientKeyExchange; then CertificateVerify or straight to Finished."""
        answer, transcript = self._credential(), self.handshake.transcript
        if self.request is not None:
            messages = answer[0].messages if answer else EMPTY_CERTIFICATE
            output.send_encoded(messages[ProtocolVersion.TLS_1_2])
            transcript.add(messages[ProtocolVersion.TLS_1_2])
        master = self._exchange_keys(output)
        group, certificate_sent = self.share.group, answer is not None
        ending = Ending(self.handshake, master, self.server, group, certificate_sent, resumed=None)
        if answer is None:
            return ending.send_finished(output)
        output.emit(SignatureNeeded(answer[1], transcript.messages))
        return _Sign(answer[1], ending)

    def _credential(self) -> tuple[Credential, SignatureScheme] | None:
        request, config = self.request, self.handshake.config
        if request is None:
            check_certificate_may_be_left_out(config)
            return None
        return usable_credential(
            config,
            ProtocolVersion.TLS_1_2,
            request.supported_signature_algorithms,
            request.certificate_authorities,
            request.certificate_types,
        )

    def _exchange_keys(self, output: Output) -> bytes:
        (share,) = key_exchange.generate((self.share.group,))
        premaster = share.shared_secret(self.share.public)
        transcript, suite = self.handshake.transcript, self.handshake.suite
        transcript.add(output.send(ClientKeyExchange(share.public)))
        return extended_master_secret(suite, premaster, transcript.digest(suite))


@dataclass(frozen=True, slots=True)
class _Sign(ExpectSignature):
    """The client's key signs all messages so far."""

    version = ProtocolVersion.TLS_1_2

    ending: Ending

    def sign(self, scheme: SignatureScheme, signature: bytes, output: Output) -> State:
        """CertificateVerify, then Finished."""
        self.check(scheme)
        self.ending.handshake.transcript.add(output.send(CertificateVerify(scheme, signature)))
        return self.ending.send_finished(output)


@dataclass(frozen=True, slots=True)
class Ending:
    """What the last part of the handshake, full or resumed, starts from."""

    handshake: Handshake
    master: bytes = field(repr=False)
    server: VerifiedServer
    group: NamedGroup | None
    certificate_sent: bool
    resumed: ResumableSession | None
    ticket: NewSessionTicket12 | None = None
    """The one that came in this handshake."""

    client_secret: bytes = field(init=False, repr=False)
    server_secret: bytes = field(init=False, repr=False)
    """Write key || write IV."""

    def __post_init__(self) -> None:
        randoms = self.handshake.offer.random, self.handshake.server_random
        client_secret, server_secret = record_secrets(self.handshake.suite, self.master, *randoms)
        object.__setattr__(self, "client_secret", client_secret)
        object.__setattr__(self, "server_secret", server_secret)

    def send_finished(self, output: Output) -> State:
        """In a full handshake the client is first."""
        self.finish(output)
        return ExpectChangeCipherSpec(self)

    def finish(self, output: Output) -> None:
        """change_cipher_spec and Finished of the client."""
        handshake = self.handshake
        output.log_key(KeyLogLabel.CLIENT_RANDOM, handshake.offer.random, self.master)
        output.send_change_cipher_spec()
        output.protect_writing(handshake.suite, self.client_secret)
        digest = handshake.transcript.digest(handshake.suite)
        verify_data = client_verify_data(handshake.suite, self.master, digest)
        handshake.transcript.add(output.send(Finished(verify_data)))

    def complete(self, output: Output) -> State:
        """Both Finished are there."""
        output.emit(
            HandshakeComplete(
                version=ProtocolVersion.TLS_1_2,
                cipher_suite=self.handshake.suite.code,
                group=self.group,
                alpn=self.handshake.alpn,
                resumed=self.resumed is not None,
                client_certificate_sent=self.certificate_sent,
                server=self.server,
            )
        )
        return Connected(self._key_block(), self._exporter, None, self._session())

    def _key_block(self) -> KeyBlock:
        """Each side has sent one record under its key: Finished."""
        return KeyBlock(
            version=ProtocolVersion.TLS_1_2,
            cipher_suite=self.handshake.suite.code,
            client_secret=SecretBytes(self.client_secret),
            server_secret=SecretBytes(self.server_secret),
            client_sequence=1,
            server_sequence=1,
            send_limit=self.handshake.limits.send,
            receive_limit=self.handshake.limits.receive,
        )

    def _exporter(self, label: str, context: bytes | None, length: int) -> bytes:
        handshake = self.handshake
        randoms = handshake.offer.random, handshake.server_random
        return export_keying_material(handshake.suite, self.master, label, *randoms, context, length)

    def _session(self) -> ResumableSession | None:
        """A new ticket, the session id, or what was resumed, which stays good for as long as it was."""
        ticket = self.ticket.ticket if self.ticket else b""
        if self.resumed is not None:
            return replace(self.resumed, ticket=ticket) if ticket else self.resumed
        if not ticket and not self.handshake.session_id:
            return None
        return ResumableSession(
            version=ProtocolVersion.TLS_1_2,
            cipher_suite=self.handshake.suite.code,
            secret=SecretBytes(self.master),
            ticket=ticket,
            session_id=b"" if ticket else self.handshake.session_id,
            server=self.server,
            client_certificate_sent=self.certificate_sent,
            alpn=self.handshake.alpn,
            created=self.handshake.config.time,
            lifetime=self._lifetime(),
        )

    def _lifetime(self) -> int:
        hint = self.ticket.ticket_lifetime_hint if self.ticket else 0
        return min(hint or DEFAULT_TLS12_LIFETIME, MAX_LIFETIME)


@dataclass(frozen=True, slots=True)
class ExpectChangeCipherSpec(_Clear):
    """RFC 5246 section 7.1; before it, if promised, the ticket (RFC 5077 section 3.3)."""

    expected = (HandshakeType.NEW_SESSION_TICKET,)

    ending: Ending

    @property
    def _awaits_ticket(self) -> bool:
        return self.ending.handshake.ticket_promised and self.ending.ticket is None

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Take the ticket."""
        if not isinstance(message, NewSessionTicket12) or not self._awaits_ticket:
            raise UnexpectedMessage(message.handshake_type, self.expected)
        self.ending.handshake.transcript.add(encoded)
        return ExpectChangeCipherSpec(replace(self.ending, ticket=message))

    def change_cipher_spec(self, output: Output) -> State:
        """What follows is encrypted."""
        if self._awaits_ticket:
            raise UnexpectedMessage("change_cipher_spec", self.expected)
        output.protect_reading(self.ending.handshake.suite, self.ending.server_secret)
        return ExpectFinished(self.ending)


@dataclass(frozen=True, slots=True)
class ExpectFinished(_Clear):
    """RFC 5246 section 7.4.9."""

    ending: Ending

    expected = (HandshakeType.FINISHED,)

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Verify it. In a resumption it is the proof, and the client's Finished is still to come."""
        if not isinstance(message, Finished):
            raise UnexpectedMessage(message.handshake_type, self.expected)
        handshake = self.ending.handshake
        digest = handshake.transcript.digest(handshake.suite)
        verify_data = server_verify_data(handshake.suite, self.ending.master, digest)
        if not hmac.compare_digest(message.verify_data, verify_data):
            raise DecryptError("the server's Finished does not verify")
        output.end_messages()
        handshake.transcript.add(encoded)
        if self.ending.resumed is None:
            return self.ending.complete(output)
        output.emit(ServerAuthenticated(self.ending.server, resumed=True))
        return AwaitConsentToResume(self.ending)


@dataclass(frozen=True, slots=True)
class AwaitConsentToResume(_Clear):
    """Nothing that answers the server exists before the driver goes on."""

    ending: Ending

    def proceed(self, output: Output) -> State:
        """Send the client's Finished."""
        self.ending.finish(output)
        return self.ending.complete(output)
