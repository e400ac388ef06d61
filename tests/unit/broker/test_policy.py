from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dom0_broker.domains import DomainIdentity
from dom0_broker.policy import (
    Policy,
    PolicyError,
    PolicyRequest,
    parse_rule,
    read_policy,
    read_policy_or_deny,
)
from vmtoken.errors import PolicyDenied
from vmtoken.token import Assurance, CertificateMode, ServerIdentity

WEB01 = DomainIdentity(uuid.UUID("6f3c1e7a-0b1d-4f5e-9a44-1c2d3e4f5a6b"), "web01")
LEAF, ISSUER, ROOT = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
REQUEST = PolicyRequest(WEB01, "web", Assurance.CARD_SIGNATURE)


def policy_of(rules: str) -> Policy:
    """The rules of these lines; line n is in the place f:n."""
    parsed = (parse_rule(line, f"f:{n}", Path("/")) for n, line in enumerate(rules.splitlines(), 1))
    return Policy(tuple(rule for rule in parsed if rule))


def decide(
    rules: str,
    server: str = "api.example.com",
    *,
    vm: DomainIdentity = WEB01,
    token: str = "web",
    assurance: Assurance = Assurance.CARD_SIGNATURE,
) -> str:
    """'allow LINE' or 'deny LINE'; the line is 'default' when no rule matched."""
    try:
        identity = ServerIdentity(server, (LEAF, ISSUER, ROOT), b"leaf")
        return f"allow {policy_of(rules).evaluate(PolicyRequest(vm, token, assurance), identity).rule}"
    except PolicyDenied as denied:
        return f"deny {denied.metadata['rule']}"


@pytest.mark.parametrize(
    ("rule", "server", "matches"),
    [
        ("server=*", "anything.example", True),
        ("server=api.example.com", "api.example.com", True),
        ("server=API.Example.COM.", "api.example.com", True),
        ("server=api.example.com", "API.EXAMPLE.COM", True),
        ("server=api.example.com", "xapi.example.com", False),
        ("server=api.example.com", "api.example.com.evil.example", False),
        ("server=*.example.com", "api.example.com", True),
        ("server=*.example.com", "example.com", False),
        ("server=*.example.com", "a.b.example.com", False),
        ("server=*.example.com", "evilexample.com", False),
        ("server=**.example.com", "a.b.example.com", True),
        ("server=**.example.com", "a.example.com", True),
        ("server=**.example.com", "example.com", False),
        ("server=**.example.com", "evilexample.com", False),
        ("server=192.0.2.7", "192.0.2.7", True),
        ("server=192.0.2.0/24", "192.0.2.200", True),
        ("server=192.0.2.0/24", "192.0.3.1", False),
        ("server=192.0.2.0/24", "api.example.com", False),
        ("server=2001:db8::/32", "2001:db8:0:0::1", True),
    ],
)
def test_server_pattern(rule: str, server: str, matches: bool) -> None:
    assert decide(f"allow vm=* {rule}", server) == ("allow f:1" if matches else "deny default")


@pytest.mark.parametrize(
    ("conditions", "matches"),
    [
        ("vm=web01", True),
        ("vm=web02", False),
        ("vm=6f3c1e7a-0b1d-4f5e-9a44-1c2d3e4f5a6b", True),
        ("vm=6F3C1E7A-0B1D-4F5E-9A44-1C2D3E4F5A6B", True),
        ("vm=00000000-0000-0000-0000-000000000001", False),
        ("vm=* token=web", True),
        ("vm=* token=other", False),
        ("vm=* token=*", True),
        (f"vm=* ca=sha256:{ROOT.hex()}", True),
        (f"vm=* ca=sha256:{ISSUER.hex().upper()}", True),
        (f"vm=* ca=sha256:{LEAF.hex()}", False),
        (f"vm=* spki=sha256:{LEAF.hex()}", True),
        (f"vm=* spki=sha256:{ROOT.hex()}", False),
        (f"vm=* spki=sha256:{'0' * 64},sha256:{LEAF.hex()}", True),
        (f"vm=* spki=sha256:{LEAF.hex()} ca=sha256:{'0' * 64}", False),
        ("vm=* assurance=software", True),
        ("vm=* assurance=card-signature", True),
        ("vm=* assurance=card-handshake", False),
    ],
)
def test_condition(conditions: str, matches: bool) -> None:
    assert decide(f"allow server=* {conditions}") == ("allow f:1" if matches else "deny default")


