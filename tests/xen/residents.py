"""Machines of the lab that are VMs: an agent in each, and an application that does what a test says."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xenlab import Machine, Process

from tests.xen.links import DOM0, HOME, Dialogue
from tests.xen.stage import SERVER_NAME, Link, Stage

VISITOR = (Path(__file__).parent / "visitor.py").read_text()


@dataclass(frozen=True)
class Seen:
    """What a server knows of a session."""

    client: str
    """Common name in the certificate of the client."""

    version: str
    resumed: bool

    @classmethod
    def on(cls, page: str) -> Seen:
        """What the page of nginx, as `Servers` has it, or of `openssl s_server -www` says."""
        if page.startswith("{"):
            seen = json.loads(page)
            return cls(seen["client"].removeprefix("CN="), seen["version"], seen["resumed"] == "r")
        kind, version = re.search(r"^(New|Reused), (TLSv1\.\d)", page, re.MULTILINE).groups()  # type: ignore[union-attr]
        client = re.search(r"Subject: CN ?= ?(\S+)", page)
        assert client, page
        return cls(client[1], version, kind == "Reused")


class Application:
    """Gives orders to a visitor (tests/xen/visitor.py) in a machine."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._visitor = Dialogue(process)

    def do(self, order: str, **options: Any) -> dict[str, Any]:
        """An order, and the answer, also when that is an error."""
        return dict(json.loads(self._visitor.ask(json.dumps({"order": order, **options}))))

    def open(self, port: int, version: str = "", **wish: Any) -> dict[str, Any]:
        """A session with a server in dom0."""
        where = {"host": DOM0, "port": port, "server_name": SERVER_NAME, "version": version}
        answer = self.do("open", **{**where, **wish})
        assert "error" not in answer, answer
        return answer

    def seen(self, session: dict[str, Any]) -> Seen:
        """How the server of a session sees it."""
        answer = self.do("ask", number=session["number"])
        assert "error" not in answer, answer
        return Seen.on(answer["page"])

    def close(self, session: dict[str, Any]) -> None:
        """End a session after its ticket came."""
        answer = self.do("close", number=session["number"])
        assert not answer, answer


@dataclass(frozen=True)
class Home:
    """Where a VM's programs are."""

    machine: Machine
    link: Link
    agent: Process
    application: Application
    life: ExitStack
    """Ends them."""

    def serves(self, machine: Machine, link: Link) -> bool:
        """Whether they run there, with that link."""
        ended = self.agent.has_ended or self.application.process.has_ended
        return not ended and (self.machine, self.link) == (machine, link)


class Residents:
    """Agents and applications that stay until the end of the block, or until they are moved."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self._homes: dict[str, Home] = {}

    def application(self, machine: Machine, vm: str, link: Link = Link.VCHAN) -> Application:
        """The application of a VM whose agent has this link; started now unless it runs."""
        if not (vm in self._homes and self._homes[vm].serves(machine, link)):
            self.move_out(vm)
            with ExitStack() as life:
                agent = life.enter_context(self.stage.agent(machine, vm, link))
                process = life.enter_context(machine.start_python(VISITOR, f"{HOME}/agent.sock"))
                self._homes[vm] = Home(machine, link, agent, Application(process), life.pop_all())
        return self._homes[vm].application

    def agent(self, vm: str) -> Process:
        """The agent of a VM that has moved in."""
        return self._homes[vm].agent

    def said(self, characters: int = 4000) -> dict[str, str]:
        """The last lines of the broker and of all agents."""
        programs = {f"agent of {vm}": home.agent for vm, home in self._homes.items()}
        programs["broker"] = self.stage.broker.process
        return {name: process.output[-characters:] for name, process in programs.items()}

    def move_out(self, vm: str) -> None:
        """End agent and application of a VM."""
        if vm in self._homes:
            self._homes.pop(vm).life.close()

    def __enter__(self) -> Residents:
        return self

    def __exit__(self, *_: object) -> None:
        for vm in list(self._homes):
            self.move_out(vm)
