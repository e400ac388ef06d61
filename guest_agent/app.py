"""Wiring: builds everything, runs it until a signal, takes it down in reverse."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

from guest_agent.config import AgentConfig, load_config
from guest_agent.listeners import ApplicationListener
from guest_agent.sessions import Sessions
from vmtoken.log import set_up
from vmtoken.notify import notify, watchdog_interval
from vmtoken.settings import SettingsError

log = logging.getLogger(__name__)

_HOUSEKEEPING = 5.0
"""Seconds between two looks for idle sessions."""


class App:
    """An agent: `start`, then `stop`."""

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        self.sessions = Sessions(config)
        self._listener = ApplicationListener(self.sessions, config.applications)
        self._housekeeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Serve applications. Raises `OSError` when the socket cannot be had."""
        await self._listener.start()
        self._housekeeping = asyncio.create_task(self._keep_house())
        socket, link = str(self.config.applications.socket), self.config.broker.link
        log.info("agent started", extra={"socket": socket, "broker": link})

    async def stop(self) -> None:
        """Take no more sessions, let those that are open end under the limit, then end everything."""
        await self._listener.stop_accepting()
        drained = await self.sessions.drain()
        log.info("drained" if drained else "sessions were cut off")
        await self.sessions.end()
        await self._listener.close()
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.wait([self._housekeeping])

    async def reload(self, path: Path) -> None:
        """Read the configuration again and swap it in. An error is logged, and the earlier one stays."""
        try:
            config = load_config(path)
        except SettingsError as error:
            log.error("configuration not reloaded", extra={"because": str(error)})  # noqa: TRY400
            return
        if config.applications.socket != self.config.applications.socket:
            log.warning("another socket takes effect when the agent is restarted")
        self.config = config
        set_up(config.log.level, as_json=config.log.format == "json")
        await self.sessions.reconfigure(config)
        log.info("configuration reloaded")

    async def _keep_house(self) -> None:
        """Close idle sessions, and let systemd know that the event loop turns."""
        while True:
            await asyncio.sleep(min(_HOUSEKEEPING, watchdog_interval() or _HOUSEKEEPING))
            notify("WATCHDOG=1")
            idle = self.sessions.close_idle()
            if idle:
                log.info("idle sessions closed", extra={"sessions": idle})


async def run(config: AgentConfig, path: Path) -> None:
    """Run an agent until SIGTERM or SIGINT; SIGHUP reloads `path`. Raises `OSError` when it cannot start."""
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, signals.put_nowait, number)
    app = App(config)
    try:
        await app.start()
        notify("READY=1")
        while await signals.get() is signal.SIGHUP:
            notify("RELOADING=1")
            await app.reload(path)
            notify("READY=1")
        notify("STOPPING=1")
    finally:
        await app.stop()
