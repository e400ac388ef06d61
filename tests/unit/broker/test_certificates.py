from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from dom0_broker.certificates import check_chain, days_left, expiries, identity_of, is_valid, names_to_renew
from dom0_broker.ctl.tokens.readable import readable
from tests.support.pki import DAY, NOW, Identity, Usage, client_identity, pki
from tests.support.sentences import is_sentence
from vmtoken.errors import Conflict, InvalidRequest

SOON = timedelta(days=30)


def unreadable_certificates() -> list[bytes]:
    """What `cryptography` has errors of its own for: version 8, and one extension twice."""
    leaf = client_identity().chain_der[0]
    version, key_usage, names = (bytes.fromhex(each) for each in ("A003020102", "0603551D0F", "0603551D11"))
    assert {version, key_usage, names} == {each for each in (version, key_usage, names) if each in leaf}
    return [leaf.replace(version, bytes.fromhex("A003020107")), leaf.replace(key_usage, names)]


UNREADABLE = unreadable_certificates()


def issued(name: str = "web01", **options: object) -> Identity:
    options.setdefault("usage", Usage.CLIENT)
    return pki().intermediate.issue(name, **options)  # type: ignore[arg-type]


def test_same_identity_has_the_same_subject_and_names_whatever_the_key() -> None:
    one, other = (identity_of(issued(dns_names=names).chain_der[0]) for names in (("a", "b"), ("b", "a")))
    assert one == other
    assert str(one) == "CN=web01 (a) (b)"


@pytest.mark.parametrize(
    "other",
    [issued("web02", dns_names=("web01",)), issued(dns_names=("web02",)), issued(dns_names=())],
    ids=["subject", "name", "no names"],
)
def test_another_subject_or_another_name_is_another_identity(other: Identity) -> None:
    assert identity_of(other.chain_der[0]) != identity_of(client_identity().chain_der[0])


@pytest.mark.parametrize("garbage", [b"", b"nonsense", client_identity().chain_der[0][:-1], *UNREADABLE])
def test_what_is_no_certificate_has_no_identity(garbage: bytes) -> None:
    with pytest.raises(InvalidRequest):
        identity_of(garbage)


@pytest.mark.parametrize("unreadable", UNREADABLE)
def test_certificate_that_cannot_be_read_stops_nobody_who_looks_at_all_tokens(unreadable: bytes) -> None:
    with pytest.raises(InvalidRequest):
        check_chain([unreadable], NOW)
    assert expiries([unreadable], [unreadable], NOW, timedelta(0)) == []
    assert readable(unreadable) is None


def test_good_chain_is_installed_without_a_word() -> None:
    assert check_chain(client_identity().chain_der, NOW) == []
    assert check_chain(issued(usage=Usage.NONE).chain_der, NOW) == []
    assert check_chain(issued(usage=Usage.BOTH).chain_der, NOW) == []


def without_signatures() -> bytes:
    """A certificate whose key may agree on keys, and not sign."""
    flags = dict.fromkeys((each for each in _USAGES if each != "key_agreement"), False)
    usage = x509.KeyUsage(key_agreement=True, **flags)
    template, issuer = issued().certificate, pki().intermediate
    builder = x509.CertificateBuilder(
        issuer_name=template.issuer,
        subject_name=template.subject,
        public_key=template.public_key(),
        serial_number=template.serial_number,
        not_valid_before=template.not_valid_before_utc,
        not_valid_after=template.not_valid_after_utc,
        extensions=[x509.Extension(x509.KeyUsage.oid, critical=True, value=usage)],
    )
    return builder.sign(issuer.key, SHA256()).public_bytes(Encoding.DER)


_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


@pytest.mark.parametrize(
    ("chain", "complaint"),
    [
        ((), "empty"),
        ((b"nonsense",), "not X.509"),
        (client_identity().chain_der[::-1], "out of order"),
        (issued(not_before=NOW - 2 * DAY, not_after=NOW - DAY).chain_der, "expired on"),
        (issued(usage=Usage.SERVER).chain_der, "clientAuth"),
        ((pki().intermediate.certificate_der,), "that of a CA"),
        ((without_signatures(),), "digitalSignature"),
    ],
    ids=["empty", "garbage", "reversed", "expired", "server", "CA", "key usage"],
)
def test_chain_that_no_server_would_take_is_refused(chain: Sequence[bytes], complaint: str) -> None:
    with pytest.raises((Conflict, InvalidRequest), match=complaint) as refusal:
        check_chain(chain, NOW)
    assert is_sentence(refusal.value.message)


def test_dates_that_may_trouble_servers_are_told() -> None:
    early = check_chain(issued(not_before=NOW + DAY, not_after=NOW + 2 * DAY).chain_der, NOW)
    old = pki().root.sub_authority("old", not_after=NOW - timedelta(hours=1))
    late = check_chain(old.issue("web01", usage=Usage.CLIENT).chain_der, NOW)
    assert ["not valid before" in warning for warning in early] == [True]
    assert ["has expired" in warning for warning in late] == [True]
    assert all(map(is_sentence, [*early, *late]))


def test_names_to_renew_are_those_of_the_certificate() -> None:
    subject, dns_names = names_to_renew(issued("web01", dns_names=("b.example", "a.example")).chain_der[0])
    assert (subject, dns_names) == ("CN=web01", ("a.example", "b.example"))
    with pytest.raises(Conflict, match="cannot ask for again") as refusal:
        names_to_renew(issued(ip_addresses=("192.0.2.1",)).chain_der[0])
    assert is_sentence(refusal.value.message)


def test_certificate_is_valid_within_its_dates() -> None:
    leaf = issued(not_before=NOW, not_after=NOW + DAY).chain_der[0]
    moments = (NOW - DAY, NOW, NOW + DAY, NOW + 2 * DAY)
    assert [is_valid(leaf, moment) for moment in moments] == [False, True, True, False]
    assert not is_valid(b"nonsense", NOW)


def test_what_ends_soon_is_told_soonest_first_with_whole_days() -> None:
    ca = pki().root.sub_authority("lasting", not_after=NOW + 300 * DAY)
    chain = ca.issue("web01", not_after=NOW + timedelta(days=29, hours=23)).chain_der
    anchor = issued("anchor", not_after=NOW - timedelta(hours=1)).chain_der[0]
    found = expiries(chain, (anchor, b"nonsense"), NOW, SOON)
    assert [each.what for each in found] == ["trust anchor", "certificate"]
    assert [each.days_left for each in found] == [-1, 29]
    assert [str(each).split(",")[0].split(" on ")[0] for each in found] == [
        "The trust anchor CN=anchor expired",
        "The certificate CN=web01 expires in 29 days",
    ]
    everything = expiries(chain, (), NOW, timedelta(days=36500))
    assert sorted(each.what for each in everything) == ["CA certificate of the chain", "certificate"]


@pytest.mark.parametrize(
    ("left", "whole"), [(timedelta(days=1), 1), (timedelta(hours=23), 0), (-timedelta(seconds=1), -1)]
)
def test_days_left_are_rounded_down(left: timedelta, whole: int) -> None:
    assert days_left(NOW + left, NOW) == whole


def test_pem_is_not_taken_for_der() -> None:
    with pytest.raises(InvalidRequest):
        check_chain([client_identity().certificate.public_bytes(Encoding.PEM)], NOW)
