"""A group's node is lost and another joins; a cluster begins with no worker, and grows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from crh_tune.settings.search import SearchSettings
from tests.tuning.test_groups import SPACE, train_undisturbed

PROJECT = Path(__file__).parents[2]
LOSE_A_NODE = """
import json, sys, threading, time
from dataclasses import asdict
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from crh_tune.settings.search import SearchSettings
from tests.tuning.test_groups import SPACE, run_group

storage, content = Path(sys.argv[1]), json.loads(sys.argv[2])
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
node = cluster.add_node(num_cpus=2)
ray.init(address=cluster.address, log_to_driver=False)
exchanged = []

def exchange():
    while not (storage / "runs" / "group" / "checkpoint_000004").exists():
        time.sleep(0.01)
    begun = time.time()
    cluster.remove_node(node)
    cluster.add_node(num_cpus=2)
    exchanged.append(begun)

thread = threading.Thread(target=exchange)
thread.start()
outcome = run_group(storage, SearchSettings.model_validate(SPACE), content)
thread.join()
(storage / "outcome.json").write_text(json.dumps({**asdict(outcome), "exchanged": len(exchanged)}))
"""


def test_a_group_whose_node_is_lost_goes_on_on_another_to_the_last_bit(in_group, tmp_path: Path):
    settings = SearchSettings.model_validate(SPACE).trial_settings({"margin": 0.2}, 0).resolve(10, False)
    content = settings.model_dump(mode="json")
    in_group(2, train_undisturbed, content, tmp_path / "undisturbed.json")
    command = [sys.executable, "-c", LOSE_A_NODE, str(tmp_path), json.dumps(content)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    outcome = json.loads((tmp_path / "outcome.json").read_text())
    expected = json.loads((tmp_path / "undisturbed.json").read_text())
    names = {name for name in expected if "/" in name and not name.startswith("seconds/")}
    assert outcome["exchanged"] == 1
    assert outcome["status"] == "complete"
    assert {name: outcome["metrics"][name] for name in names} == {name: expected[name] for name in names}
