"""The aggregator: any order of shards, one answer to all, and nothing kept that a restart could lose."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from crh_tune.hashing.centers import CodebookSpec, build_codebook
from crh_tune.training.aggregator import Aggregator, Round, solve_locally, solve_with
from crh_tune.training.workers import Workers

SPEC = CodebookSpec(bits=16, size=24, head_dim=8, seed=3)
ROUND = Round(SPEC, build_codebook(SPEC).initial_table(12, 3), "greedy", 3, 1, "trial", "attempt")


def shards(count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    parts = [generator.integers(-50, 50, (12, 17)) for _ in range(count)]
    for part in parts:
        part[:, -1] = generator.integers(1, 9, 12)
    return parts


def test_all_workers_get_the_same_table_whichever_shard_comes_first():
    parts = shards(3)
    expected = solve_locally(ROUND, sum(parts))

    async def send(order: list[int]) -> list[np.ndarray]:
        aggregator = Aggregator()
        asked = [asyncio.create_task(aggregator.reassign(ROUND, rank, 3, parts[rank])) for rank in order]
        return await asyncio.gather(*asked)

    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        for table in asyncio.run(send(order)):
            assert np.array_equal(table, expected)


def test_rounds_of_different_trials_attempts_and_sendings_do_not_mix():
    parts = shards(2)
    others = [
        replace(ROUND, trial="b"),
        replace(ROUND, attempt="b"),
        replace(ROUND, number=2),
        replace(ROUND, sending=1),
    ]

    async def send() -> None:
        aggregator = Aggregator(patience=0.05)
        for other in others:
            first = asyncio.create_task(aggregator.reassign(ROUND, 0, 2, parts[0]))
            second = asyncio.create_task(aggregator.reassign(other, 1, 2, parts[1]))
            assert await first is None
            assert await second is None
        assert not aggregator._pending

    asyncio.run(send())


def test_a_shard_sent_again_replaces_the_first():
    parts = shards(2)

    async def send() -> np.ndarray:
        aggregator = Aggregator()
        asked = [aggregator.reassign(ROUND, 0, 2, part) for part in (parts[1], parts[0])]
        asked.append(aggregator.reassign(ROUND, 1, 2, parts[1]))
        return (await asyncio.gather(*asked))[2]

    assert np.array_equal(asyncio.run(send()), solve_locally(ROUND, parts[0] + parts[1]))


def test_an_error_in_solving_reaches_every_worker():
    broken = np.zeros((12, 3), dtype=np.int64)

    async def send() -> list[object]:
        aggregator = Aggregator()
        asked = [aggregator.reassign(ROUND, rank, 2, broken + 1) for rank in range(2)]
        return await asyncio.gather(*asked, return_exceptions=True)

    assert all(isinstance(answer, Exception) for answer in asyncio.run(send()))


def test_a_lost_answer_is_asked_for_again_under_a_new_sending():
    sendings: list[int] = []

    def call(round_, rank, workers, shard):
        sendings.append(round_.sending)
        return None if len(sendings) < 3 else solve_locally(round_, shard)

    part = shards(1)[0]
    table = solve_with(call, Workers(), "trial", "attempt")(ROUND, part)
    assert sendings == [0, 1, 2]
    assert np.array_equal(table, solve_locally(ROUND, part))


def test_an_error_is_not_taken_for_a_lost_answer():
    def call(round_, rank, workers, shard):
        raise IndexError("broken shard")

    with pytest.raises(IndexError, match="broken shard"):
        solve_with(call, Workers(), "trial", "attempt")(ROUND, shards(1)[0])
