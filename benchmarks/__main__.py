"""`python -m benchmarks`: measure, print the table, write build/bench.json."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks import bulk, crowds, engine, handshakes, memory, profiles, tokens
from benchmarks.bench import Bench
from benchmarks.rows import Row, table
from guest_agent.allocator import keep_freed_blocks

REPORT = Path(__file__).parents[1] / "build/bench.json"

SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "engine": engine.rows,
    "handshakes": handshakes.rows,
    "bulk": bulk.rows,
    "crowds": crowds.rows,
    "memory": memory.rows,
    "tokens": tokens.rows,
}


def main() -> None:
    """Measure what was asked for; goals that are missed are named, and are no failure of the run."""
    options = _parser().parse_args()
    keep_freed_blocks()  # as the agent does; whoever moves bulk data should, with `ssl` too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the programs are stopped
    with tempfile.TemporaryDirectory() as directory, ExitStack() as programs:
        bench = Bench(Path(directory), options.quick, programs)
        if options.profile:
            for text in profiles.report(bench):
                print(text)
            return
        _measure(bench, options.only or list(SECTIONS))


def _measure(bench: Bench, sections: list[str]) -> None:
    rows: list[Row] = []
    for name in sections:
        print(f"measuring {name} ...", flush=True)
        rows += SECTIONS[name](bench)
    print(table(rows))
    missed = [row.name for row in rows if row.met is False]
    print(f"{len(missed)} goals missed: {'; '.join(missed)}" if missed else "All goals met.")
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
    print(f"written to {REPORT}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: the order of magnitude")
    parser.add_argument("--only", action="append", choices=SECTIONS, metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--profile", action="store_true", help="print where the time of a handshake goes")
    return parser


if __name__ == "__main__":
    main()
