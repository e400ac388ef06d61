from __future__ import annotations

import pytest

from dom0_broker.tls_client.key_shares import KeyShareStock
from vmtoken.tls.codes import NamedGroup
from vmtoken.tls.config import DEFAULT_KEY_SHARES


def test_ready_shares_are_given_out_once() -> None:
    stock = KeyShareStock()
    stock.prepare()
    stock.prepare()
    given = [stock.take(DEFAULT_KEY_SHARES) for _ in range(3)]
    assert len({share.public for shares in given for share in shares}) == 3 * len(DEFAULT_KEY_SHARES)
    assert all(tuple(share.group for share in shares) == DEFAULT_KEY_SHARES for shares in given)


@pytest.mark.parametrize("groups", [(NamedGroup.SECP256R1,), (NamedGroup.X25519,), ()])
def test_other_groups_get_fresh_shares_and_the_ready_ones_stay(groups: tuple[NamedGroup, ...]) -> None:
    stock = KeyShareStock()
    stock.prepare()
    assert tuple(share.group for share in stock.take(groups)) == groups
    ready = stock._ready
    assert stock.take(DEFAULT_KEY_SHARES) is ready
