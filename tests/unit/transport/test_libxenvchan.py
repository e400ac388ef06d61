"""The library's ABI as far as it can be seen without Xen; what it does on Xen is in tests/xen."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vmtoken.transport import libxenvchan
from vmtoken.transport.libxenvchan import MAX_PATH, MAX_RING, open_client, open_server, pages

PATH = "/local/domain/0/data/vmtoken/1"


@pytest.fixture
def library() -> None:
    """Debian's; `scripts/debian-packages.sh` installs it."""
    problem = libxenvchan.available()
    if problem:
        pytest.fail(problem) if os.environ.get("CI") else pytest.skip(problem)


@pytest.mark.parametrize(
    ("read_size", "write_size", "count"),
    [
        (1024, 2048, 1),
        (4096, 4096, 3),
        (4097, 4096, 4),
        (16384, 16384, 9),
        (65536, 65536, 33),
        (MAX_RING, MAX_RING, 513),
    ],
)
def test_a_server_grants_a_page_and_its_rings(read_size: int, write_size: int, count: int) -> None:
    assert pages(read_size, write_size) == count


def test_a_path_that_the_library_would_cut_is_refused() -> None:
    with pytest.raises(OSError, match="longer than 49 octets"):
        open_client(0, "x" * (MAX_PATH + 1))


def test_rings_that_the_library_does_not_take_are_refused() -> None:
    with pytest.raises(OSError, match="rings have at most"):
        open_server(1, PATH, read_size=MAX_RING + 1, write_size=4096)


def test_servers_past_the_limit_of_the_kernel_are_never_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libxenvchan, "grant_limit", lambda: 8)
    with pytest.raises(OSError, match="0 of 8 pages are granted"):
        open_server(1, PATH, read_size=16384, write_size=16384)


@pytest.mark.usefixtures("library")
@pytest.mark.skipif(Path("/dev/xen").exists(), reason="this machine runs on Xen")
def test_the_librarys_failures_are_errors_and_give_reserved_grants_back() -> None:
    for _ in range(300):
        with pytest.raises(OSError, match=PATH):
            open_server(1, PATH, read_size=16384, write_size=16384)
        with pytest.raises(OSError, match=PATH):
            open_client(0, PATH)


def test_what_the_library_leaves_unfilled_is_zero_in_a_heap_that_was_cleaned() -> None:
    """What it fills is up to `event_port`, octet 24; there malloc's own bookkeeping may show."""
    c, size = libxenvchan._libc(), ctypes.sizeof(libxenvchan._Control)
    dirty = [c.malloc(size) for _ in range(50)]
    for chunk in dirty:
        ctypes.memset(chunk, 0xAA, size)
        c.free(chunk)
    libxenvchan._clean_heap()
    chunk = c.malloc(size)
    assert ctypes.string_at(chunk + 24, size - 24) == bytes(size - 24)
    c.free(chunk)


def test_the_structure_has_the_size_that_a_c_compiler_gives_it(tmp_path: Path) -> None:
    """As libxenvchan.h of Xen 4.17 declares it."""
    source = tmp_path / "size.c"
    source.write_text(_DECLARATION)
    try:
        subprocess.run(["cc", "-o", tmp_path / "size", source], check=True)
    except FileNotFoundError:
        pytest.fail("needs cc") if os.environ.get("CI") else pytest.skip("needs cc")
    sizes = subprocess.run([tmp_path / "size"], check=True, capture_output=True, text=True).stdout.split()
    control = libxenvchan._Control
    assert [int(size) for size in sizes] == [
        ctypes.sizeof(control),
        control.event_port.offset,
        control.read.offset,
        control.write.offset,
        control.xs_path.offset,
    ]


def test_blocking_is_the_third_bit_of_the_flags() -> None:
    control = libxenvchan._Control()
    control.blocking = -1
    offset = control.__class__.is_server.offset
    octets = ctypes.string_at(ctypes.addressof(control) + offset, 4)
    assert int.from_bytes(octets, sys.byteorder) == 0b100


_DECLARATION = """
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
struct ring { void *shr; void *buffer; int order; };
struct control {
    union { void *gntshr; void *gnttab; };
    void *ring;
    void *event;
    uint32_t event_port;
    int is_server:1;
    int server_persist:1;
    int blocking:1;
    struct ring read, write;
    char *xs_path;
};
int main(void) {
    printf("%zu %zu %zu %zu %zu\\n", sizeof(struct control), offsetof(struct control, event_port),
           offsetof(struct control, read), offsetof(struct control, write),
           offsetof(struct control, xs_path));
}
"""
