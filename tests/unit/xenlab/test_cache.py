"""Directories of the lab that are made once from their inputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from xenlab.cache import cached, digest


def test_digest_sees_text_files_and_all_that_is_below_directories(tmp_path: Path) -> None:
    (tmp_path / "tree/below").mkdir(parents=True)
    inputs = ["text", tmp_path / "tree"]
    seen = {digest(inputs)}
    for change in (("tree/a", "1"), ("tree/a", "2"), ("tree/below/b", "2")):
        (tmp_path / change[0]).write_text(change[1])
        seen.add(digest(inputs))
    assert len(seen) == 4
    assert digest(["ab", "c"]) != digest(["a", "bc"])


def test_entry_is_built_once_and_the_two_last_used_stay(tmp_path: Path) -> None:
    built = []

    def build(directory: Path) -> None:
        built.append(directory)
        (directory / "content").write_text("whole")

    for key in ("1", "1", "2", "3"):
        assert (cached(tmp_path, "name", key, build) / "content").read_text() == "whole"
    assert len(built) == 3
    assert sorted(path.name for path in tmp_path.glob("name-*")) == ["name-2", "name-3"]


def test_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "half").touch()
        raise RuntimeError("no network")

    with pytest.raises(RuntimeError, match="no network"):
        cached(tmp_path, "name", "1", build)
    assert [path.name for path in tmp_path.iterdir()] == ["name.lock"]
