"""Ray Train's worker groups as a search wants them: with fewer processes, and nothing left of one that was stopped.

A placement group outlives the controller that made it for as long as the search's job runs. A trial that ASHA stops
loses its process, with it the controller, and would keep its CPUs for ever.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import state
from ray._raylet import PlacementGroupID
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.train.torch import TorchTrainer
from ray.util.placement_group import PlacementGroup, remove_placement_group

_NO_ACTOR = ray.ActorID.nil().binary()
_NOT_NEEDED = ("DatasetsCallback", "PlacementGroupCleanerCallback")


class GroupTrainer(TorchTrainer):
    """Ray Train's trainer without two helpers that have a process for each group.

    One serves Ray's datasets, of which there are none here. The other removes the placement group when the controller
    dies, but gives up for good, and never ends, when the cluster once is slow to answer it: ``free_groups`` is instead.
    """

    def _create_default_callbacks(self) -> list[Any]:
        all_of_them = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in all_of_them if type(each).__name__ not in _NOT_NEEDED]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Signals stay with the handlers they have, which end the command in order."""


def free_groups() -> int:
    """Remove the placement groups that dead controllers of this job have left; how many living ones have."""
    job, alive = ray.get_runtime_context().get_job_id(), 0
    for content in state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(content)
        ours = group.creator_job_id.hex() == job and group.creator_actor_id != _NO_ACTOR
        if not ours or group.state == PlacementGroupTableData.REMOVED:
            continue
        if group.creator_actor_dead:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
        else:
            alive += 1
    return alive
