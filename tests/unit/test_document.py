"""Reading the commands out of a document."""

from __future__ import annotations

import pytest

from tests.xen.document import Block, blocks

_TWO_PLACES = """# Top

Words.

    # in dom0
    one    # a word on it

    two
    # in the VM
    three

## Below

    # where you build
    four
"""


def test_blocks_have_their_section_and_place() -> None:
    assert list(blocks(_TWO_PLACES)) == [
        Block("Top", "in dom0", "one    # a word on it\ntwo"),
        Block("Top", "in the VM", "three"),
        Block("Below", "where you build", "four"),
    ]


def test_block_that_does_not_say_where_is_a_defect_of_the_document() -> None:
    with pytest.raises(ValueError, match="'one' does not say in which machine"):
        list(blocks("# Top\n\n    one\n"))
