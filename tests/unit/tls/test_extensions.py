from __future__ import annotations

import pytest

from tests.support.tls_messages import EXTENSIONS, extensions
from vmtoken.codec import DecodeError, Reader, Writer
from vmtoken.tls.codes import ExtensionType
from vmtoken.tls.errors import IllegalParameter, UnsupportedExtension
from vmtoken.tls.extensions import (
    MAX_EXTENSIONS,
    Alpn,
    AlpnSelection,
    Context,
    Extension,
    Extensions,
    KeyShareClientHello,
    RawExtension,
    ServerName,
    SupportedVersions,
)

CASES = [
    pytest.param(context, item, id=f"{context.name}-{type(item).__name__}")
    for context, items in EXTENSIONS.items()
    for item in items
]


def encode(*items: Extension) -> bytes:
    writer = Writer()
    Extensions(items).encode(writer)
    return writer.getvalue()


def decode(octets: bytes, context: Context = Context.CLIENT_HELLO) -> Extensions:
    with Reader(octets) as reader:
        return Extensions.decode(reader, context)


@pytest.mark.parametrize(("context", "item"), CASES)
def test_decoded_is_what_was_encoded(context: Context, item: Extension) -> None:
    assert decode(encode(item), context).items == (item,)


@pytest.mark.parametrize(("context", "item"), CASES)
def test_content_with_a_tail_or_cut(context: Context, item: Extension) -> None:
    if isinstance(item, RawExtension) or item.extension_type == ExtensionType.SESSION_TICKET:
        return  # all that is there
    content = encode(item)[6:]
    name = item.extension_type.name  # type: ignore[attr-defined]
    for wrong in (content + b"\x00", *(content[:length] for length in range(len(content)))):
        with pytest.raises(DecodeError, match=f"in the extension {name}: "):
            decode(encode(RawExtension(item.extension_type, wrong)), context)


def test_order_is_kept() -> None:
    assert decode(encode(*EXTENSIONS[Context.CLIENT_HELLO])) == extensions(Context.CLIENT_HELLO)


def test_twice_is_refused() -> None:
    with pytest.raises(DecodeError, match="SERVER_NAME comes twice"):
        decode(encode(ServerName("a"), ServerName("b")))
    with pytest.raises(DecodeError, match="0x1a1a comes twice"):
        decode(encode(RawExtension(0x1A1A, b""), RawExtension(0x1A1A, b"")))


def test_too_many() -> None:
    many = [RawExtension(0x8000 + number, b"") for number in range(MAX_EXTENSIONS + 1)]
    assert len(decode(encode(*many[:-1])).items) == MAX_EXTENSIONS
    with pytest.raises(DecodeError, match="more than 64"):
        decode(encode(*many))


def test_found_by_class_and_by_type() -> None:
    found = decode(encode(ServerName("a"), RawExtension(0x1A1A, b"")))
    assert found.find(ServerName) == ServerName("a")
    assert found.find(SupportedVersions) is None
    assert ExtensionType.SERVER_NAME in found
    assert 0x1A1A in found
    assert ExtensionType.COOKIE not in found


def test_form_depends_on_the_message() -> None:
    content = encode(Alpn((b"h2",)))
    assert decode(content, Context.CLIENT_HELLO).items == (Alpn((b"h2",)),)
    assert decode(content, Context.ENCRYPTED_EXTENSIONS).items == (AlpnSelection(b"h2"),)
    with pytest.raises(DecodeError):
        decode(encode(Alpn((b"h2", b"h3"))), Context.ENCRYPTED_EXTENSIONS)


@pytest.mark.parametrize("context", set(Context) - {Context.CLIENT_HELLO})
def test_answers_must_have_been_offered_and_belong_into_the_message(context: Context) -> None:
    offered = {item.extension_type for item in EXTENSIONS[context]}
    Extensions(tuple(i for i in EXTENSIONS[context] if i.extension_type != 0x1A1A)).check_answers(
        offered, context
    )
    for item in EXTENSIONS[context]:
        with pytest.raises(UnsupportedExtension) as error:
            Extensions((item,)).check_answers(offered - {item.extension_type}, context)
        assert error.value.extension_type == item.extension_type
    misplaced = RawExtension(ExtensionType.PSK_KEY_EXCHANGE_MODES, b"\x01\x01")
    with pytest.raises(IllegalParameter, match="PSK_KEY_EXCHANGE_MODES may not be in"):
        decode(encode(misplaced), context).check_answers({misplaced.extension_type}, context)


@pytest.mark.parametrize(
    ("item", "wrong"),
    [
        (ExtensionType.SERVER_NAME, "0000"),
        (ExtensionType.SERVER_NAME, "0003000000"),
        (ExtensionType.SERVER_NAME, "0004010001 61"),
        (ExtensionType.SERVER_NAME, "0004000001 ff"),
        (ExtensionType.STATUS_REQUEST, "0200000000"),
        (ExtensionType.SUPPORTED_GROUPS, "0000"),
        (ExtensionType.SUPPORTED_VERSIONS, "00"),
        (ExtensionType.SUPPORTED_VERSIONS, "03030403"),
        (ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION, "0000"),
        (ExtensionType.APPLICATION_LAYER_PROTOCOL_NEGOTIATION, "000100"),
        (ExtensionType.COOKIE, "0000"),
        (ExtensionType.KEY_SHARE, "0004001d0000"),
        (ExtensionType.PRE_SHARED_KEY, "0000" + "0021 20" + "00" * 32),
        (ExtensionType.PRE_SHARED_KEY, "0007 0001 61 00000000" + "0000"),
        (ExtensionType.PRE_SHARED_KEY, "0007 0001 61 00000000" + "0020 1f" + "00" * 31),
        (ExtensionType.PRE_SHARED_KEY, "0007 0001 61 00000000" + "0042" + ("20" + "00" * 32) * 2),
    ],
)
def test_content_that_breaks_a_rule(item: ExtensionType, wrong: str) -> None:
    with pytest.raises(DecodeError):
        decode(encode(RawExtension(item, bytes.fromhex(wrong))))


def test_no_shares_at_all_are_allowed() -> None:
    assert decode(encode(KeyShareClientHello(()))).items == (KeyShareClientHello(()),)
