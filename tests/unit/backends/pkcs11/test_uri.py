"""PKCS#11 URIs: the examples of RFC 7512 section 3, and what is not one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from vmtoken.errors import InvalidRequest

RFC_ID = bytes.fromhex("69953e5cf4bdec91")

EXAMPLES = [
    ("pkcs11:", Pkcs11Uri()),
    ("pkcs11:object=my-pubkey;type=public", Pkcs11Uri(object="my-pubkey", type="public")),
    (
        "pkcs11:object=my-key;type=private?pin-source=file:/etc/token",
        Pkcs11Uri(object="my-key", type="private", pin_source="file:/etc/token"),
    ),
    (
        "pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0;"
        "object=my-certificate;type=cert;id=%69%95%3E%5C%F4%BD%EC%91;serial=?pin-source=file:/etc/token_pin",
        Pkcs11Uri(
            token="The Software PKCS#11 Softtoken",
            manufacturer="Snake Oil, Inc.",
            model="1.0",
            object="my-certificate",
            type="cert",
            id=RFC_ID,
            serial="",
            pin_source="file:/etc/token_pin",
        ),
    ),
    (
        "pkcs11:object=my-sign-key;type=private?module-name=mypkcs11",
        Pkcs11Uri(object="my-sign-key", type="private", module_name="mypkcs11"),
    ),
    (
        "pkcs11:object=my-sign-key;type=private?module-path=/mnt/libmypkcs11.so.1",
        Pkcs11Uri(object="my-sign-key", type="private", module_path="/mnt/libmypkcs11.so.1"),
    ),
    ("pkcs11:slot-description=Sun%20Metaslot", Pkcs11Uri(slot_description="Sun Metaslot")),
    (
        "pkcs11:library-manufacturer=Snake%20Oil,%20Inc.;library-description=Soft%20Token%20Library;"
        "library-version=1.23",
        Pkcs11Uri(
            library_manufacturer="Snake Oil, Inc.",
            library_description="Soft Token Library",
            library_version="1.23",
        ),
    ),
    (
        "pkcs11:token=My%20token%25%20created%20by%20Joe;library-version=3;id=%01%02%03%Ba%dd%Ca%fe%04%05%06",
        Pkcs11Uri(
            token="My token% created by Joe", library_version="3", id=bytes.fromhex("010203baddcafe040506")
        ),
    ),
    (
        "pkcs11:token=A%20name%20with%20a%20substring%20%25%3B;object=my-certificate;type=cert",
        Pkcs11Uri(token="A name with a substring %;", object="my-certificate", type="cert"),
    ),
    (
        "pkcs11:token=Name%20with%20a%20small%20A%20with%20acute:%20%C3%A1;object=my-certificate;type=cert",
        Pkcs11Uri(token="Name with a small A with acute: á", object="my-certificate", type="cert"),
    ),
    (
        "pkcs11:token=my-token;object=my-certificate;type=cert;vendor-aaa=value-a"
        "?pin-source=file:/etc/token_pin&vendor-bbb=value-b",
        Pkcs11Uri(
            token="my-token",
            object="my-certificate",
            type="cert",
            pin_source="file:/etc/token_pin",
            vendor={"vendor-aaa": "value-a"},
            vendor_query=(("vendor-bbb", "value-b"),),
        ),
    ),
]


@pytest.mark.parametrize(("text", "uri"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_of_the_standard(text: str, uri: Pkcs11Uri) -> None:
    assert Pkcs11Uri.parse(text) == uri
    assert Pkcs11Uri.parse(str(uri)) == uri


def test_the_example_with_a_pin_in_it_is_refused_without_showing_it() -> None:
    text = "pkcs11:token=Software%20PKCS%2311%20softtoken;manufacturer=Snake%20Oil,%20Inc.?pin-value=the-pin"
    with pytest.raises(InvalidRequest, match="pin-source") as refused:
        Pkcs11Uri.parse(text)
    assert "the-pin" not in refused.value.message


@pytest.mark.parametrize(
    ("uri", "complaint"),
    [
        ("pkcs11:token=a;pin-value=the-pin", "use pin-source"),
        ("pkcs11:token=a;pin-source=file:pin", "'pin-source' belongs behind a question mark"),
        ("pkcs11:token=a;module-name=softhsm2", "'module-name' belongs behind a question mark"),
    ],
)
def test_query_that_begins_with_a_semicolon_is_not_taken_for_an_attribute(uri: str, complaint: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(complaint)) as refused:
        Pkcs11Uri.parse(uri)
    assert "the-pin" not in refused.value.message


WRONG = {
    "another scheme": "soft:web01",
    "a name without a value": "pkcs11:token",
    "no name": "pkcs11:=value",
    "a name with a blank": "pkcs11:to%20ken=a",
    "an attribute twice": "pkcs11:token=a;token=a",
    "a vendor attribute twice": "pkcs11:x-a=1;x-a=1",
    "a query attribute twice": "pkcs11:token=a?module-name=b&module-name=b",
    "an empty attribute": "pkcs11:token=a;",
    "half a percent sign": "pkcs11:token=%4",
    "no hexadecimal digits": "pkcs11:token=%zz",
    "a blank": "pkcs11:token=a b",
    "a slash in the path": "pkcs11:token=a/b",
    "a fragment": "pkcs11:token=a#b",
    "no UTF-8": "pkcs11:token=%ff",
    "letters as they are": "pkcs11:token=á",
    "a type that is none": "pkcs11:type=key",
    "a version that is none": "pkcs11:library-version=1.2.3",
    "a slot number that is none": "pkcs11:slot-id=0x1",
    "far too much": "pkcs11:token=" + "a" * 3000,
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_uri_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^The PKCS#11 URI is not one of RFC 7512: .*\.$"):
        Pkcs11Uri.parse(text)


def test_vendor_attributes_of_the_query_may_repeat() -> None:
    uri = Pkcs11Uri.parse("pkcs11:?x=1&x=2")
    assert uri.vendor_query == (("x", "1"), ("x", "2"))
    assert str(uri) == "pkcs11:?x=1&x=2"


TOKEN = {"token": "lab", "manufacturer": "SoftHSM project", "serial": "0011", "model": "SoftHSM v2"}


@pytest.mark.parametrize(
    ("attributes", "matches"),
    [
        ("", True),
        ("token=lab", True),
        ("token=lab;serial=0011;model=SoftHSM%20v2;manufacturer=SoftHSM%20project", True),
        ("object=anything", True),
        ("token=Lab", False),
        ("token=la", False),
        ("serial=11", False),
        ("serial=", False),
        ("token=", False),
        ("model=x;token=lab", False),
    ],
)
def test_token_is_meant_when_all_that_is_said_is_equal(attributes: str, matches: bool) -> None:
    assert Pkcs11Uri.parse(f"pkcs11:{attributes}").matches_token(**TOKEN) is matches


@pytest.mark.parametrize(
    ("attributes", "matches"),
    [
        ("", True),
        ("library-version=2", True),
        ("library-version=2.6", True),
        ("library-version=2.7", False),
        ("library-version=3", False),
        ("library-description=Implementation%20of%20PKCS11;library-manufacturer=SoftHSM", True),
        ("library-description=Another", False),
        ("library-manufacturer=Another", False),
    ],
)
def test_library_is_meant_when_all_that_is_said_is_equal(attributes: str, matches: bool) -> None:
    library = {"manufacturer": "SoftHSM", "description": "Implementation of PKCS11"}
    uri = Pkcs11Uri.parse(f"pkcs11:{attributes}")
    assert uri.matches_library(**library, version=(2, 6)) is matches


texts = st.text(st.characters(codec="utf-8"), max_size=20)


@given(token=texts, object_=st.none() | texts, id_=st.none() | st.binary(max_size=32), path=st.none() | texts)
def test_every_value_survives_its_way_through_a_uri(
    token: str, object_: str | None, id_: bytes | None, path: str | None
) -> None:
    uri = Pkcs11Uri(token=token, object=object_, id=id_, module_path=path)
    assert Pkcs11Uri.parse(str(uri)) == uri


@given(st.text(max_size=60))
def test_any_text_is_a_uri_or_refused(text: str) -> None:
    try:
        uri = Pkcs11Uri.parse(f"pkcs11:{text}")
    except InvalidRequest:
        return
    assert Pkcs11Uri.parse(str(uri)) == uri
