"""EapPeer: a card as what it was made for, the peer of an EAP-TLS server (RFC 5216, RFC 9190).

Works with plain cards of the draft as well, as far as they speak the server's TLS version.
"""

from __future__ import annotations

from vmtoken.cards import commands
from vmtoken.cards.codes import Export, PinReference
from vmtoken.cards.misbehaviour import card_errors
from vmtoken.cards.profile import FailureExport, StartParameters
from vmtoken.cards.session import CardSession
from vmtoken.eap.eap_tls import EapTlsMessage
from vmtoken.eap.packet import EapCode, EapPacket, EapType
from vmtoken.errors import TlsHandshakeFailed, TokenNotReady, VmTokenError
from vmtoken.iso7816.connection import CardConnection
from vmtoken.iso7816.status import StatusWord, StatusWordError
from vmtoken.secret import SecretBytes
from vmtoken.token import CertificateMode

_REFUSALS = (
    StatusWord.SILENTLY_DISCARDED,
    StatusWord.AUTHENTICATION_FAILED,
    StatusWord.CONDITIONS_NOT_SATISFIED,
)


class EapPeer:
    """Answers an EAP server's packets with a card."""

    def __init__(
        self,
        connection: CardConnection,
        user_pin: SecretBytes | None,
        parameters: StartParameters,
        *,
        t0: bool = False,
        pin_reserve: int = 1,
    ) -> None:
        """`parameters` go with the server's EAP-TLS Start; a plain card gets the time of them alone.

        Errors as `EapTlsCard`; `TokenNotReady` also for a plain card and a certificate mode but IF_ASKED.
        """
        self._card = CardSession.open(connection, t0=t0)
        plain = self._card.fci is None
        self._parameters = StartParameters(parameters.time) if plain else parameters
        try:
            if plain and parameters.certificate is not CertificateMode.IF_ASKED:
                raise TokenNotReady(
                    "The card has no profile, so it cannot be told when to leave out the client certificate, "
                    "or when to insist on it; use a card with the profile."
                )
            with card_errors():
                self._card.verify_pin(PinReference.USER, user_pin, reserve=pin_reserve)
                self.identity = self._card.use_preferred_identity()
        except VmTokenError:
            self.close()
            raise

    def respond(self, request: bytes) -> bytes | None:
        """The answer to a packet from the server; None when it calls for none.

        Raises `TlsHandshakeFailed` when the authentication failed, `TokenNotReady` when the card is not
        personalised, `DecodeError` for octets that are no EAP packet.
        """
        packet = EapPacket.decode(request)
        is_start = _is_start(packet)
        behind = self._parameters.encode() if is_start else b""
        with card_errors():
            try:
                return commands.process_eap(self._card.channel, request + behind) or None
            except StatusWordError as error:
                if error.status not in _REFUSALS:
                    raise
                self._explain(packet, error, is_start=is_start)
        return None

    def session_key(self) -> SecretBytes:
        """The MSK, 64 octets, once the method is complete."""
        with card_errors():
            return SecretBytes(commands.session_key(self._card.channel))

    def close(self) -> None:
        """Give the card back."""
        self._card.close()

    def _explain(self, packet: EapPacket, error: StatusWordError, *, is_start: bool) -> None:
        """A refused failure ends the method, a refused Start means that the card lacks something.

        Anything else was discarded, as RFC 3748 demands.
        """
        if packet.code is EapCode.FAILURE or error.status == StatusWord.AUTHENTICATION_FAILED:
            raise TlsHandshakeFailed(
                "The EAP server ended the authentication with a failure; its log may say why."
            ) from error
        if is_start and self._card.fci is not None:
            octets = commands.exported_parameter(self._card.channel, Export.FAILURE)
            raise TokenNotReady(FailureExport.decode(octets).message) from error


def _is_start(packet: EapPacket) -> bool:
    if packet.code is not EapCode.REQUEST or packet.type != EapType.EAP_TLS:
        return False
    return EapTlsMessage.decode(packet.data).start
