from __future__ import annotations

import asyncio
import uuid

import pytest

from dom0_broker.admission import Admission, Pace, Quotas, first_free
from tests.fakes.clock import FixedClock
from vmtoken.clock import SystemClock
from vmtoken.errors import QuotaExceeded, ShuttingDown, TokenBusy

A, B, C = (uuid.UUID(int=number) for number in range(3))


def admission(capacity: int = 100) -> Admission:
    return Admission("web", capacity=capacity, clock=SystemClock())


def in_an_hour() -> float:
    return asyncio.get_running_loop().time() + 3600


async def turn() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_free_slot_is_had_at_once_even_after_the_deadline() -> None:
    slot = admission()
    await slot.acquire(A, 0.0)
    assert slot.busy
    slot.release()
    assert not slot.busy


async def test_vms_take_turns_and_each_is_served_in_its_order() -> None:
    slot = admission()
    await slot.acquire(C, 0.0)
    served: list[str] = []

    async def wait(vm: uuid.UUID, name: str) -> None:
        await slot.acquire(vm, in_an_hour())
        served.append(name)
        slot.release()

    waiting = []
    for vm, name in [(A, "a1"), (A, "a2"), (A, "a3"), (B, "b1"), (B, "b2"), (C, "c1")]:
        waiting.append(asyncio.create_task(wait(vm, name)))
        await turn()
    assert slot.waiting == 6
    slot.release()
    await asyncio.gather(*waiting)
    assert served == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert not slot.busy
    assert slot.waiting == 0


async def test_past_the_deadline_the_token_is_busy_and_the_next_is_served() -> None:
    slot = admission()
    await slot.acquire(A, 0.0)
    with pytest.raises(TokenBusy, match="before the deadline") as busy:
        await slot.acquire(B, asyncio.get_running_loop().time())
    assert busy.value.retry_after is not None
    assert slot.waiting == 0
    waiting = asyncio.create_task(slot.acquire(B, in_an_hour()))
    await turn()
    slot.release()
    await waiting


async def test_full_queue_refuses_at_once() -> None:
    slot = admission(capacity=1)
    await slot.acquire(A, 0.0)
    waiting = asyncio.create_task(slot.acquire(A, in_an_hour()))
    await turn()
    with pytest.raises(TokenBusy, match="1 handshakes waiting"):
        await slot.acquire(B, in_an_hour())
    slot.release()
    await waiting


async def test_cancelled_waiter_gives_its_place_up() -> None:
    slot = admission()
    await slot.acquire(A, 0.0)
    first, second = (asyncio.create_task(slot.acquire(vm, in_an_hour())) for vm in (B, C))
    await turn()
    first.cancel()
    await turn()
    assert slot.waiting == 1
    slot.release()
    await second


async def test_waiter_cancelled_in_the_moment_of_its_turn_passes_the_slot_on() -> None:
    slot = admission()
    await slot.acquire(A, 0.0)
    first, second = (asyncio.create_task(slot.acquire(vm, in_an_hour())) for vm in (B, C))
    await turn()
    slot.release()
    first.cancel()
    await asyncio.wait_for(second, 1)
    assert first.cancelled()
    slot.release()
    assert not slot.busy


async def test_waiter_whose_deadline_is_the_moment_of_its_turn_passes_the_slot_on() -> None:
    slot = admission()
    await slot.acquire(A, 0.0)
    loop = asyncio.get_running_loop()
    late = asyncio.create_task(slot.acquire(B, loop.time() + 0.01))
    await turn()
    loop.call_later(0.005, slot.release)
    past = loop.time() + 0.02
    while loop.time() < past:
        pass  # the loop stands still: when it goes on, the release and then the deadline are due
    with pytest.raises(TokenBusy):
        await late
    await slot.acquire(C, 0.0)
    slot.release()
    assert not slot.busy


async def test_closing_refuses_those_who_wait_and_those_who_come() -> None:
    slot = admission()
    await slot.acquire(A, 0.0)
    waiting = asyncio.create_task(slot.acquire(B, in_an_hour()))
    await turn()
    slot.close()
    with pytest.raises(ShuttingDown):
        await waiting
    with pytest.raises(ShuttingDown):
        await slot.acquire(B, in_an_hour())
    slot.release()
    assert not slot.busy


async def granted(*slots: Admission, vm: uuid.UUID = A) -> asyncio.Task[Admission]:
    """One who waits for any of several slots."""
    waiting = asyncio.create_task(first_free(slots, vm, in_an_hour()))
    await turn()
    return waiting


