"""What worker groups of Ray Train leave behind.

A placement group outlives the controller that made it for as long as the search's job runs. A trial that ASHA stops
loses its process, with it the controller, and would keep its CPUs for ever.
"""

from __future__ import annotations

import ray
from ray.util.placement_group import remove_placement_group

from crh_tune.tuning.ray_private import groups_of


def free_groups() -> int:
    """Remove the placement groups that dead controllers of this job have left; how many living ones have."""
    groups = groups_of(ray.get_runtime_context().get_job_id())
    for each in groups:
        if each.maker_dead:
            remove_placement_group(each.group)
    return sum(not each.maker_dead for each in groups)
