from __future__ import annotations

import asyncio
import threading

import pytest

from dom0_broker.card_events import CardEvents


async def test_changes_of_many_threads_are_looked_at_together_in_the_loop() -> None:
    looks: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
    events = CardEvents(lambda scheme: looks.put_nowait((scheme, threading.current_thread().name)))
    here = threading.current_thread().name

    def storm() -> None:
        for _ in range(100):
            events.changed("pcsc")
        events.changed("soft")

    await asyncio.gather(*(asyncio.to_thread(storm) for _ in range(4)))
    assert sorted([await looks.get(), await looks.get()]) == [("pcsc", here), ("soft", here)]
    assert looks.empty()
    events.changed("pcsc")
    assert await looks.get() == ("pcsc", here)


async def test_nobody_looks_after_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dom0_broker.card_events._TOGETHER", 0.0)
    looks: list[str] = []
    events = CardEvents(looks.append)
    events.changed("pcsc")
    await asyncio.sleep(0)
    events.close()
    events.changed("pcsc")
    for _ in range(10):
        await asyncio.sleep(0)
    assert looks == []
