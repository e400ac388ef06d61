"""Which VM may talk to which authenticated server, with which token.

Rules are lines of `NN-name.policy` files in one directory, taken in the order of the file names; the
first rule that matches decides, and no match denies. `docs/policy.md` explains the format.

    allow  vm=web01  server=*.shop.example  ca=corp-root.pem  assurance=card-signature
    deny   vm=*      server=**.internal

An `allow` also says whether the session may be without the client certificate. The token must know that
when the handshake begins, before the server's certificates are known: `Policy.expect` looks ahead, and
`Policy.confirm` holds the rule that grants to it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from dom0_broker.domains import DomainIdentity, parsed_uuid
from vmtoken.errors import PolicyDenied
from vmtoken.token import Assurance, CertificateMode, ServerIdentity

MAX_RULES: Final = 10_000
"""A rule costs about a microsecond a handshake; more rules than this are a mistake."""

_ORDER: Final = (Assurance.SOFTWARE, Assurance.CARD_SIGNATURE, Assurance.CARD_HANDSHAKE)


class PolicyError(Exception):
    """A rule that is none; the message names file and line."""


@dataclass(frozen=True, slots=True)
class PolicyRequest:
    """What is asked: may this VM use this token, which reaches this assurance, for a session."""

    vm: DomainIdentity
    token: str
    """The token's own name, not the one that the VM sees."""

    assurance: Assurance


