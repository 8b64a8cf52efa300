"""Processes that Ray ends because their machine runs out of memory: to a search they have died, like any other.

Ray's error for them is no RayActorError, the only one that Ray Tune 2.60 takes for the death of a trial's process. Any
other ends Tune, and with it the whole search and the trials beside this one.
"""

from __future__ import annotations

from typing import Any

from ray.air.execution._internal import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.execution import tune_controller

OUT_OF_MEMORY = "out of memory"


def memory_reason(error: OutOfMemoryError) -> str:
    """What Ray says of it in one line, without the processes it counts up and its advice."""
    return f"{OUT_OF_MEMORY}: {str(error).strip().splitlines()[0]}"


class ActorManager(RayActorManager):
    """Tune's keeper of its trials' processes, to which running out of memory is a way to die."""

    def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=memory_reason(exception))
        super()._actor_task_failed(tracked_actor_task, exception)

    def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=memory_reason(exception))
        super()._actor_start_failed(tracked_actor, exception)


def survive_out_of_memory() -> None:
    """Have every run of Tune from now on keep its processes with the one above."""
    tune_controller.RayActorManager = ActorManager  # type: ignore[attr-defined]
