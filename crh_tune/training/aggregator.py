"""The shard aggregator: adds the workers' class statistics and reassigns the centres.

It keeps no state between rounds. A request carries all a round depends on, so a restarted aggregator, or a worker that
lost its answer, needs no more than every worker sending again; :func:`solve_with` agrees on that among the
workers and numbers each sending, so that shards of two sendings never mix. Its process imports no torch, which would
take seconds and 200 MB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from crh_tune.hashing.assignment import Rule, Statistic, reassign
from crh_tune.hashing.centers import CodebookSpec, build_codebook
from crh_tune.hashing.codebook import Table

if TYPE_CHECKING:
    from crh_tune.training.workers import Workers

RoundKey = tuple[str, str, int, int, int]


@dataclass(frozen=True)
class Round:
    """One reassignment: the codebook, the H x C table before it, rule and seed, and which round of which trial."""

    codebook: CodebookSpec
    table: Table
    rule: Rule
    seed: int
    number: int
    trial: str = ""
    attempt: str = ""
    sending: int = 0


Solve = Callable[[Round, Statistic], Table]
"""From a round and this worker's C x (K + 1) shard statistic to the new H x C table, the same on all workers."""


def solve_locally(round_: Round, statistic: Statistic) -> Table:
    """The new table from the whole statistic, in this process."""
    codebook = build_codebook(round_.codebook)
    return reassign(statistic, codebook, round_.table, rule=round_.rule, seed=round_.seed, round_number=round_.number)


@dataclass
class _Pending:
    """Shards of a round that has not got all of them yet."""

    shards: dict[int, Statistic] = field(default_factory=dict)
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    table: asyncio.Task[Table] | None = None


class Aggregator:
    """Run as one asynchronous actor a search, on the driver's node.

    ``patience`` is how many seconds a shard waits for the others of its round.
    """

    def __init__(self, patience: float = 10.0) -> None:
        self._patience = patience
        self._pending: dict[RoundKey, _Pending] = {}

    async def reassign(self, round_: Round, rank: int, workers: int, shard: Statistic) -> Table | None:
        """Add this worker's shard; answers all workers of the round with one table once every shard is here.

        Shards are added in rank order; one sent twice under one key replaces the first. The answer is None when the
        others' shards did not come: then every worker has to send again.
        """
        key = (round_.trial, round_.attempt, round_.number, round_.sending, workers)
        pending = self._pending.setdefault(key, _Pending())
        pending.shards[rank] = shard
        if len(pending.shards) == workers and pending.table is None:
            total = np.sum([pending.shards[r] for r in range(workers)], axis=0)
            pending.table = asyncio.create_task(asyncio.to_thread(solve_locally, round_, total))
            pending.complete.set()
            self._pending.pop(key, None)
        try:
            await asyncio.wait_for(pending.complete.wait(), self._patience)
        except TimeoutError:
            self._pending.pop(key, None)
            return None
        assert pending.table is not None
        return await asyncio.shield(pending.table)


def solve_with(
    call: Callable[[Round, int, int, Statistic], Table | None], workers: Workers, trial: str, attempt: str
) -> Solve:
    """A solver that asks an aggregator through ``call`` until every worker has its answer.

    ``call`` returns None when the answer was lost with the aggregator, or the round was incomplete.
    """

    def solve(round_: Round, statistic: Statistic) -> Table:
        asked = replace(round_, trial=trial, attempt=attempt)
        while True:
            workers.all_true(True)  # send together: a shard waits for the others only so long
            table = call(asked, workers.rank, workers.size, statistic)
            if workers.all_true(table is not None):
                assert table is not None
                return table
            asked = replace(asked, sending=asked.sending + 1)

    return solve