@dataclass(frozen=True, slots=True)
class Grant:
    """Yes, and the rule that says so."""

    rule: str
    certificate: CertificateMode = CertificateMode.IF_ASKED


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rule would decide; `condition` says on what it depends, empty when it is certain."""

    rule: str
    text: str
    allow: bool
    condition: str = ""


@dataclass(frozen=True, slots=True)
class Rule:
    """One line. A condition that is None holds for everything."""

    place: str
    text: str
    allow: bool
    vm: str | None
    server: Callable[[str], bool] | None
    token: str | None
    ca: frozenset[bytes] | None
    spki: frozenset[bytes] | None
    assurance: Assurance | None
    certificate: CertificateMode

    def concerns(self, request: PolicyRequest, server_name: str) -> bool:
        """True when everything but the server's certificates matches."""
        return (
            (self.vm is None or self.vm in (request.vm.name, str(request.vm.uuid)))
            and (self.token is None or self.token == request.token)
            and (self.assurance is None or _reaches(request.assurance, self.assurance))
            and (self.server is None or self.server(server_name))
        )

    def knows(self, spki_sha256: Sequence[bytes]) -> bool:
        """True when the verified path, leaf first, has the CA and the pin that the rule asks for."""
        return (self.ca is None or not self.ca.isdisjoint(spki_sha256[1:])) and (
            self.spki is None or spki_sha256[0] in self.spki
        )

    @property
    def needs_certificates(self) -> bool:
        """True when the name alone does not decide."""
        return self.ca is not None or self.spki is not None

    @property
    def grant(self) -> Grant:
        """What an `allow` gives."""
        return Grant(self.place, self.certificate)


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules in force; immutable, so that any thread may ask while another one is read."""

    rules: tuple[Rule, ...]
    error: str = ""
    """Why everything is denied: the directory held something that is no rule."""

    def evaluate(self, request: PolicyRequest, server: ServerIdentity) -> Grant:
        """The grant of the first rule that matches. Raises `PolicyDenied`, naming the rule that says no."""
        if self.error:
            raise _denied(request, server.server_name, self.error)
        name = _canonical(server.server_name)
        for rule in self.rules:
            if rule.concerns(request, name) and rule.knows(server.spki_sha256):
                if rule.allow:
                    return rule.grant
                raise _denied(request, name, rule.place)
        raise _denied(request, name, "default")

    def expect(self, request: PolicyRequest, server_name: str) -> Grant:
        """What a handshake begins with: the first grant that certificates of the server could lead to."""
        name = _canonical(server_name)
        possible = (rule.grant for rule in self.rules if rule.allow and rule.concerns(request, name))
        return next(possible, Grant("default"))

    def confirm(self, expected: Grant, request: PolicyRequest, server: ServerIdentity) -> Grant:
        """As `evaluate`, for a handshake that began as expected: another certificate mode is too late now."""
        grant = self.evaluate(request, server)
        if grant.certificate is not expected.certificate:
            raise _too_late(request, server.server_name, expected, grant)
        return grant

    def explain(
        self, request: PolicyRequest, server_name: str, spki_sha256: Sequence[bytes] | None
    ) -> Iterator[Outcome]:
        """The rules that could decide, in order; the last one is certain.

        Without certificates a rule that asks for some is named with its condition, and the search goes on.
        """
        if self.error:
            yield Outcome(self.error, "everything is denied until this is mended", allow=False)
            return
        name, expected = _canonical(server_name), self.expect(request, server_name)
        for rule in self.rules:
            if not rule.concerns(request, name):
                continue
            if spki_sha256 is None and rule.needs_certificates:
                yield _outcome(rule, expected, _condition(rule))
            elif spki_sha256 is None or rule.knows(spki_sha256):
                yield _outcome(rule, expected)
                return
        yield Outcome("default", "no rule matches", allow=False)


def read_policy(directory: Path) -> Policy:
    """Read all rules of a directory. Raises `PolicyError` at the first line that is none."""
    files = sorted(directory.glob("*.policy"), key=lambda path: path.name)
    rules = tuple(rule for path in files for rule in _rules_of(path))
    if len(rules) > MAX_RULES:
        raise PolicyError(f"{directory}: {len(rules)} rules; at most {MAX_RULES} are read.")
    return Policy(rules)


def read_policy_or_deny(directory: Path) -> Policy:
    """As `read_policy`; a policy with an error denies everything and says why."""
    try:
        return read_policy(directory)
    except PolicyError as error:
        return Policy((), str(error))


def parse_rule(line: str, place: str, directory: Path) -> Rule | None:
    """One line as a rule; None for an empty line or a comment. Raises `PolicyError`."""
    words = line.partition("#")[0].split()
    if not words:
        return None
    action, *conditions = words
    if action not in ("allow", "deny"):
        raise PolicyError(f"{place}: a rule begins with 'allow' or 'deny', not with '{action}'.")
    values = _values(conditions, place)
    if "vm" not in values or "server" not in values:
        raise PolicyError(f"{place}: a rule names vm= and server=; '*' stands for all.")
    if action == "deny" and "assurance" in values:
        raise PolicyError(f"{place}: assurance= is a minimum and belongs to 'allow'.")
    if action == "deny" and "certificate" in values:
        raise PolicyError(f"{place}: certificate= is about sessions that are made and belongs to 'allow'.")
    return Rule(
        place=place,
        text=" ".join(words),
        allow=action == "allow",
        vm=_vm(values["vm"]),
        server=_server(values["server"], place),
        token=_star(values.get("token", "*")),
        ca=_pins(values["ca"], place, directory) if "ca" in values else None,
        spki=_pins(values["spki"], place, directory) if "spki" in values else None,
        assurance=_assurance(values["assurance"], place) if "assurance" in values else None,
        certificate=_certificate(values.get("certificate", CertificateMode.IF_ASKED.value), place),
    )


def spki_sha256(certificate: x509.Certificate) -> bytes:
    """SHA-256 of a certificate's SubjectPublicKeyInfo, as pins name it (RFC 7469 section 2.4)."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).digest()


_KEYS: Final = ("vm", "server", "token", "ca", "spki", "assurance", "certificate")


