"""The states up to the version decision: ClientHello sent, HelloRetryRequest, ServerHello."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vmtoken.tls import client12, client13
from vmtoken.tls.codes import (
    CipherSuite,
    CompressionMethod,
    ExtensionType,
    HandshakeType,
    NamedGroup,
    ProtocolVersion,
    name_of,
)
from vmtoken.tls.config import ClientConfig
from vmtoken.tls.errors import (
    IllegalParameter,
    UnexpectedMessage,
    UnsupportedVersion,
)
from vmtoken.tls.extensions import Context, Cookie, KeyShareHelloRetryRequest, SelectedVersion
from vmtoken.tls.key_schedule import EarlySecret
from vmtoken.tls.messages import (
    DOWNGRADE_TO_TLS_1_1,
    DOWNGRADE_TO_TLS_1_2,
    HandshakeMessage,
    HelloRetryRequest,
    ServerHello,
    encode_message,
)
from vmtoken.tls.offer import Offer
from vmtoken.tls.state import Output, State
from vmtoken.tls.suites import Suite, suite_of
from vmtoken.tls.tickets import ResumableSession
from vmtoken.tls.transcript import TranscriptBuffer


def start(config: ClientConfig, random: Callable[[int], bytes], output: Output) -> State:
    """Send the ClientHello."""
    return _send_hello(Offer.make(config, random), TranscriptBuffer(), None, output)


def _send_hello(offer: Offer, transcript: TranscriptBuffer, retry: Suite | None, output: Output) -> State:
    hello = offer.client_hello()
    encoded = encode_message(hello)
    if offer.psk is not None:
        encoded = _with_binder(offer.psk, encoded, hello.binders_length, transcript)
    transcript.add(encoded)
    output.send_encoded(encoded)
    return ExpectServerHello(offer, transcript, retry)


def _with_binder(
    psk: ResumableSession, encoded: bytes, binders_length: int, transcript: TranscriptBuffer
) -> bytes:
    """Replace the zeros of the binder by the HMAC over all that is before it (RFC 8446 section 4.2.11.2)."""
    suite = suite_of(psk.cipher_suite)
    assert suite is not None
    digest = transcript.digest_with(suite, encoded[:-binders_length])
    binder = EarlySecret(suite, psk.secret.reveal()).binder(digest)
    return encoded[: -len(binder)] + binder


@dataclass(frozen=True, slots=True)
class ExpectServerHello(State):
    """The server chooses version, suite and share, or asks once for another hello."""

    expected = (HandshakeType.SERVER_HELLO,)

    offer: Offer
    transcript: TranscriptBuffer
    retry: Suite | None
    """The suite of the HelloRetryRequest, if one came."""

    early_change_cipher_spec: bool = False
    """One came before the version is known: only TLS 1.3 lets it pass (RFC 8446 section 5)."""

    def handle(self, message: HandshakeMessage, encoded: bytes, output: Output) -> State:
        """Check what both versions have in common, then leave for the version."""
        match message:
            case HelloRetryRequest():
                return self._retry(message, encoded, output)
            case ServerHello():
                version = self._version(message)
                suite = self._suite(message, version)
                if version is ProtocolVersion.TLS_1_3:
                    self.transcript.add(encoded)
                    transcript = self.transcript.transcript(suite)
                    return client13.start(self.offer, suite, message, transcript, output)
                if self.early_change_cipher_spec:
                    raise UnexpectedMessage("change_cipher_spec", self.expected)
                self.transcript.add(encoded)
                return client12.start(self.offer, suite, message, self.transcript, output)
            case _:
                raise UnexpectedMessage(message.handshake_type, self.expected)

    def change_cipher_spec(self, output: Output) -> State:
        """Let it pass, if TLS 1.3 is still possible."""
        if not self.offer.config.offers_tls13:
            raise UnexpectedMessage("change_cipher_spec", self.expected)
        return replace(self, early_change_cipher_spec=True)

    def _version(self, hello: ServerHello | HelloRetryRequest) -> ProtocolVersion:
        selected = hello.extensions.find(SelectedVersion)
        version = self._selected_version(hello, selected) if selected else self._legacy_version(hello)
        if self.retry is not None and version is not ProtocolVersion.TLS_1_3:
            raise IllegalParameter("the server changed the version after its HelloRetryRequest")
        return version

    def _selected_version(
        self, hello: ServerHello | HelloRetryRequest, selected: SelectedVersion
    ) -> ProtocolVersion:
        if not self.offer.config.offers_tls13:
            hello.extensions.check_answers(self.offer.extension_types, Context.SERVER_HELLO_12)
        if selected.version != ProtocolVersion.TLS_1_3 or hello.legacy_version != ProtocolVersion.TLS_1_2:
            raise IllegalParameter("the server chose a version that was not offered")
        return ProtocolVersion.TLS_1_3

    def _legacy_version(self, hello: ServerHello | HelloRetryRequest) -> ProtocolVersion:
        if hello.legacy_version != ProtocolVersion.TLS_1_2:
            raise UnsupportedVersion(
                f"the server chose protocol version {hello.legacy_version:#06x}, which is none of ours; "
                "its operator has to enable TLS 1.2 or 1.3"
            )
        is_downgrade = hello.random.endswith((DOWNGRADE_TO_TLS_1_2, DOWNGRADE_TO_TLS_1_1))
        if self.offer.config.offers_tls13 and is_downgrade:
            raise IllegalParameter("somebody on the way removed TLS 1.3 from what was offered")
        if ProtocolVersion.TLS_1_2 not in self.offer.config.versions:
            raise UnsupportedVersion(
                "the server speaks TLS 1.2 at most, which is not allowed here; allow it, or let the server's "
                "operator enable TLS 1.3"
            )
        return ProtocolVersion.TLS_1_2

    def _suite(self, hello: ServerHello | HelloRetryRequest, version: ProtocolVersion) -> Suite:
        suite = suite_of(hello.cipher_suite)
        if suite is None or suite.code not in self.offer.config.usable_suites or suite.version is not version:
            name = name_of(CipherSuite, hello.cipher_suite)
            raise IllegalParameter(f"the server chose {name}, which was not offered for {version.name}")
        if hello.legacy_compression_method != CompressionMethod.NULL:
            raise IllegalParameter("the server chose compression")
        if version is ProtocolVersion.TLS_1_3 and hello.legacy_session_id_echo != self.offer.session_id:
            raise IllegalParameter("the server did not echo the session id")
        if self.retry is not None and suite is not self.retry:
            raise IllegalParameter("the server changed the cipher suite after its HelloRetryRequest")
        return suite

    def _retry(self, retry: HelloRetryRequest, encoded: bytes, output: Output) -> State:
        """RFC 8446 section 4.1.4."""
        if self.retry is not None:
            raise UnexpectedMessage("a second HelloRetryRequest", self.expected)
        if self._version(retry) is not ProtocolVersion.TLS_1_3:
            raise IllegalParameter("a HelloRetryRequest that is not for TLS 1.3")
        suite = self._suite(retry, ProtocolVersion.TLS_1_3)
        offer = self._new_offer(retry, suite)
        self.transcript.replace_by_hash(suite)
        self.transcript.add(encoded)
        output.send_change_cipher_spec()
        return _send_hello(offer, self.transcript, suite, output)

    def _new_offer(self, retry: HelloRetryRequest, suite: Suite) -> Offer:
        types = self.offer.extension_types | {ExtensionType.COOKIE}
        retry.extensions.check_answers(types, Context.HELLO_RETRY_REQUEST)
        wanted = retry.extensions.find(KeyShareHelloRetryRequest)
        cookie = retry.extensions.find(Cookie)
        if wanted is None and cookie is None:
            raise IllegalParameter("a HelloRetryRequest that asks for no change")
        group = self._wanted_group(wanted.selected_group) if wanted else None
        return self.offer.retry(group, cookie.cookie if cookie else None, suite)

    def _wanted_group(self, group: int) -> NamedGroup:
        if group not in self.offer.config.groups or self.offer.share(group) is not None:
            name = name_of(NamedGroup, group)
            raise IllegalParameter(f"a HelloRetryRequest for {name}, which was not offered or already sent")
        return NamedGroup(group)
