"""The certificates of a token: who it is to servers, whether they are of use, and until when."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from vmtoken.errors import Conflict, InvalidRequest
from vmtoken.tls.ocsp import UNPARSABLE

_CLIENTS: Final = frozenset({ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token is: subject and alternative names of its certificate; key and serial number may differ."""

    subject: x509.Name
    alternative_names: frozenset[x509.GeneralName]

    def __str__(self) -> str:
        names = sorted(str(name.value) for name in self.alternative_names)
        return " ".join([self.subject.rfc4514_string() or "no subject", *(f"({name})" for name in names)])


@functools.lru_cache(maxsize=256)
def identity_of(leaf: bytes) -> Identity:
    """The identity in a certificate, DER. Raises `InvalidRequest` if it cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(leaf)
        return Identity(certificate.subject, frozenset(_alternative_names(certificate)))
    except UNPARSABLE as error:
        raise InvalidRequest("The certificate is not X.509 in DER; give another file.") from error


def check_chain(chain: Sequence[bytes], now: datetime) -> list[str]:
    """What the operator should know of a chain that is to be installed, leaf first, one sentence each.

    Raises `InvalidRequest` for what is no chain, `Conflict` for one that no server would take. Whether it
    belongs to the key is for the token to say.
    """
    certificates = _parsed(chain)
    leaf = certificates[0]
    for certificate, issuer in itertools.pairwise(certificates):
        if certificate.issuer != issuer.subject:
            raise InvalidRequest("The chain is out of order; put the leaf first, then the CA that issued it.")
    if leaf.not_valid_after_utc < now:
        when = f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        raise Conflict(f"The certificate expired on {when}; have another one issued.")
    _check_use(leaf)
    return [*_date_warnings(certificates, now)]


def is_valid(leaf: bytes, now: datetime) -> bool:
    """Whether a certificate, DER, is within its dates; False too for one that cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(leaf)
    except UNPARSABLE:
        return False
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def names_to_renew(leaf: bytes) -> tuple[str, tuple[str, ...]]:
    """Subject as in RFC 4514, and DNS names: what a request for the same identity asks for.

    Raises `Conflict` when a token cannot ask for all of it; only subject and DNS names go into its requests.
    """
    ours = identity_of(leaf)
    subject = ours.subject.rfc4514_string()
    dns_names = [name.value for name in ours.alternative_names if isinstance(name, x509.DNSName)]
    try:
        again = x509.Name.from_rfc4514_string(subject)
    except ValueError:
        again = None
    if again != ours.subject or len(dns_names) < len(ours.alternative_names):
        raise Conflict(
            f"The certificate of {ours} has names that a token cannot ask for again; have the CA issue the "
            "next one from a request of 'vmtokenctl token csr'."
        )
    return subject, tuple(sorted(dns_names))


@dataclass(frozen=True, slots=True)
class Expiry:
    """A certificate that ends soon, or has ended."""

    what: str
    """For people: "certificate", "CA certificate of the chain" or "trust anchor"."""

    subject: str
    not_after: datetime
    days_left: int
    """Whole days, rounded down; negative once it is over."""

    def __str__(self) -> str:
        when = f"{self.not_after:%Y-%m-%d %H:%M} UTC"
        if self.days_left < 0:
            return f"The {self.what} {self.subject} expired on {when}."
        days = "1 day" if self.days_left == 1 else f"{self.days_left} days"
        return f"The {self.what} {self.subject} expires in {days}, on {when}."


def days_left(not_after: datetime, now: datetime) -> int:
    """Whole days, rounded down; negative once it is over."""
    return math.floor((not_after - now) / timedelta(days=1))


def expiries(
    chain: Sequence[bytes], anchors: Sequence[bytes], now: datetime, ahead: timedelta
) -> list[Expiry]:
    """What of a token's certificates ends within `ahead`, soonest first; what cannot be read is left out."""
    kinds = ["certificate", *["CA certificate of the chain"] * (len(chain) - 1)]
    found = [*zip(kinds, chain, strict=False), *(("trust anchor", anchor) for anchor in anchors)]
    ending = [expiry for what, encoded in found if (expiry := _expiry(what, encoded, now, ahead))]
    return sorted(ending, key=lambda expiry: expiry.not_after)


def _expiry(what: str, encoded: bytes, now: datetime, ahead: timedelta) -> Expiry | None:
    try:
        not_after, subject = _end(encoded)
    except UNPARSABLE:
        return None
    left = days_left(not_after, now)
    return Expiry(what, subject, not_after, left) if not_after - now <= ahead else None


@functools.lru_cache(maxsize=1024)
def _end(encoded: bytes) -> tuple[datetime, str]:
    """Asked every second for each token; parsed once."""
    certificate = x509.load_der_x509_certificate(encoded)
    return certificate.not_valid_after_utc, certificate.subject.rfc4514_string()


def _parsed(chain: Sequence[bytes]) -> list[x509.Certificate]:
    if not chain:
        raise InvalidRequest("The chain is empty; give at least the token's own certificate.")
    try:
        return [x509.load_der_x509_certificate(each) for each in chain]
    except UNPARSABLE as error:
        raise InvalidRequest("The chain is not X.509 in DER; give another file.") from error


def _check_use(leaf: x509.Certificate) -> None:
    """RFC 5280 sections 4.2.1.3, 4.2.1.9 and 4.2.1.12, as TLS servers check them."""
    extensions = {type(each.value): each.value for each in _extensions(leaf)}
    constraints = extensions.get(x509.BasicConstraints)
    if isinstance(constraints, x509.BasicConstraints) and constraints.ca:
        raise Conflict("The certificate is that of a CA; put the token's own certificate first.")
    purposes = extensions.get(x509.ExtendedKeyUsage)
    if isinstance(purposes, x509.ExtendedKeyUsage) and _CLIENTS.isdisjoint(purposes):
        raise Conflict("The certificate is not for TLS clients (clientAuth); have it issued for them.")
    usage = extensions.get(x509.KeyUsage)
    if isinstance(usage, x509.KeyUsage) and not usage.digital_signature:
        raise Conflict("The key usage of the certificate lacks digitalSignature; have it issued with that.")


def _date_warnings(certificates: Sequence[x509.Certificate], now: datetime) -> Iterator[str]:
    for certificate in certificates:
        subject = certificate.subject.rfc4514_string()
        if certificate.not_valid_before_utc > now:
            when = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
            yield f"The certificate {subject} is not valid before {when}; servers refuse it until then."
        if certificate.not_valid_after_utc < now:
            yield f"The CA certificate {subject} in the chain has expired; servers may refuse the chain."


def _alternative_names(certificate: x509.Certificate) -> Iterator[x509.GeneralName]:
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            yield from extension.value


def _extensions(certificate: x509.Certificate) -> list[x509.Extension[x509.ExtensionType]]:
    try:
        return list(certificate.extensions)
    except UNPARSABLE as error:
        raise InvalidRequest("The certificate has extensions that cannot be read; give another.") from error