def _rules_of(path: Path) -> Iterator[Rule]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise PolicyError(f"{path.name}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise PolicyError(f"{path.name}: is not UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        rule = parse_rule(line, f"{path.name}:{number}", path.parent)
        if rule is not None:
            yield rule


def _values(conditions: Sequence[str], place: str) -> dict[str, str]:
    values: dict[str, str] = {}
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if key not in _KEYS or not equals or not value:
            raise PolicyError(
                f"{place}: '{condition}' is no condition; known are {', '.join(_KEYS)}, as in vm=web01."
            )
        if key in values:
            raise PolicyError(f"{place}: {key}= twice; a rule has each condition once.")
        values[key] = value
    return values


def _star(value: str) -> str | None:
    return None if value == "*" else value


def _vm(value: str) -> str | None:
    uuid = parsed_uuid(value)
    return _star(value) if uuid is None else str(uuid)


def _server(pattern: str, place: str) -> Callable[[str], bool] | None:
    """A DNS name, `*.` for exactly one more label, `**.` for one or more, an address, a network, or `*`."""
    if pattern == "*":
        return None
    try:
        network = ipaddress.ip_network(pattern)
    except ValueError:
        return _dns_pattern(pattern, place)
    return lambda name: _address_in(name, network)


_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_TOP_LABEL = rf"(?=[0-9_-]*[a-z]){_LABEL}"
"""Not all digits, so that a pattern of names never matches an address (RFC 3696 section 2)."""

_DNS_PATTERN = re.compile(rf"(?:\*\*?\.)?(?:{_LABEL}\.)*{_TOP_LABEL}")


def _dns_pattern(pattern: str, place: str) -> Callable[[str], bool]:
    pattern = _canonical(pattern)
    if not _DNS_PATTERN.fullmatch(pattern):
        raise PolicyError(
            f"{place}: '{pattern}' is no server: use a DNS name (A-labels), '*.' before it for one more "
            "label, '**.' for one or more, an IP address, a network, or '*'."
        )
    if pattern.startswith("**."):
        suffix = pattern[2:]
        return lambda name: name.endswith(suffix) and len(name) > len(suffix)
    if pattern.startswith("*."):
        parent = pattern[2:]
        return lambda name: name.partition(".")[2] == parent
    return lambda name: name == pattern


def _address_in(name: str, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(name) in network
    except ValueError:
        return False


def _canonical(server_name: str) -> str:
    return server_name.lower().rstrip(".")


_HEX_PIN = re.compile(r"sha256:([0-9a-fA-F]{64})")


def _pins(value: str, place: str, directory: Path) -> frozenset[bytes]:
    """`sha256:HEX` or a file of certificates beside the policy; several are separated by commas."""
    return frozenset(pin for item in value.split(",") for pin in _pin(item, place, directory))


def _pin(item: str, place: str, directory: Path) -> list[bytes]:
    pin = _HEX_PIN.fullmatch(item)
    if pin:
        return [bytes.fromhex(pin[1])]
    if item.startswith("sha256:"):
        raise PolicyError(f"{place}: '{item}' is no pin; sha256: is followed by 64 hexadecimal digits.")
    try:
        certificates = x509.load_pem_x509_certificates((directory / item).read_bytes())
    except OSError as error:
        raise PolicyError(f"{place}: {item} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise PolicyError(f"{place}: {item} holds no certificates in PEM.") from error
    return [spki_sha256(certificate) for certificate in certificates]


def _assurance(value: str, place: str) -> Assurance:
    try:
        return Assurance(value)
    except ValueError as error:
        known = ", ".join(each.value for each in _ORDER)
        raise PolicyError(f"{place}: '{value}' is no assurance; known are {known}.") from error


def _certificate(value: str, place: str) -> CertificateMode:
    try:
        return CertificateMode(value)
    except ValueError as error:
        known = ", ".join(each.value for each in CertificateMode)
        raise PolicyError(f"{place}: '{value}' is no certificate mode; known are {known}.") from error


def _reaches(assurance: Assurance, minimum: Assurance) -> bool:
    return _ORDER.index(assurance) >= _ORDER.index(minimum)


def _condition(rule: Rule) -> str:
    needs = []
    if rule.ca is not None:
        needs.append("the server's chain leads through a CA of ca=")
    if rule.spki is not None:
        needs.append("the server's key is one of spki=")
    return " and ".join(needs)


def _outcome(rule: Rule, expected: Grant, condition: str = "") -> Outcome:
    """What a rule decides; one that allows what the handshake did not begin with denies."""
    if rule.allow and rule.certificate is not expected.certificate:
        text = f"{rule.text} (but it begins with {_mode(expected)})"
        return Outcome(rule.place, text, allow=False, condition=condition)
    return Outcome(rule.place, rule.text, rule.allow, condition)


def _denied(request: PolicyRequest, server_name: str, rule: str) -> PolicyDenied:
    """What the VM may know: which rule decided, not what the rules are."""
    message = f"Policy does not let VM {request.vm} talk to {server_name} (rule: {rule})."
    return PolicyDenied(message, rule=rule)


def _too_late(request: PolicyRequest, server_name: str, expected: Grant, grant: Grant) -> PolicyDenied:
    message = (
        f"Policy does not let VM {request.vm} talk to {server_name}: the handshake began with "
        f"{_mode(expected)}, but the server's certificates lead to {_mode(grant)}; "
        "the operator should make both rules agree."
    )
    return PolicyDenied(message, rule=grant.rule)


def _mode(grant: Grant) -> str:
    return f"certificate={grant.certificate.value} (rule: {grant.rule})"
