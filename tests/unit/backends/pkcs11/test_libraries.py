"""Which library is loaded for a URI, and which is not loaded at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dom0_broker.backends.pkcs11.libraries import checked_library, libraries_of
from dom0_broker.backends.pkcs11.uri import Pkcs11Uri
from tests.support.tools import lacks
from vmtoken.errors import InvalidRequest

ANY_FILE = Path("/usr/lib/os-release")
"""Any file of the system will do: nothing is loaded here."""


def uri(query: str) -> Pkcs11Uri:
    return Pkcs11Uri.parse(f"pkcs11:token=lab{query}")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file below directories that only root writes, unlike the one for temporary files."""
    return ANY_FILE.resolve()


def test_module_path_is_taken_as_it_is(library: Path) -> None:
    assert libraries_of(uri(f"?module-path={library}"), []) == [library]


def test_without_a_module_all_configured_ones_are_looked_through(library: Path) -> None:
    assert libraries_of(uri(""), [library, library]) == [library, library]


@pytest.mark.parametrize("name", ["softhsm2", "libsofthsm2"])
def test_module_name_has_no_prefix_and_no_suffix(name: str) -> None:
    softhsm = Path("/usr/lib/softhsm/libsofthsm2.so")
    if not softhsm.exists():
        lacks("SoftHSM")
    others = [Path("/usr/lib/x86_64-linux-gnu/opensc-pkcs11.so"), softhsm]
    assert libraries_of(uri(f"?module-name={name}"), others) == [softhsm.resolve()]


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "No PKCS#11 module is configured"),
        ("?module-name=nothing", "has the name 'nothing'"),
        ("?module-path=libsofthsm2.so", "is not absolute"),
        ("?module-path=/usr/lib/nothing.so", "No such file"),
        ("?module-path=/usr/lib", "is not a file"),
    ],
)
def test_what_cannot_be_loaded_is_said(query: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        libraries_of(uri(query), [])


@pytest.mark.parametrize("victim", ["library", "directory"])
def test_library_that_others_can_write_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """The directories above are those of the test run, which may be writable: only ours are looked at."""
    directory = tmp_path / "modules"
    directory.mkdir(mode=0o755)
    library = directory / "module.so"
    library.touch(0o644)
    ours = property(lambda path: [path.parent] if path == library else [])
    monkeypatch.setattr(Path, "parents", ours)
    assert checked_library(library) == library
    (library if victim == "library" else directory).chmod(0o777)
    with pytest.raises(InvalidRequest, match="others can write"):
        checked_library(library)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file away: run as root")
def test_library_of_another_user_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "module.so"
    library.touch(0o644)
    os.chown(library, 12345, -1)
    monkeypatch.setattr(Path, "parents", property(lambda path: []))
    with pytest.raises(InvalidRequest, match="belongs to user 12345"):
        checked_library(library)