def test_first_match_decides() -> None:
    rules = """
        # a comment
        deny  vm=web01 server=internal.example   # the exception comes first
        allow vm=web01 server=*.example
        allow vm=web01 server=internal.example
        deny  vm=*     server=*
    """
    assert decide(rules, "internal.example") == "deny f:3"
    assert decide(rules, "x.example") == "allow f:4"
    assert decide(rules, "elsewhere.test") == "deny f:6"
    assert decide("", "x.example") == "deny default"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("permit vm=* server=*", "begins with 'allow' or 'deny'"),
        ("allow vm=*", "names vm= and server="),
        ("allow server=*", "names vm= and server="),
        ("allow vm=* server=* port=443", "'port=443' is no condition"),
        ("allow vm=* server=* token", "'token' is no condition"),
        ("allow vm=* server=* token=", "'token=' is no condition"),
        ("allow vm=* vm=web01 server=*", "vm= twice"),
        ("allow vm=* server=a*.example", "is no server"),
        ("allow vm=* server=*.*.example", "is no server"),
        ("allow vm=* server=https://x.example", "is no server"),
        ("allow vm=* server=192.0.2.1/24", "is no server"),
        ("allow vm=* server=bücher.example", "is no server"),
        ("allow vm=* server=*.0.2.7", "is no server"),
        ("allow vm=* server=* assurance=high", "no assurance"),
        ("deny vm=* server=* assurance=software", "belongs to 'allow'"),
        ("allow vm=* server=* certificate=never", "known are if-asked, optional, always"),
        ("allow vm=* server=* certificate=Always", "no certificate mode"),
        ("allow vm=* server=* certificate=", "'certificate=' is no condition"),
        ("allow vm=* server=* certificate=always certificate=always", "certificate= twice"),
        ("deny vm=* server=* certificate=always", "belongs to 'allow'"),
        ("allow vm=* server=* spki=sha256:00", "64 hexadecimal digits"),
        ("allow vm=* server=* ca=missing.pem", "missing.pem cannot be read"),
    ],
)
def test_line_that_is_no_rule_is_named_with_file_and_line(line: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "10-a.policy").write_text("# fine\n")
    (tmp_path / "20-b.policy").write_text(f"\nallow vm=* server=*\n{line}\n")
    with pytest.raises(PolicyError, match=r"^20-b\.policy:3: ") as error:
        read_policy(tmp_path)
    assert complaint in str(error.value)


def test_policy_with_an_error_denies_everything_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "10-a.policy").write_text("allow vm=* server=*\n")
    (tmp_path / "20-b.policy").write_text("alow vm=* server=*\n")
    policy = read_policy_or_deny(tmp_path)
    request = PolicyRequest(WEB01, "web", Assurance.CARD_HANDSHAKE)
    with pytest.raises(PolicyDenied, match=r"20-b\.policy:1"):
        policy.evaluate(request, ServerIdentity("x.example", (LEAF,), b""))
    assert [each.allow for each in policy.explain(request, "x.example", None)] == [False]


def test_files_are_read_in_the_order_of_their_names_and_others_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "90-default.policy").write_text("deny vm=* server=*\n")
    (tmp_path / "10-shops.policy").write_text("allow vm=* server=shop.example\n")
    (tmp_path / "README").write_text("not a rule\n")
    assert [rule.place for rule in read_policy(tmp_path).rules] == [
        "10-shops.policy:1",
        "90-default.policy:1",
    ]


def test_refusal_names_the_rule_and_not_its_text(tmp_path: Path) -> None:
    rule = parse_rule("deny vm=web01 server=secret.example", "10-x.policy:7", tmp_path)
    assert rule is not None
    identity = ServerIdentity("secret.example", (LEAF,), b"")
    with pytest.raises(PolicyDenied, match=r"\(rule: 10-x\.policy:7\)") as denied:
        Policy((rule,)).evaluate(PolicyRequest(WEB01, "web", Assurance.SOFTWARE), identity)
    assert denied.value.metadata == {"rule": "10-x.policy:7"}


