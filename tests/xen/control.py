"""`vmtokenctl` again and again, for a machine of the lab, where an interpreter takes seconds to start.

The argument is the broker's configuration. Each line of standard input is a command, as JSON; its exit
code and what it printed are the answer (tests/xen/links.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from dom0_broker.ctl.__main__ import main as vmtokenctl


def run(arguments: list[str]) -> tuple[int, str]:
    """One command: its exit code, and what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = vmtokenctl(arguments)
        except SystemExit as end:
            code = 2 if end.code else 0
    return code, printed.getvalue()


def main() -> None:
    """Until there are no more commands."""
    for number, line in enumerate(iter(sys.stdin.readline, ""), 1):
        outcome = run(["--config", sys.argv[1], *json.loads(line)])
        print(f"answer {number}:", json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
