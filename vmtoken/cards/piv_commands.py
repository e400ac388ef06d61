"""Commands of the PIV card application, one function each (NIST SP 800-73-4 part 2).

All raise `StatusWordError`; what they read back from the card raises `DecodeError` if it makes no sense.
"""

from __future__ import annotations

from vmtoken.cards.piv_codes import (
    AID_WITHOUT_VERSION,
    Algorithm,
    DynamicAuthentication,
    Instruction,
    Slot,
)
from vmtoken.cards.piv_objects import DATA_TAG, ApplicationTemplate, decode_public_key
from vmtoken.codec import DecodeError
from vmtoken.iso7816 import commands as iso7816
from vmtoken.iso7816.apdu import MAX_SHORT_LE, CommandApdu
from vmtoken.iso7816.channel import CardChannel
from vmtoken.iso7816.status import StatusWord, StatusWordError
from vmtoken.iso7816.tlv import BerTlv, decode_fields, encode_tlv

_CURRENT_TEMPLATE = (0x3F, 0xFF)
"""P1 and P2 of GET DATA and PUT DATA."""

_TAG_LIST = 0x5C
_TEMPLATE = 0x7C
_CONTROL_REFERENCE = 0xAC
_CRYPTOGRAPHIC_MECHANISM = 0x80


def select(channel: CardChannel) -> ApplicationTemplate:
    """SELECT the application in whatever version the card has (section 3.1.1)."""
    return ApplicationTemplate.decode(iso7816.select(channel, AID_WITHOUT_VERSION))


def data(channel: CardChannel, tag: int) -> bytes | None:
    """GET DATA (section 3.1.2): what is inside tag 53; None if the object is not there or empty."""
    request = encode_tlv(_TAG_LIST, _tag_octets(tag))
    try:
        answer = channel.send(_command(Instruction.GET_DATA, *_CURRENT_TEMPLATE, request))
    except StatusWordError as error:
        if error.status != StatusWord.FILE_NOT_FOUND:
            raise
        return None
    item = BerTlv.decode(answer)
    if item.tag != DATA_TAG:
        raise DecodeError(f"tag {item.tag:02X} around a data object")
    return item.value or None


def put_data(channel: CardChannel, tag: int, value: bytes) -> None:
    """PUT DATA (section 3.3.1); an empty value deletes the object."""
    request = encode_tlv(_TAG_LIST, _tag_octets(tag)) + encode_tlv(DATA_TAG, value)
    channel.send(_command(Instruction.PUT_DATA, *_CURRENT_TEMPLATE, request, le=None))


def signature(channel: CardChannel, algorithm: Algorithm, slot: Slot, challenge: bytes) -> bytes:
    """GENERAL AUTHENTICATE: a raw private key operation on a digest or an encoded message (section 3.2.4)."""
    request = {DynamicAuthentication.RESPONSE: b"", DynamicAuthentication.CHALLENGE: challenge}
    answer = general_authenticate(channel, algorithm, slot, request)
    if DynamicAuthentication.RESPONSE not in answer:
        raise DecodeError("a signature is missing")
    return answer[DynamicAuthentication.RESPONSE]


def general_authenticate(
    channel: CardChannel, algorithm: Algorithm, reference: int, template: dict[DynamicAuthentication, bytes]
) -> dict[int, bytes]:
    """GENERAL AUTHENTICATE (section 3.2.4); both sides speak in dynamic authentication templates."""
    request = b"".join(encode_tlv(tag, value) for tag, value in template.items())
    command = _command(Instruction.GENERAL_AUTHENTICATE, algorithm, reference, encode_tlv(_TEMPLATE, request))
    answer = channel.send(command)
    if not answer:
        return {}
    item = BerTlv.decode(answer)
    if item.tag != _TEMPLATE:
        raise DecodeError(f"tag {item.tag:02X} where a dynamic authentication template is expected")
    return decode_fields(item.value)


def generate_asymmetric_key_pair(channel: CardChannel, slot: Slot, algorithm: Algorithm) -> bytes:
    """GENERATE ASYMMETRIC KEY PAIR (section 3.3.2): the SubjectPublicKeyInfo of the fresh key, DER."""
    mechanism = encode_tlv(_CRYPTOGRAPHIC_MECHANISM, bytes((algorithm,)))
    request = encode_tlv(_CONTROL_REFERENCE, mechanism)
    answer = channel.send(_command(Instruction.GENERATE_ASYMMETRIC_KEY_PAIR, 0x00, slot, request))
    return decode_public_key(algorithm, answer)


def _command(ins: Instruction, p1: int, p2: int, octets: bytes, le: int | None = MAX_SHORT_LE) -> CommandApdu:
    return CommandApdu(0x00, ins, p1, p2, octets, le)


def _tag_octets(tag: int) -> bytes:
    return tag.to_bytes((tag.bit_length() + 7) // 8, "big")
