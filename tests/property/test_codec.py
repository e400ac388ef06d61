from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmtoken.codec import DecodeError, Reader, Writer

sizes = st.integers(1, 8)


@st.composite
def fields(draw: st.DrawFn) -> tuple[int, int]:
    """Size of an unsigned integer, and one that fits."""
    size = draw(sizes)
    return size, draw(st.integers(0, (1 << 8 * size) - 1))


@given(st.lists(fields()), st.lists(st.binary(max_size=300)), st.binary())
def test_what_was_written_is_read(integers: list[tuple[int, int]], blocks: list[bytes], rest: bytes) -> None:
    writer = Writer()
    for size, value in integers:
        writer.uint(value, size)
    with writer.block(4):
        for block in blocks:
            writer.opaque(block, 2)
    writer.raw(rest)
    with Reader(writer.getvalue()) as reader:
        assert [(size, reader.uint(size)) for size, _ in integers] == integers
        with reader.block(4) as inner:
            assert [inner.opaque(2) for _ in blocks] == blocks
        assert reader.rest() == rest


reads = st.one_of(
    st.tuples(st.just("uint"), sizes),
    st.tuples(st.just("raw"), st.integers(0, 100)),
    st.tuples(st.just("opaque"), st.integers(1, 4)),
    st.tuples(st.just("uints"), st.integers(1, 3), st.sampled_from([1, 2, 4])),
)


@given(st.binary(max_size=200), st.lists(reads))
def test_any_octets_are_read_or_refused(octets: bytes, steps: list[tuple[str, ...]]) -> None:
    reader = Reader(octets)
    before = reader.remaining
    try:
        for name, *arguments in steps:
            getattr(reader, name)(*arguments)
            assert 0 <= reader.remaining <= before
    except DecodeError:
        assert reader.remaining >= 0
    assert octets[reader.position :] == reader.rest()
