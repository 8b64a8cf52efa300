"""A cluster that was killed leaves its address on the machine; a search starts all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import tempfile
from pathlib import Path
tempfile.tempdir = {folder!r}
left = Path({folder!r}) / "ray" / "ray_current_cluster"
left.parent.mkdir(parents=True)
left.write_text("127.0.0.1:1")
import ray
from crh_tune.tuning.cluster import connect_ray
asked = []
ray.init = lambda **options: asked.append(options["address"])
connect_ray()
left.unlink()
connect_ray()
print(asked)
"""


def test_the_address_of_a_dead_cluster_is_not_waited_for(tmp_path: Path):
    code = CODE.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=180)
    assert done.stdout.splitlines()[-1] == "['local', None]"