def test_explanation_without_certificates_says_what_it_depends_on(tmp_path: Path) -> None:
    (tmp_path / "10-a.policy").write_text(
        f"allow vm=* server=other.example\n"
        f"allow vm=* server=x.example ca=sha256:{ROOT.hex()}\n"
        f"deny vm=* server=x.example\n"
        f"allow vm=* server=x.example\n"
    )
    request = PolicyRequest(WEB01, "web", Assurance.SOFTWARE)
    policy = read_policy(tmp_path)
    unknown = list(policy.explain(request, "x.example", None))
    assert [(each.rule, each.allow, bool(each.condition)) for each in unknown] == [
        ("10-a.policy:2", True, True),
        ("10-a.policy:3", False, False),
    ]
    known = list(policy.explain(request, "x.example", (LEAF, ROOT)))
    assert [(each.rule, each.allow) for each in known] == [("10-a.policy:2", True)]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("allow vm=* server=*", "f:1 if-asked"),
        ("allow vm=* server=* certificate=if-asked", "f:1 if-asked"),
        ("allow vm=* server=* certificate=optional", "f:1 optional"),
        ("allow vm=* server=* certificate=always", "f:1 always"),
        ("", "default if-asked"),
        ("deny vm=* server=*", "default if-asked"),
        ("deny vm=* server=* ca=sha256:{0}\nallow vm=* server=* certificate=always", "f:2 always"),
        ("allow vm=web02 server=* certificate=always\nallow vm=* server=*", "f:2 if-asked"),
        ("allow vm=* server=b.example certificate=always\nallow vm=* server=*", "f:2 if-asked"),
        ("allow vm=* server=* token=b certificate=always\nallow vm=* server=*", "f:2 if-asked"),
        (
            "allow vm=* server=* assurance=card-handshake certificate=always\nallow vm=* server=*",
            "f:2 if-asked",
        ),
        (
            "allow vm=* server=* assurance=card-signature certificate=always\nallow vm=* server=*",
            "f:1 always",
        ),
        ("allow vm=* server=* ca=sha256:{0} certificate=always\nallow vm=* server=*", "f:1 always"),
        ("allow vm=* server=* spki=sha256:{0} certificate=optional\nallow vm=* server=*", "f:1 optional"),
    ],
)
def test_first_rule_that_could_allow_says_how_a_handshake_begins(rules: str, expected: str) -> None:
    grant = policy_of(rules.format("0" * 64)).expect(REQUEST, "API.example.com.")
    assert f"{grant.rule} {grant.certificate.value}" == expected


def test_rule_that_grants_must_agree_with_the_one_that_the_handshake_began_with() -> None:
    policy = policy_of(f"""
        allow vm=* server=* ca=sha256:{"0" * 64} certificate=always
        allow vm=* server=a.example certificate=always
        allow vm=* server=*
    """)
    agreed, other = (ServerIdentity(name, (LEAF, ROOT), b"") for name in ("a.example", "b.example"))
    assert policy.confirm(policy.expect(REQUEST, "a.example"), REQUEST, agreed).rule == "f:3"
    with pytest.raises(PolicyDenied) as denied:
        policy.confirm(policy.expect(REQUEST, "b.example"), REQUEST, other)
    assert denied.value.metadata == {"rule": "f:4"}
    assert "certificate=always (rule: f:2)" in denied.value.message
    assert "certificate=if-asked (rule: f:4)" in denied.value.message


@pytest.mark.parametrize("begun", CertificateMode)
@pytest.mark.parametrize("wanted", CertificateMode)
def test_policy_that_changed_since_the_handshake_began_decides(
    begun: CertificateMode, wanted: CertificateMode
) -> None:
    earlier = policy_of(f"allow vm=* server=* certificate={begun.value}").expect(REQUEST, "x.example")
    policy = policy_of(f"# reloaded\nallow vm=* server=* certificate={wanted.value}")
    server = ServerIdentity("x.example", (LEAF,), b"")
    if begun is wanted:
        assert policy.confirm(earlier, REQUEST, server).rule == "f:2"
    else:
        with pytest.raises(PolicyDenied):
            policy.confirm(earlier, REQUEST, server)


def test_denied_is_denied_however_the_handshake_began() -> None:
    server = ServerIdentity("x.example", (LEAF,), b"")
    policy = policy_of("deny vm=* server=*")
    expected = policy.expect(REQUEST, "x.example")
    with pytest.raises(PolicyDenied, match=r"\(rule: f:1\)") as denied:
        policy.confirm(expected, REQUEST, server)
    assert "certificate" not in denied.value.message


def test_explanation_knows_that_the_certificate_is_decided_first() -> None:
    policy = policy_of(f"""
        allow vm=* server=* ca=sha256:{ROOT.hex()} certificate=always
        allow vm=* server=*
    """)
    unknown = list(policy.explain(REQUEST, "x.example", None))
    assert [(each.rule, each.allow, bool(each.condition)) for each in unknown] == [
        ("f:2", True, True),
        ("f:3", False, False),
    ]
    assert "begins with certificate=always (rule: f:2)" in unknown[1].text
    assert [each.allow for each in policy.explain(REQUEST, "x.example", (LEAF, ROOT))] == [True]
    assert [each.allow for each in policy.explain(REQUEST, "x.example", (LEAF, ISSUER))] == [False]


@given(st.text(max_size=200))
def test_any_line_is_a_rule_or_a_policy_error(line: str) -> None:
    try:
        parse_rule(line, "f:1", Path("/nonexistent"))
    except PolicyError as error:
        assert str(error).startswith("f:1: ")  # noqa: PT017
