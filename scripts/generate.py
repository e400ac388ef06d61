"""Generate vmtoken/v1 from proto/; with --check, say what is out of date and change nothing."""

from __future__ import annotations

import filecmp
import importlib.resources
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent


def generate(into: Path) -> None:
    """Run protoc with the Python, gRPC and stub generators."""
    protos = sorted((ROOT / "proto/vmtoken/v1").glob("*.proto"))
    include = importlib.resources.files("grpc_tools") / "_proto"
    arguments = ["protoc", f"-I{ROOT / 'proto'}", f"-I{include}"]
    arguments += [f"--{kind}_out={into}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main([*arguments, *map(str, protos)]) != 0:
        sys.exit(1)
    (into / "vmtoken/v1/__init__.py").write_text(
        '"""Generated from proto/vmtoken/v1 by scripts/generate.py."""\n'
    )


def main() -> None:
    """Generate, or compare."""
    committed = ROOT / "vmtoken/v1"
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = Path(scratch) / "vmtoken/v1"
        names = sorted(path.name for path in fresh.iterdir())
        if "--check" in sys.argv[1:]:
            stale = filecmp.cmpfiles(fresh, committed, names, shallow=False)
            outdated = stale[1] + stale[2]
            sys.exit(
                f"vmtoken/v1 is out of date: {', '.join(outdated)}. Run 'make proto'." if outdated else 0
            )
        shutil.rmtree(committed, ignore_errors=True)
        shutil.copytree(fresh, committed)


if __name__ == "__main__":
    main()
