"""A service needs NumPy, onnxruntime and Pillow alone: everything else cannot be imported here."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]

BLOCKED = (
    "torch torchvision ray mlflow optuna scipy pandas sklearn pydantic yaml numba matplotlib timm onnx onnxscript tqdm "
    "joblib filelock typer rich fastapi faiss"
)
PROGRAM = """
import shutil
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}.split():
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocked())
from crh_tune.serving import load_encoder, load_index
from crh_tune.serving.__main__ import main

export, photos, folder = sys.argv[1:]
encoder, index = load_encoder(export), load_index(export)
rows, distances = index.search(encoder.encode_files([f"{{photos}}/train/a/0.jpg"]), 3)
print(index.items[rows[0, 0]], distances[0, 0])
assert main(["encode", export, photos, "-o", f"{{folder}}/codes.npz"]) == 0
assert main(["index", export, f"{{folder}}/codes.npz", "-o", f"{{folder}}/index"]) == 0
assert main(["query", export, f"{{folder}}/index", f"{{photos}}/test/a/0.jpg", "--sheet", f"{{folder}}/q.png"]) == 0
assert main(["dedupe", export, photos]) == 0
shutil.copytree(export, f"{{folder}}/export")
shutil.copytree(f"{{photos}}/test/a", f"{{folder}}/new/ibis")
assert main(["enroll", f"{{folder}}/export", f"{{folder}}/new", "-o", f"{{folder}}/new.npz"]) == 0
assert main(["index", f"{{folder}}/export", f"{{folder}}/new.npz", "-o", f"{{folder}}/index2"]) == 0
"""


def test_photos_are_encoded_and_searched_where_nothing_else_is_installed(export, photos, tmp_path):
    program = textwrap.dedent(PROGRAM.format(blocked=BLOCKED))
    done = subprocess.run(
        [sys.executable, "-c", program, export, photos, tmp_path],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    item, distance = done.stdout.splitlines()[0].split()
    assert item.startswith("train/a/")
    assert distance == "0"
    assert (tmp_path / "q.png").stat().st_size > 1000


def test_what_a_service_needs_is_what_is_tested():
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    needed = [line for line in (ROOT / "requirements-serving.txt").read_text().splitlines() if line[:1] != "#"]
    assert [line.split("==")[0] for line in needed] == ["numpy", "onnxruntime", "pillow"]
    assert set(needed) <= set(pins)
