"""All that is used of Ray's private interfaces, and why. They may change in any release: pyproject.toml caps it.

* ``quiet_signals``: ``ray.init`` takes SIGTERM and the signals of crashes for itself, and has no option for it.
* ``node_socket``: which of the machine's raylets is this process's own.
* ``end_at_once``: how Ray ends its processes.
* ``train_private.GroupTrainer``: two helpers and a signal handler of Ray Train's that no option leaves out.
* ``groups_of``: the public table of placement groups says neither whose they are nor whether their maker is dead.
* ``take_for_death``: Tune takes no error but RayActorError for the death of a trial's process.
* ``keep_processes``: Tune keeps the processes of trials that have ended, but only as many as trials wait for, and one;
  between stages none waits, and a new process takes seconds.
* ``fill_rungs``, ``rename_in_rungs``, ``put_in_bracket``, ``rungs_in_brackets``: Tune's ASHA saves its rungs with
  everything else of a run, or not at all, and draws a trial's bracket anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

import psutil
from ray import ActorID
from ray._private import ray_constants, utils, worker
from ray._private.state import state
from ray._raylet import PlacementGroupID
from ray.air.execution._internal import RayActorManager
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.exceptions import RayActorError
from ray.tune.execution import tune_controller
from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.utils.object_cache import _ObjectCache
from ray.util.placement_group import PlacementGroup

_E = TypeVar("_E", bound=Exception)
_NO_ACTOR = ActorID.nil().binary()


@contextmanager
def quiet_signals() -> Iterator[None]:
    """Within it, Ray takes no signal for itself: neither SIGTERM nor those of crashes, which faulthandler has."""
    with (
        mock.patch.object(utils, "set_sigterm_handler"),
        mock.patch.object(ray_constants, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", True),
    ):
        yield


def node_socket() -> str | None:
    """The socket of the raylet that this process is connected to; None where it is connected to none."""
    node = worker._global_node
    return str(node.raylet_socket_name) if node is not None else None


def end_at_once() -> None:
    """Have ``ray.shutdown`` kill what this process has started of Ray without a SIGTERM first, to which it is deaf.

    Ray would wait a second for each of its processes. Its agents end by SIGTERM when their node is gone: those
    that the node process leaves behind are killed here.
    """
    node = worker._global_node
    if node is None:
        return
    kill = node.kill_all_processes

    def kill_all(check_alive: bool, allow_graceful: bool, wait: bool = False) -> None:
        below = [each for kinds in node.all_processes.values() for each in kinds]
        agents = [agent for each in below for agent in _processes_below(each.process.pid)]
        kill(check_alive=check_alive, wait=wait)
        for agent in agents:
            with suppress(psutil.NoSuchProcess):
                agent.kill()

    node.kill_all_processes = kill_all


def _processes_below(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@dataclass(frozen=True)
class Group:
    """A placement group, and whether the process that made it is dead."""

    group: PlacementGroup
    maker_dead: bool


def groups_of(job: str) -> list[Group]:
    """The placement groups that actors of a job have made and nobody has removed."""
    found = []
    for content in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(content)
        made_here = group.creator_job_id.hex() == job and group.creator_actor_id != _NO_ACTOR
        if made_here and group.state != PlacementGroupTableData.REMOVED:
            handle = PlacementGroup(PlacementGroupID(group.placement_group_id))
            found.append(Group(handle, bool(group.creator_actor_dead)))
    return found


def take_for_death(kind: type[_E], reason: Callable[[_E], str]) -> None:
    """Have every run of Tune from now on take errors of a kind for the death of a trial's process, with its reason."""

    def death(error: Exception) -> Exception:
        return RayActorError(error_msg=reason(error)) if isinstance(error, kind) else error

    class ActorManager(RayActorManager):
        def _actor_task_failed(self, tracked_actor_task: Any, exception: Exception) -> None:
            super()._actor_task_failed(tracked_actor_task, death(exception))

        def _actor_start_failed(self, tracked_actor: Any, exception: Exception) -> None:
            super()._actor_start_failed(tracked_actor, death(exception))

    tune_controller.RayActorManager = ActorManager  # type: ignore[attr-defined]


class _ProcessCache(_ObjectCache):
    """Keeps all there are until the search is over: never more than run at once, and all of the same resources."""

    def cache_object(self, key: Any, obj: Any) -> bool:
        self._cached_objects[key].append(obj)
        self._num_cached_objects += 1
        return True

    def flush_cached_objects(self, force_all: bool = False) -> Generator[Any, None, None]:
        if force_all:
            yield from super().flush_cached_objects(force_all=True)


def keep_processes() -> None:
    """Have every run of Tune from now on keep the processes of its trials until it is over."""
    tune_controller._ObjectCache = _ProcessCache  # type: ignore[attr-defined]


def rungs_in_brackets(scheduler: AsyncHyperBandScheduler) -> list[int]:
    """How many rungs each bracket of an ASHA scheduler has."""
    return [len(bracket._rungs) for bracket in scheduler._brackets]


def put_in_bracket(scheduler: AsyncHyperBandScheduler, trial_id: str, bracket: int) -> None:
    """Have an ASHA scheduler judge a trial in this bracket."""
    scheduler._trial_info[trial_id] = scheduler._brackets[bracket]


def fill_rungs(scheduler: AsyncHyperBandScheduler, bracket: int, name: str, values: dict[int, float]) -> None:
    """Take what a trial has reported, by epoch, into the rungs of a bracket under its name."""
    stand_in = SimpleNamespace(trial_id=name)
    for epoch in sorted(values):
        scheduler._brackets[bracket].on_result(stand_in, epoch, scheduler._metric_op * values[epoch])  # type: ignore


def rename_in_rungs(scheduler: AsyncHyperBandScheduler, name: str, trial_id: str) -> None:
    """Put what an ASHA scheduler's rungs have under a name under the id that Tune has given the trial."""
    for _, recorded in (rung for bracket in scheduler._brackets for rung in bracket._rungs):
        if name in recorded:
            recorded[trial_id] = recorded.pop(name)
