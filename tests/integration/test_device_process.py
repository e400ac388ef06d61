from __future__ import annotations

import os
import queue
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dom0_broker.backends.child import CONTROL_FD
from dom0_broker.backends.process import DeviceProcess, NoAnswer, ProcessEnded
from dom0_broker.backends.wire import Answer, Call, receive, send
from tests.support.waiting import wait_until
from vmtoken.errors import PinRejected, TokenUnavailable, VmTokenError
from vmtoken.secret import SecretBytes

ROOT = Path(__file__).parents[2]


@contextmanager
def device(**callbacks: Any) -> Iterator[DeviceProcess]:
    process = DeviceProcess(
        "tests.support.device_child", name="trial", environment={"PYTHONPATH": str(ROOT)}, **callbacks
    )
    try:
        yield process
    finally:
        process.close()


@pytest.fixture
def process() -> Iterator[DeviceProcess]:
    with device() as process:
        yield process


def call(process: DeviceProcess, method: str, *arguments: Any, lane: str = "a", timeout: float = 20.0) -> Any:
    return process.call(lane, method, *arguments, timeout=timeout)


def test_values_and_secrets_go_there_and_back(process: DeviceProcess) -> None:
    values = [b"\x00\xff", "text", 7, None, True, [1, [2]]]
    assert call(process, "echo", *values) == values
    assert call(process, "reverse", SecretBytes(b"1234")) == SecretBytes(b"4321")
    assert call(process, "echo", bytes(70_000)) == [bytes(70_000)]


def test_messages_do_not_show_what_is_in_them() -> None:
    """VERIFY has a PIN in it, the export of a key block has keys."""
    assert repr(Call("transmit", [1, b"123456"])) == "Call('transmit')"
    assert "123456" not in repr(Answer(b"123456"))


def test_control_descriptor_is_not_left_to_grandchildren(process: DeviceProcess) -> None:
    assert CONTROL_FD not in call(process, "environment")


def test_errors_come_back_as_what_they_are(process: DeviceProcess) -> None:
    with pytest.raises(PinRejected, match="4 octets") as caught:
        call(process, "reject", SecretBytes(b"1234"))
    assert caught.value.retries_left == 2
    with pytest.raises(VmTokenError, match="broke down in break"):
        call(process, "break")
    assert call(process, "echo", 1) == [1]


def test_lanes_do_not_wait_for_each_other(process: DeviceProcess) -> None:
    def hang() -> None:
        with pytest.raises(ProcessEnded):
            call(process, "hang")

    waiting = threading.Thread(target=hang)
    waiting.start()
    assert call(process, "lane", lane="b") == "b"
    process.kill()
    waiting.join(5)
    assert not waiting.is_alive()


def test_call_that_hangs_is_given_up_and_its_lane_begins_anew() -> None:
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with device(on_event=events.put) as process:
        call(process, "echo")
        began = time.monotonic()
        with pytest.raises(NoAnswer, match=r"not answered for 0\.2 seconds"):
            call(process, "hang", timeout=0.2)
        assert time.monotonic() - began < 5
        assert call(process, "echo", 1) == [1]
        call(process, "release")
        assert events.get(timeout=10) == "came back"


def test_second_caller_of_a_busy_lane_waits_no_longer_than_it_may(process: DeviceProcess) -> None:
    call(process, "echo")
    first = threading.Thread(target=call, args=(process, "sleep", 1.0))
    first.start()
    wait_until(lambda: process._running._lanes["a"]._lock.locked())  # type: ignore[union-attr]
    with pytest.raises(NoAnswer, match="busy"):
        call(process, "echo", timeout=0.1)
    assert call(process, "echo", 2) == [2]
    first.join()


def test_answer_that_trickles_does_not_stretch_the_deadline() -> None:
    ours, theirs = socket.socketpair()

    def trickle() -> None:
        theirs.sendall((5000).to_bytes(4, "big"))
        with suppress(OSError):
            while True:
                theirs.sendall(b"\x00")
                time.sleep(0.01)

    with theirs, ours:
        thread = threading.Thread(target=trickle)
        thread.start()
        with pytest.raises(TimeoutError):
            receive(ours, time.monotonic() + 0.2)
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_child_ends_with_a_broker_that_has_not_read_its_events() -> None:
    """The kernel calls that a connection that was reset, not one that ended."""
    control, theirs = socket.socketpair()
    with theirs, closing(control):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.device_child"],
            cwd=ROOT,
            env={**os.environ, CONTROL_FD: str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        ours, lane = socket.socketpair()
        with lane:
            socket.send_fds(control, [b"a"], [lane.fileno()])
        with ours:
            for method in ("release", "hang"):
                send(ours, Call(method, []))
                receive(ours)
    _, said = child.communicate(timeout=20)
    assert (child.returncode, said) == (0, b"")


def test_process_does_not_go_on_without_its_threads() -> None:
    ended = threading.Event()
    with device(on_end=ended.set) as process:
        with suppress(ProcessEnded):
            call(process, "lose a thread")
        assert ended.wait(10)


def test_broker_without_a_descriptor_left_is_told_so(process: DeviceProcess) -> None:
    with no_descriptor_left(), pytest.raises(TokenUnavailable, match="Too many open files"):
        call(process, "echo")
    assert call(process, "echo", 1) == [1]
    with no_descriptor_left(), pytest.raises(TokenUnavailable, match="Too many open files"):
        call(process, "echo", lane="b")
    assert call(process, "echo", 2, lane="b") == [2]


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    taken: list[int] = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for each in taken:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_process_that_crashed_is_started_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dom0_broker.backends.process._FIRST_PAUSE", 1.0)
    ended = threading.Event()
    with device(on_end=ended.set) as process:
        call(process, "echo")
        pid = process.pid
        with pytest.raises(ProcessEnded, match="ended in the middle"):
            call(process, "crash")
        assert ended.wait(5)
        with pytest.raises(TokenUnavailable, match="started again soon") as caught:
            call(process, "echo")
        assert caught.value.retry_after is not None
        time.sleep(caught.value.retry_after + 0.05)
        assert call(process, "echo", 1) == [1]
        assert process.pid != pid


def test_pause_grows_while_the_process_does_not_live(process: DeviceProcess) -> None:
    pauses = []
    for _ in range(3):
        with pytest.raises(ProcessEnded):
            call(process, "crash")
        wait_until(lambda: process.pid is None)
        pauses.append(process._pause)
        time.sleep(pauses[-1])
    assert pauses == [0.25, 0.5, 1.0]


def test_kill_is_followed_by_a_fresh_process_at_once(process: DeviceProcess) -> None:
    call(process, "echo")
    first = process.pid
    process.kill()
    assert call(process, "echo", 1) == [1]
    assert process.pid != first


def test_closed_process_is_gone_and_takes_no_calls(process: DeviceProcess) -> None:
    call(process, "echo")
    pid = process.pid
    assert pid is not None
    process.close()
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(TokenUnavailable, match="not used any more"):
        call(process, "echo")


def test_nothing_is_left_open(process: DeviceProcess) -> None:
    call(process, "echo")
    process.kill()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        for lane in "abc":
            call(process, "echo", lane=lane)
        with pytest.raises(NoAnswer):
            call(process, "hang", timeout=0.05)
        process.kill()
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= before)
