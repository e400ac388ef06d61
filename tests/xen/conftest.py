"""A real Xen host for tests: dom0 and domUs that run the installed product. `make test-xen` boots it once.

    def test_something(lab: Lab) -> None:
        lab.dom0.run(["xl", "list"])                # raises CommandFailed with the output, unless check=False
        web01 = lab.domu("web01")                   # shared by tests; booted when it is not there
        web01.python("import vmtoken")              # the Python of the installed product; or start_python
        with lab.dom0.start(["tail", "-f", "x"]) as tail:   # a Process, ended with the block
            tail.wait_for("ready", seconds=30)      # and write, signal, kill, stop, wait, output
        own = lab.create("own", identity=UUID(...), memory=256, config={"on_crash": "preserve"})
        own.pause(); own.unpause(); own.reboot(); own.shut_down(); own.create(); own.destroy()
        own.save("/root/own.save"); own.restore("/root/own.save")
        own.domid, own.uuid, own.address, own.is_alive, own.console()
        lab.dom0.write("/etc/x", "text"); lab.dom0.read("/etc/x"); web01.copy_in(Path("dir"), "/root/dir")
        lab.dom0.wait_until("test -S /run/x.sock", seconds=20)

A domU that a test changes for good (destroys, reboots, reconfigures) is one of its own: `lab.create`. Every
call has a time limit, `seconds`, and raises a child of LabError. dom0 is 10.77.0.1 on the lab's bridge.
More is in docs/xen-lab.md, deploy/xen-lab/xenlab/lab.py and remote.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import pytest
from xenlab import DomU, Lab, images, snapshot
from xenlab.suite import RESULTS

from tests.xen.links import Broker
from tests.xen.memory import TAPPED_BROKER, install_tapped_broker
from tests.xen.nginx import nginx
from tests.xen.residents import Application, Residents
from tests.xen.stage import Stage

VMS = ("web01", "web02")

OWN = "own"
"""The domU of the fixture with this name."""

FIRST = {"test_passthrough.py": 0, "test_install.py": 1}
"""Before the lab of the others is there, and before a broker runs in its dom0."""

TEST_WITHIN = 600
"""Seconds for a test that sets no limit of its own, with what it boots."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Only `make test-xen`, which boots a lab, runs these."""
    ours = [item for item in items if item.path.is_relative_to(config.rootpath / "tests/xen")]
    if not config.getoption("xen_lab"):
        items[:] = [item for item in items if item not in ours]
        config.hook.pytest_deselected(items=ours)
        return
    items.sort(key=lambda item: FIRST.get(item.path.name, len(FIRST)))
    for item in ours:
        item.add_marker(pytest.mark.xen)
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_WITHIN))


@pytest.fixture(scope="session")
def booted_lab() -> Iterator[Lab]:
    """Xen, dom0 and the domUs of most tests; booted once, and then as they were at that time."""
    with Lab.boot(snapshot.of(images.build()), RESULTS) as lab:
        yield lab


@pytest.fixture
def lab(booted_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab; when the test fails, the report shows what all consoles said last."""
    booted_lab.check()
    yield booted_lab
    if request.node.stash.get(_FAILED, False):
        for name, text in booted_lab.consoles().items():
            request.node.add_report_section("teardown", f"console of {name}", text)


@pytest.fixture(scope="session")
def booted_residents(booted_lab: Lab) -> Iterator[Residents]:
    """web01 and web02, known by their UUIDs, agents on vchan; the broker writes down what it derives."""
    booted_lab.prepare(*VMS, OWN)
    install_tapped_broker(booted_lab.dom0)
    with (
        Stage.running(booted_lab.dom0, TAPPED_BROKER) as stage,
        nginx(booted_lab.dom0),
        Residents(stage) as residents,
    ):
        with ThreadPoolExecutor() as pool:
            moving = _moving_in(pool, booted_lab, residents)
            for name in VMS:
                stage.personalise(name, booted_lab.domu(name).uuid)
        for moved in moving.values():
            moved.result()
        yield residents


@pytest.fixture
def residents(lab: Lab, booted_residents: Residents, request: pytest.FixtureRequest) -> Iterator[Residents]:
    """The same for a test, with the broker running; when the test fails, the report has what they said."""
    if booted_residents.stage.broker.process.has_ended:
        booted_residents.stage.broker.start()
    yield booted_residents
    if request.node.stash.get(_FAILED, False):
        for name, text in booted_residents.said().items():
            request.node.add_report_section("teardown", name, text)


@pytest.fixture
def stage(residents: Residents) -> Stage:
    """Broker and servers in dom0."""
    return residents.stage


@pytest.fixture
def broker(stage: Stage) -> Broker:
    """The broker in dom0."""
    return stage.broker


@pytest.fixture
def applications(lab: Lab, residents: Residents) -> dict[str, Application]:
    """An application in each VM, by its name."""
    with ThreadPoolExecutor() as pool:
        moving = _moving_in(pool, lab, residents)
    return {name: moved.result() for name, moved in moving.items()}


def _moving_in(pool: Executor, lab: Lab, residents: Residents) -> dict[str, Future[Application]]:
    """Agent and application of each VM, side by side."""
    return {name: pool.submit(residents.application, lab.domu(name), name) for name in VMS}


@pytest.fixture
def web01(lab: Lab) -> DomU:
    """The domain of a VM that behaves."""
    return lab.domu("web01")


@pytest.fixture
def own(lab: Lab, broker: Broker) -> DomU:
    """A domU, known as a VM, that a test may do anything to."""
    domain = lab.domu(OWN)
    broker.know(domain)
    return domain


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Take a line for the end of the lab's report, below all tests."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section("figures")
        terminalreporter.write("\n".join([*lines, ""]))


_FIGURES = pytest.StashKey[list[str]]()
_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore[no-untyped-def]
    report = yield
    if report.failed:
        item.stash[_FAILED] = True
    return report
