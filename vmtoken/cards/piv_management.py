"""The management key of a PIV card (NIST SP 800-73-4 part 2, section 3.2.4; SP 800-78-4 table 6-2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes
from cryptography.hazmat.primitives.ciphers.algorithms import AES

from vmtoken.cards.piv_codes import MANAGEMENT_KEY_LENGTHS, Algorithm, DynamicAuthentication, Reference
from vmtoken.cards.piv_commands import general_authenticate
from vmtoken.codec import DecodeError
from vmtoken.errors import InvalidRequest, PinRejected
from vmtoken.iso7816.channel import CardChannel, CardMisbehaved
from vmtoken.iso7816.status import StatusWord, StatusWordError
from vmtoken.secret import SecretBytes

_NOT_THIS_ALGORITHM = (
    StatusWord.WRONG_DATA,
    StatusWord.INCORRECT_P1_P2,
    StatusWord.REFERENCED_DATA_NOT_FOUND,
    StatusWord.FUNCTION_NOT_SUPPORTED,
)


class ManagementKey:
    """A key with its algorithm; works on single blocks, each of them random and used once."""

    def __init__(self, algorithm: Algorithm, key: SecretBytes) -> None:
        """Raises `ValueError` for a key of another length."""
        if len(key) != MANAGEMENT_KEY_LENGTHS.get(algorithm):
            raise ValueError(f"a management key of {len(key)} octets")
        self.algorithm = algorithm
        cipher = TripleDES if algorithm is Algorithm.TRIPLE_DES else AES
        self.block_size = cipher.block_size // 8
        """Octets."""

        self._cipher = Cipher(cipher(key.reveal()), modes.ECB())  # noqa: S305 - single random blocks

    def encrypt(self, block: bytes) -> bytes:
        """One block."""
        encryptor = self._cipher.encryptor()
        return encryptor.update(block) + encryptor.finalize()

    def decrypt(self, block: bytes) -> bytes:
        """One block; raises `ValueError` for octets that are none."""
        if len(block) != self.block_size:
            raise ValueError(f"a block of {len(block)} octets")
        decryptor = self._cipher.decryptor()
        return decryptor.update(block) + decryptor.finalize()


def candidates(digits: SecretBytes) -> list[ManagementKey]:
    """What a key in hexadecimal digits can be: 24 octets are Triple DES or AES-192.

    Raises `InvalidRequest`.
    """
    try:
        key = SecretBytes(bytes.fromhex(digits.reveal().decode("ascii")))
    except ValueError:
        key = SecretBytes(b"")
    found = [name for name, length in MANAGEMENT_KEY_LENGTHS.items() if length == len(key)]
    if not found:
        raise InvalidRequest(
            "The management key of a PIV card has 16, 24 or 32 octets; give it as 32, 48 or 64 hexadecimal "
            "digits."
        )
    return [ManagementKey(algorithm, key) for algorithm in found]


def authenticate(channel: CardChannel, keys: Sequence[ManagementKey], random: Callable[[int], bytes]) -> None:
    """Host and card show each other that they have the key; which of `keys` it is, the card says.

    Raises `PinRejected`, and `CardMisbehaved` for a card that does not have it.
    """
    key, witness = _witness(channel, keys)
    challenge = random(key.block_size)
    answer = _answer(
        channel,
        key,
        {DynamicAuthentication.WITNESS: witness, DynamicAuthentication.CHALLENGE: challenge},
    )
    if answer.get(DynamicAuthentication.RESPONSE) != key.encrypt(challenge):
        raise CardMisbehaved("the card does not know its own management key")


def _witness(channel: CardChannel, keys: Sequence[ManagementKey]) -> tuple[ManagementKey, bytes]:
    """The key whose algorithm the card has, and what the card encrypted with it."""
    for key in keys:
        request = {DynamicAuthentication.WITNESS: b""}
        try:
            answer = general_authenticate(channel, key.algorithm, Reference.MANAGEMENT_KEY, request)
        except StatusWordError as error:
            if error.status not in _NOT_THIS_ALGORITHM:
                raise
            continue
        try:
            return key, key.decrypt(answer.get(DynamicAuthentication.WITNESS, b""))
        except ValueError as error:
            raise DecodeError("a witness of another length") from error
    raise PinRejected(
        "The card's management key is one of another kind than was given; give the right one.",
        retries_left=None,
    )


def _answer(
    channel: CardChannel, key: ManagementKey, template: dict[DynamicAuthentication, bytes]
) -> dict[int, bytes]:
    try:
        return general_authenticate(channel, key.algorithm, Reference.MANAGEMENT_KEY, template)
    except StatusWordError as error:
        raise PinRejected(
            "The card refused the management key; give the right one.",
            retries_left=error.status.retries_left,
        ) from error
