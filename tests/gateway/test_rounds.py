"""Questions of one turn of the event loop are answered in one call, and none spoils another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from polyroute.gateway.rounds import MOST, Rounds


class Doubler:
    """Doubles numbers; notes how many came at once. A number below 0 is an error of its own, 13 one of all."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, numbers: Sequence[int]) -> list[int | Exception]:
        self.sizes.append(len(numbers))
        if 13 in numbers:
            raise RuntimeError("thirteen")
        return [ValueError(str(number)) if number < 0 else 2 * number for number in numbers]


async def ask_all(rounds: Rounds[int, int], numbers: Sequence[int]) -> list[object]:
    async def one(number: int) -> int:
        return await rounds.ask(number)

    return await asyncio.gather(*map(one, numbers), return_exceptions=True)


def test_questions_of_one_turn_are_answered_together_and_in_order() -> None:
    doubler = Doubler()
    assert asyncio.run(ask_all(Rounds(doubler), range(5))) == [0, 2, 4, 6, 8]
    assert doubler.sizes == [5]


def test_questions_of_two_turns_are_two_rounds() -> None:
    async def both(rounds: Rounds[int, int]) -> list[object]:
        return [*await ask_all(rounds, [1, 2]), *await ask_all(rounds, [3])]

    doubler = Doubler()
    assert asyncio.run(both(Rounds(doubler))) == [2, 4, 6]
    assert doubler.sizes == [2, 1]


def test_a_long_round_goes_on_in_the_next_turn() -> None:
    doubler, numbers = Doubler(), range(100, 101 + 2 * MOST)
    assert asyncio.run(ask_all(Rounds(doubler), numbers)) == [2 * number for number in numbers]
    assert doubler.sizes == [MOST, MOST, 1]


def test_an_error_is_its_own_questions_alone() -> None:
    found = asyncio.run(ask_all(Rounds(Doubler()), [1, -2, 3]))
    assert (found[0], found[2]) == (2, 6)
    assert isinstance(found[1], ValueError)
    doubler = Doubler()
    found = asyncio.run(ask_all(Rounds(doubler), [1, 13, 3]))
    assert (found[0], found[2]) == (2, 6)
    assert isinstance(found[1], RuntimeError)
    assert doubler.sizes == [3, 1, 1, 1], "what fails for all is tried one by one"


def test_who_left_is_not_answered() -> None:
    async def leave(rounds: Rounds[int, int]) -> list[object]:
        gone, stays = rounds.ask(1), rounds.ask(2)
        gone.cancel()
        found = await stays
        with pytest.raises(asyncio.CancelledError):
            await gone
        return [found]

    doubler = Doubler()
    assert asyncio.run(leave(Rounds(doubler))) == [4]
    assert doubler.sizes == [1]

    async def all_leave(rounds: Rounds[int, int]) -> None:
        rounds.ask(1).cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(all_leave(Rounds(doubler)))
    assert doubler.sizes == [1], "nobody is left to ask for"
