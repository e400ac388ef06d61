"""Programs that run beside a test: started, waited for, stopped; their output is shown on failure."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_SHOWN_ON_FAILURE = 4000
"""Characters of output: enough for a traceback or the last handshakes."""


class Child:
    """A running program. Its output, both streams, goes to a file."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.log_path = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                pass_fds=pass_fds,
                cwd=log.parent,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What the program has written until now."""
        return self.log_path.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait_for(self, pattern: str, seconds: float = 20, *, start: int = 0) -> re.Match[str]:
        """Wait until its log holds something that matches, from the character `start` on."""
        deadline = time.monotonic() + seconds
        compiled = re.compile(pattern, re.MULTILINE)
        while not (match := compiled.search(self.log, start)):
            if self.has_ended:
                raise ChildFailed(self, f"ended with exit code {self.process.returncode}")
            if time.monotonic() > deadline:
                raise ChildFailed(self, f"did not write {pattern!r} within {seconds} s")
            time.sleep(0.005)
        return match

    def type(self, text: str) -> None:
        """Write to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def stop(self, seconds: float = 10) -> int:
        """End it: politely, then by force. Gives its exit code."""
        if not self.has_ended:
            self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._reap()
        return self.process.returncode

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self.process.kill()
        self._reap()

    def _reap(self) -> None:
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()


class ChildFailed(AssertionError):
    """A program beside the test did not do what it should."""

    def __init__(self, child: Child, what: str) -> None:
        super().__init__(f"{child.log_path.stem} {what}; its output:\n{child.log[-_SHOWN_ON_FAILURE:]}")


@contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Iterator[Child]:
    """Run a program as long as the block lasts."""
    child = Child(command, log, environment=environment, pass_fds=pass_fds)
    try:
        yield child
    except ChildFailed:
        raise
    except BaseException as error:
        error.add_note(f"--- output of {log.stem} ---\n{child.log[-_SHOWN_ON_FAILURE:]}")
        raise
    finally:
        child.stop()
