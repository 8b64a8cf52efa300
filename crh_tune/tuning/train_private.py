"""What is used of Ray Train's private interfaces: apart from the rest of Ray's, as only worker groups import Train."""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchTrainer

_NOT_NEEDED = ("DatasetsCallback", "PlacementGroupCleanerCallback")


class GroupTrainer(TorchTrainer):
    """Ray Train's trainer without two helpers that have a process for each group.

    One serves Ray's datasets, of which there are none here. The other removes the placement group when the controller
    dies, but gives up for good, and never ends, when the cluster once is slow to answer it: ``cluster.free_groups`` is
    instead.
    """

    def _create_default_callbacks(self) -> list[Any]:
        all_of_them = super()._create_default_callbacks()  # type: ignore[misc]
        return [each for each in all_of_them if type(each).__name__ not in _NOT_NEEDED]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Signals stay with the handlers they have, which end the command in order."""
