"""Groups: both halves agree, and halves that are no points are refused."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from vmtoken.tls.codes import NamedGroup
from vmtoken.tls.errors import IllegalParameter
from vmtoken.tls.key_exchange import KeyExchange, X25519KeyExchange, X25519MlKem768KeyExchange, generate


def half(group: NamedGroup) -> KeyExchange:
    (share,) = generate((group,))
    return share


@pytest.mark.parametrize("group", [NamedGroup.X25519, NamedGroup.SECP256R1, NamedGroup.SECP384R1])
def test_two_halves_make_one_secret(group: NamedGroup) -> None:
    ours, theirs = half(group), half(group)
    assert ours.group is theirs.group is group
    assert ours.shared_secret(theirs.public) == theirs.shared_secret(ours.public)
    assert ours.public != theirs.public


def test_ml_kem_comes_first_in_share_and_secret() -> None:
    """draft-ietf-tls-ecdhe-mlkem section 3."""
    ours = half(NamedGroup.X25519MLKEM768)
    assert len(ours.public) == 1184 + 32
    kem_secret, ciphertext = MLKEM768PublicKey.from_public_bytes(ours.public[:1184]).encapsulate()
    theirs = X25519KeyExchange.of(X25519PrivateKey.generate())
    expected = kem_secret + theirs.shared_secret(ours.public[1184:])
    assert ours.shared_secret(ciphertext + theirs.public) == expected


def test_x25519_and_the_hybrid_share_one_pair() -> None:
    hybrid, classic = generate((NamedGroup.X25519MLKEM768, NamedGroup.X25519))
    assert isinstance(hybrid, X25519MlKem768KeyExchange)
    assert hybrid.x25519 is classic
    assert hybrid.public.endswith(classic.public)


def test_halves_are_fresh() -> None:
    groups = tuple(NamedGroup)
    publics = [share.public for share in (*generate(groups), *generate(groups))]
    assert len(set(publics)) == len(publics)


BAD_HALVES = {
    "X25519 zero": (NamedGroup.X25519, bytes(32)),
    "X25519 of small order": (NamedGroup.X25519, bytes([1]) + bytes(31)),
    "X25519 short": (NamedGroup.X25519, bytes(range(31))),
    "X25519 empty": (NamedGroup.X25519, b""),
    "P-256 not on the curve": (NamedGroup.SECP256R1, b"\x04" + bytes(range(64))),
    "P-256 infinity": (NamedGroup.SECP256R1, b"\0"),
    "P-256 compressed": (NamedGroup.SECP256R1, b"\x02" + half(NamedGroup.SECP256R1).public[1:33]),
    "P-256 hybrid form": (NamedGroup.SECP256R1, b"\x06" + half(NamedGroup.SECP256R1).public[1:]),
    "P-384 of P-256": (NamedGroup.SECP384R1, half(NamedGroup.SECP256R1).public),
    "ML-KEM short": (NamedGroup.X25519MLKEM768, bytes(1087)),
    "ML-KEM without point": (NamedGroup.X25519MLKEM768, bytes(1088)),
    "ML-KEM with zero point": (NamedGroup.X25519MLKEM768, bytes(1088 + 32)),
    "ML-KEM with tail": (NamedGroup.X25519MLKEM768, bytes(1088) + half(NamedGroup.X25519).public + b"\0"),
}


@pytest.mark.parametrize("case", BAD_HALVES, ids=str)
def test_a_half_that_is_not_of_the_group_is_an_illegal_parameter(case: str) -> None:
    group, peer = BAD_HALVES[case]
    with pytest.raises(IllegalParameter):
        half(group).shared_secret(peer)


def test_private_halves_do_not_print() -> None:
    for share in generate(tuple(NamedGroup)):
        assert "private" not in repr(share)
        assert "decapsulation" not in repr(share)
