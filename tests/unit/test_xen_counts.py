"""The verdict of the soak on Xen."""

from __future__ import annotations

import pytest

from tests.xen.counts import left_over

BEFORE = {"threads": 11, "pages granted (gntalloc)": 26}


@pytest.mark.parametrize(
    ("after", "findings"),
    [
        (BEFORE, []),
        (BEFORE | {"threads": 10}, []),
        (BEFORE | {"threads": 12}, ["threads: 11 before, 12 after"]),
        (BEFORE | {"dead domains": 1}, ["dead domains: 0 before, 1 after"]),
        ({"threads": 11}, []),
    ],
    ids=["the same", "fewer", "more", "new", "gone"],
)
def test_only_what_there_is_more_of_is_left(after: dict[str, int], findings: list[str]) -> None:
    assert list(left_over(BEFORE, after)) == findings
