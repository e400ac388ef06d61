"""Commands in machines of the lab, with the agent of the machines on this one."""

from __future__ import annotations

import importlib.util
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from xenlab import CommandFailed, Machine, Unreachable, frames
from xenlab.remote import Channel

AGENT = Path(__file__).parents[3] / "deploy/xen-lab/guest/agent.py"
NO_MACHINE = "127.0.0.255"
"""Nobody serves the agent's port there."""


def agent_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "frames", frames)
    spec = importlib.util.spec_from_file_location("xenlab_agent", AGENT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Channel]:
    agent = agent_module(monkeypatch)
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/line")
        listener.listen()
        channel = Channel(Path(directory, "line"))
        line, _ = listener.accept()
        with line:
            serving = threading.Thread(target=agent.Link(line.recv, line.sendall).serve)
            serving.start()
            yield channel
            channel.close()
            serving.join(10)


@pytest.fixture
def machine(channel: Channel, tmp_path: Path) -> Machine:
    assert channel.greet(5)
    return Machine(channel, "here")


def run(machine: Machine, script: str, directory: Path, **options: object) -> tuple[str, str, int]:
    done = machine.run(["sh", "-c", script], directory=str(directory), **options)  # type: ignore[arg-type]
    return done.stdout, done.stderr, done.returncode


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("echo out; echo err >&2", ("out\n", "err\n", 0)),
        ("exit 3", ("", "", 3)),
        ("kill -9 $$", ("", "", -9)),
        ("cat", ("typed", "", 0)),
    ],
)
def test_command_answers_with_its_streams_and_code(
    machine: Machine, tmp_path: Path, script: str, answer: tuple[str, str, int]
) -> None:
    assert run(machine, script, tmp_path, check=False, stdin="typed") == answer


def test_more_than_a_frame_goes_in_and_out_whole(machine: Machine, tmp_path: Path) -> None:
    data = "0123456789" * 100_000
    assert run(machine, "cat", tmp_path, stdin=data)[0] == data


def test_failure_says_where_what_and_the_output(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"(?s)here: sh -c .* ended with exit code 1; its output:\nwhy"):
        run(machine, "echo why; exit 1", tmp_path)


def test_command_that_does_not_end_is_killed(machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="did not end within 0 s"):
        run(machine, "echo $$ > pid; sleep 60", tmp_path, seconds=0.4)
    pid = (tmp_path / "pid").read_text().strip()
    machine.run(["sh", "-c", f"until ! kill -0 {pid}; do sleep 0.05; done"], directory="/", seconds=10)


def test_command_that_is_not_there_is_unreachable(machine: Machine) -> None:
    with pytest.raises(Unreachable, match="no-such-program: No such file or directory"):
        machine.run(["no-such-program"], directory="/")


def test_process_is_watched_and_ended(machine: Machine) -> None:
    with machine.start(
        ["sh", "-c", "echo up; trap 'echo bye; exit 5' TERM; sleep 60 & wait"], directory="/"
    ) as process:
        process.wait_for("^up$", seconds=10)
        assert process.stop() == 5
    assert process.output == "up\nbye\n"


def test_daemon_that_is_left_does_not_keep_its_command(machine: Machine) -> None:
    assert machine.run(["sh", "-c", "sleep 20 & echo left"], directory="/", seconds=10).stdout == "left\n"


def test_machine_that_is_gone_is_unreachable(channel: Channel) -> None:
    with pytest.raises(Unreachable, match="there: true: Connection refused"):
        Machine(channel, "there", NO_MACHINE).run(["true"], seconds=10)


def test_a_new_host_ends_what_the_one_before_left(channel: Channel) -> None:
    process = Machine(channel, "here").start(["sleep", "60"], directory="/")
    assert process.pid
    assert channel.greet(5)
    assert process.wait(10) == -signal.SIGKILL


def test_closed_line_ends_every_wait(channel: Channel) -> None:
    process = Machine(channel, "here").start(["sleep", "60"], directory="/")
    assert process.pid
    channel.close()
    with pytest.raises(Unreachable, match="the lab is gone"):
        process.wait(10)
