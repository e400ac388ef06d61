"""No guest can have bytes of its choice signed: who in the source can make a key sign, and why."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vmtoken.v1 import tls_service_pb2, token_service_pb2

ROOT = Path(__file__).parents[2]
PACKAGES = ("vmtoken", "dom0_broker", "guest_agent")

SIGNS = {
    "dom0_broker/engine.py": "TLS transcripts, after the server is verified and policy said yes",
    "dom0_broker/tls_client/": "hands a transcript to the engine, or to the software element",
    "dom0_broker/backends/": "certificate requests of the operator; the software element's own handshakes",
    "dom0_broker/enrolment.py": "the CA of enrolment certificates, a key of the broker",
    "dom0_broker/ctl/": "CAs and requests of the operator's command line, keys in files",
    "vmtoken/cards/": "keys on cards, for the engine and for certificate requests",
    "vmtoken/csr.py": "certificate requests of the operator",
    "vmtoken/tls/": "the handshake's states, and keys in software",
}
"""Where an attribute named `sign` may be touched, and what is signed there: never what a guest chose."""

KNOWS_KEYS = ("vmtoken/token.py", "vmtoken/cards/", "dom0_broker/backends/", "dom0_broker/engine.py")
"""Where a `SigningKey` may be named; all others see a `HandshakeToken` and nothing below it."""


def mentions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """`sign` for each touch of an attribute of that name, called or not, and names of keys."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr="sign") | ast.Constant("sign"):
                yield "sign", node.lineno
            case ast.Name("SigningKey") | ast.Attribute(attr="SigningKey") | ast.alias("SigningKey"):
                yield "SigningKey", node.lineno


def sources() -> Iterator[tuple[str, ast.AST]]:
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if not name.startswith("vmtoken/v1/"):
                yield name, ast.parse(path.read_text())


def outside(allowed: tuple[str, ...], what: str) -> list[str]:
    return [
        f"{name}:{line}"
        for name, tree in sources()
        for said, line in mentions(tree)
        if said == what and not name.startswith(allowed)
    ]


def test_only_those_sign_who_have_a_reason() -> None:
    assert outside(tuple(SIGNS), "sign") == []


def test_engine_touches_its_key_in_one_place() -> None:
    tree = ast.parse((ROOT / "dom0_broker/engine.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "sign"]
    assert [ast.unparse(node) for node in calls] == ["self._key.sign"]


def test_only_those_know_keys_who_make_tokens_of_them() -> None:
    assert outside(KNOWS_KEYS, "SigningKey") == []


@pytest.mark.parametrize(
    "source",
    [
        "self._key.sign(scheme, content)",
        "run(key.sign)",
        "getattr(key, 'sign')(scheme, content)",
        "token._key.sign",
    ],
)
def test_the_walk_sees_every_way_to_a_signature(source: str) -> None:
    assert [said for said, _ in mentions(ast.parse(source))] == ["sign"]


@pytest.mark.parametrize("source", ["from vmtoken.token import SigningKey", "vmtoken.token.SigningKey"])
def test_the_walk_sees_every_way_to_a_key(source: str) -> None:
    assert [said for said, _ in mentions(ast.parse(source))] == ["SigningKey"]


@pytest.mark.parametrize("service", [token_service_pb2, tls_service_pb2], ids=["broker", "agent"])
def test_no_call_that_a_guest_can_make_signs(service: object) -> None:
    descriptor = service.DESCRIPTOR  # type: ignore[attr-defined]
    names = [name for kind in descriptor.services_by_name.values() for name in kind.methods_by_name]
    names += [f.full_name for kind in descriptor.message_types_by_name.values() for f in kind.fields]
    assert len(names) > 10
    words = {name: set(re.findall(r"[a-z]+", re.sub(r"(?=[A-Z])", " ", name).lower())) for name in names}
    assert [name for name in names if words[name] & {"sign", "signature", "digest", "pin"}] == []
