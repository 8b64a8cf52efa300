"""Processes that Ray ends because their machine runs out of memory: to a search they have died, like any other.

Ray's error for them is no RayActorError, the only one that Ray Tune 2.60 takes for the death of a trial's process. Any
other ends Tune, and with it the whole search and the trials beside this one.
"""

from __future__ import annotations

from ray.exceptions import OutOfMemoryError

from crh_tune.ground import first_line
from crh_tune.tuning.ray_private import take_for_death

OUT_OF_MEMORY = "out of memory"


def memory_reason(error: OutOfMemoryError) -> str:
    """What Ray says of it in one line, without the processes it counts up and its advice."""
    return f"{OUT_OF_MEMORY}: {first_line(error)}"


def survive_out_of_memory() -> None:
    """Have every run of Tune from now on take it for the death of a trial's process."""
    take_for_death(OutOfMemoryError, memory_reason)
