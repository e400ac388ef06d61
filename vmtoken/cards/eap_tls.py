"""EapTlsCard: a card with the EAP-TLS application and our profile, as a token.

EAP is only the transport between host and card here: TLS records go in and out of EAP-TLS packets,
no EAP server takes part.
"""

from __future__ import annotations

from collections.abc import Callable

from vmtoken.cards import commands
from vmtoken.cards.codes import Export, FailureCode, Features, Mode, PinReference
from vmtoken.cards.misbehaviour import closed_on_error
from vmtoken.cards.profile import FailureExport, ResultExport, ServerExport, StartParameters
from vmtoken.cards.records import RecordExchange, is_client_hello
from vmtoken.cards.session import CardSession
from vmtoken.eap.packet import MAX_PACKET_LENGTH
from vmtoken.errors import (
    ClientCertificateRefused,
    ClientCertificateUnusable,
    InvalidRequest,
    ServerCertificateInvalid,
    TlsHandshakeFailed,
    TlsVersionUnsupported,
    TokenNotReady,
    VmTokenError,
)
from vmtoken.iso7816.channel import CardMisbehaved
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWord, StatusWordError
from vmtoken.secret import SecretBytes
from vmtoken.tls.codes import ProtocolVersion
from vmtoken.token import (
    Assurance,
    Authorize,
    HandshakeFailed,
    HandshakeResult,
    HandshakeStart,
    HandshakeStep,
    Resumption,
    ServerIdentity,
    TokenDescription,
    Traffic,
)

_ACCESS_DENIED = bytes.fromhex("15 03 03 00 02 02 31")
"""A fatal alert in clear: the server has seen no protected record of ours when policy is asked, so it
takes this one in both versions (RFC 5246 section 7.2, RFC 8446 section 6)."""

_SENSELESS = (
    "The server name, the ALPN protocols or the TLS versions asked for make no sense; correct the request."
)

_HANDSHAKE_OVER = (StatusWord.CONDITIONS_NOT_SATISFIED, StatusWord.SILENTLY_DISCARDED)

_ERRORS: dict[FailureCode, type[VmTokenError]] = {
    FailureCode.OTHER: TlsHandshakeFailed,
    FailureCode.SERVER_CERTIFICATE: ServerCertificateInvalid,
    FailureCode.CLIENT_CERTIFICATE_UNUSABLE: ClientCertificateUnusable,
    FailureCode.CLIENT_CERTIFICATE_REFUSED: ClientCertificateRefused,
    FailureCode.VERSION: TlsVersionUnsupported,
    FailureCode.NOT_READY: TokenNotReady,
}