async def test_slot_that_is_free_for_the_longest_is_taken_first() -> None:
    clock = FixedClock()
    slots = [Admission(name, capacity=1, clock=clock) for name in ("one", "two", "three")]
    served = []
    for slot in slots:
        clock.seconds += 1
        await slot.acquire(A, 0.0)
        slot.release()
    for _ in range(6):
        clock.seconds += 1
        slot = await first_free(slots, A, 0.0)
        served.append(slot.token)
        slot.release()
    assert served == ["one", "two", "three"] * 2


async def test_waiter_for_several_is_served_once_by_the_first_that_is_free() -> None:
    one, two = admission(), admission()
    await one.acquire(A, 0.0)
    await two.acquire(A, 0.0)
    waiting = await granted(one, two)
    assert (one.waiting, two.waiting) == (1, 1)
    two.release()
    assert await waiting is two
    assert (one.waiting, two.waiting) == (0, 0)
    one.release()
    assert (one.busy, two.busy) == (False, True)


async def test_vms_that_share_a_slot_take_turns_wherever_else_they_wait() -> None:
    shared, own = admission(), admission()
    await shared.acquire(C, 0.0)
    await own.acquire(C, 0.0)
    waiting = [await granted(shared, own, vm=A) for _ in range(3)] + [await granted(shared, vm=B)]
    shared.release()
    assert await waiting[0] is shared
    shared.release()
    assert await waiting[3] is shared
    assert [task.done() for task in waiting] == [True, False, False, True]
    for task in waiting:
        task.cancel()


async def test_those_who_wait_elsewhere_too_are_left_to_the_others_while_a_token_is_not_well() -> None:
    well = True
    sick = Admission("sick", capacity=9, clock=SystemClock(), healthy=lambda: well)
    other = admission()
    await sick.acquire(A, 0.0)
    await other.acquire(A, 0.0)
    both, only = await granted(sick, other), await granted(sick, vm=B)
    well = False
    sick.release()
    assert await only is sick
    assert (sick.waiting, other.waiting, both.done()) == (0, 1, False)
    other.release()
    assert await both is other


async def test_slot_that_closes_keeps_nobody_who_can_go_elsewhere() -> None:
    one, two = admission(), admission()
    await one.acquire(A, 0.0)
    await two.acquire(A, 0.0)
    waiting, alone = await granted(one, two), await granted(one)
    one.close(TokenBusy("Token 'one' is retired."))
    with pytest.raises(TokenBusy, match="retired"):
        await alone
    two.release()
    assert await waiting is two
    with pytest.raises(TokenBusy, match="retired"):
        await first_free([one], A, in_an_hour())


async def test_who_waits_for_several_is_refused_when_all_are_full_or_the_time_is_over() -> None:
    one, two = Admission("one", capacity=1, clock=SystemClock()), admission()
    await one.acquire(A, 0.0)
    await two.acquire(A, 0.0)
    waiting = await granted(one, vm=B)
    late = asyncio.create_task(first_free([one, two], A, asyncio.get_running_loop().time()))
    with pytest.raises(TokenBusy, match="Token 'web' was not free"):
        await late
    with pytest.raises(TokenBusy, match="1 handshakes waiting"):
        await first_free([one], A, in_an_hour())
    assert two.waiting == 0
    waiting.cancel()


async def test_cancelled_in_the_moment_of_its_turn_one_of_several_slots_goes_on() -> None:
    one, two = admission(), admission()
    await one.acquire(A, 0.0)
    await two.acquire(A, 0.0)
    waiting, after = await granted(one, two), await granted(one, vm=B)
    one.release()
    waiting.cancel()
    assert await asyncio.wait_for(after, 1) is one
    assert two.waiting == 0


async def test_pace_slows_down_only_whoever_is_too_fast() -> None:
    loop = asyncio.get_running_loop()
    pace, patient = Pace(200), Pace(200)
    began = loop.time()
    for _ in range(240):
        await pace.keep()
    assert loop.time() - began >= 0.19
    had_to_wait: list[bool] = []
    loop.call_soon(had_to_wait.append, True)
    for _ in range(200):
        await patient.keep()
    assert not had_to_wait


async def test_quota_counts_each_vm_by_itself() -> None:
    quotas = Quotas(2)
    with quotas.one_more(A), quotas.one_more(A), quotas.one_more(B):
        assert (quotas.open(A), quotas.open(B), quotas.idle.is_set()) == (2, 1, False)
        with pytest.raises(QuotaExceeded) as refused, quotas.one_more(A):
            pass
        assert refused.value.retry_after
    assert (quotas.open(A), quotas.idle.is_set()) == (0, True)
