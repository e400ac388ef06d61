from __future__ import annotations

import re

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from vmtoken.tls.codes import CipherSuite, ProtocolVersion
from vmtoken.tls.suites import Authentication, Suite, suite_of

SUITES = [suite for code in CipherSuite if (suite := suite_of(code))]


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.code.name)
def test_the_row_says_what_the_name_says(suite: Suite) -> None:
    name = suite.code.name
    assert suite.hash_name == re.search(r"SHA\d+$", name)[0].lower()  # type: ignore[index]
    assert suite.hash_length * 8 == int(suite.hash_name.removeprefix("sha"))
    assert suite.aead is (ChaCha20Poly1305 if "CHACHA20" in name else AESGCM)
    assert suite.key_length == (16 if "AES_128" in name else 32)
    is_tls12 = name.startswith("TLS_ECDHE_")
    assert (suite.version == ProtocolVersion.TLS_1_2) == is_tls12
    assert suite.authentication.name == (name.split("_")[2] if is_tls12 else "ANY")
    assert suite.explicit_nonce_length == (8 if is_tls12 and "GCM" in name else 0)
    assert suite.fixed_iv_length + suite.explicit_nonce_length == 12


def test_usage_limits() -> None:
    """RFC 8446 section 5.5: 2^24.5 records for AES-GCM, none to speak of for ChaCha20-Poly1305."""
    for suite in SUITES:
        if suite.aead is AESGCM:
            assert suite.record_limit <= 2**24.5 < suite.record_limit + 1
        else:
            assert suite.record_limit < 2**64


def test_what_we_do_not_speak() -> None:
    assert suite_of(CipherSuite.TLS_EMPTY_RENEGOTIATION_INFO_SCSV) is None
    assert suite_of(0x002F) is None
    assert suite_of(0x1301) is suite_of(CipherSuite.TLS_AES_128_GCM_SHA256)
    assert {suite.authentication for suite in SUITES} == set(Authentication)
