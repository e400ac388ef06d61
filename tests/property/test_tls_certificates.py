"""Certificates and staples with octets changed: they verify or raise a `PeerError`, nothing else."""

from __future__ import annotations

import contextlib
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pki import NOW, SERVER_NAME, Usage, pki, server_identity
from vmtoken.tls.certificates import CertificateVerifier, TrustStore, subject_of
from vmtoken.tls.errors import PeerError

IDENTITY = server_identity()
STAPLE = pki().intermediate.ocsp_response(
    IDENTITY.certificate, responder=pki().intermediate.issue("responder", usage=Usage.OCSP)
)
VERIFIER = CertificateVerifier(SERVER_NAME, subject_of(SERVER_NAME), TrustStore([IDENTITY.root_der]), NOW)
CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=3)


def changed(octets: bytes, changes: list[tuple[int, int]]) -> bytes:
    buffer = bytearray(octets)
    for offset, octet in changes:
        buffer[offset % len(buffer)] = octet
    return bytes(buffer)


def verify(chain: tuple[bytes, ...], staple: bytes) -> None:
    with warnings.catch_warnings(), contextlib.suppress(PeerError):
        warnings.simplefilter("ignore")
        VERIFIER.verify(chain, (staple,))


@pytest.mark.parametrize("position", [0, 1])
@given(changes=CHANGES)
@settings(max_examples=300, deadline=None)
def test_a_changed_certificate(position: int, changes: list[tuple[int, int]]) -> None:
    chain = list(IDENTITY.chain_der)
    chain[position] = changed(chain[position], changes)
    verify(tuple(chain), STAPLE)


@given(changes=CHANGES)
@settings(max_examples=300, deadline=None)
def test_a_changed_staple(changes: list[tuple[int, int]]) -> None:
    verify(IDENTITY.chain_der, changed(STAPLE, changes))


@given(st.binary(max_size=100))
@settings(max_examples=200, deadline=None)
def test_anything_for_a_certificate_or_a_staple(octets: bytes) -> None:
    verify((octets,), b"")
    verify(IDENTITY.chain_der, octets)