class EapTlsCard:
    """A `HandshakeToken`; see there what its methods promise."""

    def __init__(
        self,
        connection: CardConnection,
        user_pin: SecretBytes | None,
        *,
        assurance: Assurance = Assurance.CARD_HANDSHAKE,
        t0: bool = False,
        extended: bool = False,
        pin_reserve: int = 1,
    ) -> None:
        """Select the application, give the PIN, choose the preferred identity.

        `assurance` is what the reader's kind allows; a card that says to be software is believed.
        With `pin_reserve` tries left or fewer the PIN is not tried. Raises `PinMissing`,
        `PinRejected`, `PinBlocked`, `TokenNotReady`, `TokenUnavailable`; the connection is then closed.
        """
        self._card = CardSession.open(connection, t0=t0, extended=extended)
        self._assurance = assurance
        self._closed = False
        self._start: HandshakeStart | None = None
        self._authorize: Authorize | None = None
        self._server: ServerIdentity | None = None
        fci = self._card.fci
        max_packet = MAX_PACKET_LENGTH if fci is None else fci.max_packet
        self._records = RecordExchange(self._card.channel, max_packet)
        self._before = Traffic()
        with closed_on_error(self.close):
            self._card.verify_pin(PinReference.USER, user_pin, reserve=pin_reserve)
            self._card.use_preferred_identity()

    @property
    def assurance(self) -> Assurance:
        """See `HandshakeToken.assurance`."""
        fci = self._card.fci
        is_software = fci is not None and Features.SOFTWARE in fci.features
        return Assurance.SOFTWARE if is_software else self._assurance

    @property
    def traffic(self) -> Traffic:
        """See `HandshakeToken.traffic`."""
        now = self._card.traffic
        return Traffic(now.apdus - self._before.apdus, now.octets - self._before.octets)

    def describe(self) -> TokenDescription:
        """See `HandshakeToken.describe`."""
        with closed_on_error(self.close):
            chain = self._card.certificate_chain()
        fci = self._card.fci
        return TokenDescription(
            serial="" if fci is None else fci.serial.hex(),
            assurance=self.assurance,
            certificate_chain=chain,
            versions=() if fci is None else fci.versions,
            application="EAP-TLS card" if fci is None else f"EAP-TLS card, profile {fci.version}",
        )

    def start(self, start: HandshakeStart, authorize: Authorize) -> HandshakeStep:
        """See `HandshakeToken.start`."""
        self._before = self._card.traffic
        self._start, self._authorize, self._server = start, authorize, None
        with closed_on_error(self.close):
            self._card.required_profile()
            return HandshakeStep(self._guarded(lambda: self._begin(start)))

    def process(self, server_records: bytes) -> HandshakeStep:
        """See `HandshakeToken.process`."""
        if not server_records:
            return HandshakeStep()
        with closed_on_error(self.close):
            flight = self._guarded(lambda: self._records.exchange(server_records))
            may_be_complete = self._server is not None
            if flight and self._server is None:
                may_be_complete = self._ask_policy(flight)
            result = self._result() if may_be_complete else None
            return HandshakeStep(flight, result)

    def accept_ticket(self, session: bytes, message: bytes) -> Resumption | None:
        """See `HandshakeToken.accept_ticket`."""
        fci = self._card.fci
        if fci is None or Features.RESUMPTION not in fci.features:
            return None
        with closed_on_error(self.close):
            try:
                answer = commands.take_ticket(self._card.channel, session, message)
            except StatusWordError as error:
                _no_session(error)
                return None
        if answer is None:
            return None
        server = _identity(answer.server)
        single_use = answer.version is ProtocolVersion.TLS_1_3
        return Resumption(answer.handle, server, answer.version, answer.lifetime, single_use)

    def abort(self) -> None:
        """See `HandshakeToken.abort`."""
        with closed_on_error(self.close):
            commands.reset_state(self._card.channel)

    def close(self) -> None:
        """See `HandshakeToken.close`."""
        if not self._closed:
            self._closed = True
            self._card.close()

    def _begin(self, start: HandshakeStart) -> bytes:
        """The ClientHello; what an application asked for and cannot be had is its mistake, not the card's."""
        if not all(text.isascii() and 1 <= len(text) <= 255 for text in (start.server_name, *start.alpn)):
            raise HandshakeFailed(InvalidRequest(_SENSELESS))
        try:
            return self._records.start(_parameters(start))
        except StatusWordError as error:
            if error.status != StatusWord.WRONG_DATA:
                raise
            raise HandshakeFailed(InvalidRequest(_SENSELESS)) from error

    def _guarded(self, step: Callable[[], bytes]) -> bytes:
        """What the card sends; its refusal becomes `HandshakeFailed` with the reason that it exports."""
        try:
            return step()
        except StatusWordError as error:
            if error.status not in _HANDSHAKE_OVER:
                raise
            failure = self._export_if_there(Export.FAILURE)
        if failure is None:
            raise HandshakeFailed(
                TlsHandshakeFailed("The card has no handshake that could take these records; begin another.")
            )
        raise _failed(FailureExport.decode(failure))

    def _ask_policy(self, flight: bytes) -> bool:
        """Show the verified server to policy before the card's flight goes anywhere; is the card done?

        A HelloRetryRequest is answered before the server is known: there is nothing to judge yet. Any
        other flight stays here while the card does not say whom it is for, as after a reset.
        """
        assert self._start is not None
        assert self._authorize is not None
        octets = self._export_if_there(Export.SERVER)
        if octets is None:
            if not is_client_hello(flight):
                raise CardMisbehaved("the card answered a server without saying which one it verified")
            return False
        export = ServerExport.decode(octets)
        if export.server_name != self._start.server_name:
            raise CardMisbehaved("the card verified another server name than the one it was given")
        server = _identity(export)
        try:
            self._authorize(server)
        except VmTokenError as error:
            commands.reset_state(self._card.channel)
            raise HandshakeFailed(error, _ACCESS_DENIED) from error
        self._server = server
        return export.complete

    def _result(self) -> HandshakeResult | None:
        """The key block and what belongs to it; None while the card waits for the server's Finished."""
        octets = self._export_if_there(Export.RESULT)
        if octets is None:
            self._check_not_reset()
            return None
        assert self._server is not None
        export = ResultExport.decode(octets)
        facts = export.facts
        return HandshakeResult(
            key_block=export.key_block,
            session=facts.session,
            server=self._server,
            resumed=facts.resumed,
            alpn=facts.alpn,
            group=facts.group_name,
            client_certificate_sent=facts.client_certificate_sent,
        )

    def _check_not_reset(self) -> None:
        """A card that was reset says that it is too early for ever; but it has forgotten its PIN too."""
        try:
            commands.state(self._card.channel)
        except StatusWordError as error:
            raise CardMisbehaved("the card forgot the handshake before its end") from error

    def _export_if_there(self, index: Export) -> bytes | None:
        """An export; None where the card says that it is too early, or too late."""
        try:
            return commands.exported_parameter(self._card.channel, index)
        except StatusWordError as error:
            if error.status != StatusWord.CONDITIONS_NOT_SATISFIED:
                raise
            return None


def _parameters(start: HandshakeStart) -> StartParameters:
    return StartParameters(
        time=start.time,
        mode=Mode.TOKEN,
        server_name=start.server_name,
        alpn=start.alpn,
        min_version=start.min_version,
        max_version=start.max_version,
        resumption=start.resumption,
        certificate=start.certificate,
    )


def _identity(export: ServerExport) -> ServerIdentity:
    return ServerIdentity(export.server_name, export.spki_sha256, export.leaf)


def _failed(failure: FailureExport) -> HandshakeFailed:
    error = _ERRORS[failure.code](failure.message, retry_after=None, **failure.alerts)
    return HandshakeFailed(error, failure.alert_flight)


def _no_session(error: StatusWordError) -> None:
    """The session is forgotten (6A88), or the ticket is bad (6A80)."""
    if error.status == StatusWord.WRONG_DATA:
        raise HandshakeFailed(TlsHandshakeFailed("The server's NewSessionTicket does not parse.")) from error
    if error.status != StatusWord.REFERENCED_DATA_NOT_FOUND:
        raise error
