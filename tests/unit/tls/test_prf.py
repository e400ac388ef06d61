from __future__ import annotations

import pytest

from tests.support.sections import sections
from vmtoken.tls.codes import CipherSuite
from vmtoken.tls.prf import (
    client_verify_data,
    export_keying_material,
    extended_master_secret,
    prf,
    record_secrets,
    server_verify_data,
)
from vmtoken.tls.suites import Suite, suite_of

AES_128 = suite_of(CipherSuite.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256)
AES_256 = suite_of(CipherSuite.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384)
CHACHA = suite_of(CipherSuite.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256)
assert AES_128 is not None
assert AES_256 is not None
assert CHACHA is not None


def suite_with(hash_name: str) -> Suite:
    return {"sha256": AES_128, "sha384": AES_256}[hash_name]


def vectors(path: str) -> list[object]:
    return [pytest.param(values, id=name) for name, values in sections(path)]


@pytest.mark.parametrize("vector", vectors("tls12/prf.txt"))
def test_prf(vector: dict[str, str]) -> None:
    output = bytes.fromhex(vector["output"])
    secret, seed = bytes.fromhex(vector["secret"]), bytes.fromhex(vector["seed"])
    suite, label = suite_with(vector["hash"]), vector["label"].encode()
    assert prf(suite, secret, label, seed, len(output)) == output
    assert prf(suite, secret, label, seed, 33) == output[:33]


@pytest.mark.parametrize("vector", vectors("tls12/extended-master-secret.txt"))
def test_extended_master_secret_and_key_block(vector: dict[str, str]) -> None:
    suite = suite_with(vector["hash"])
    values = {name: bytes.fromhex(value) for name, value in vector.items() if name != "hash"}
    master = extended_master_secret(suite, values["preMasterSecret"], values["sessionHash"])
    assert master == values["masterSecret"]
    randoms = values["clientRandom"], values["serverRandom"]
    client, server = record_secrets(suite, master, *randoms)
    block, key, iv = values["keyBlock"], suite.key_length, suite.fixed_iv_length
    assert client == block[:key] + block[2 * key : 2 * key + iv]
    assert server == block[key : 2 * key] + block[2 * key + iv : 2 * key + 2 * iv]


@pytest.mark.parametrize(("suite", "length"), [(AES_128, 20), (AES_256, 36), (CHACHA, 44)])
def test_secrets_have_the_length_that_a_key_block_wants(suite: Suite, length: int) -> None:
    client, server = record_secrets(suite, bytes(48), bytes(32), bytes(32))
    assert len(client) == len(server) == length == suite.secret_length


def test_verify_data_is_told_apart_by_the_label() -> None:
    client, server = (f(AES_128, bytes(48), bytes(32)) for f in (client_verify_data, server_verify_data))
    assert client != server
    assert len(client) == len(server) == 12


def test_exporter_tells_no_context_from_an_empty_one() -> None:
    def export(context: bytes | None) -> bytes:
        return export_keying_material(AES_128, bytes(48), "label", b"c" * 32, b"s" * 32, context, 40)

    assert export(None) == prf(AES_128, bytes(48), b"label", b"c" * 32 + b"s" * 32, 40)
    assert export(b"") == prf(AES_128, bytes(48), b"label", b"c" * 32 + b"s" * 32 + b"\0\0", 40)
    assert export(b"x") == prf(AES_128, bytes(48), b"label", b"c" * 32 + b"s" * 32 + b"\0\1x", 40)
