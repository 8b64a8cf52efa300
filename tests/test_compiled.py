"""Compiled loops: when numba is loaded, what happens where their results cannot be kept, and threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crh_tune.compiled import in_parts, usable_threads

ROOM = Path(__file__).parents[1] / "crh_tune"


def run(program: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "PYTHONPATH": str(folder or ROOM.parent), **environment}
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=own, cwd=folder or ROOM.parent
    )


def test_importing_the_ranking_loads_neither_numba_nor_torch():
    names = ("average_precision", "asymmetric", "curves", "baselines", "index")
    program = "".join(f"import crh_tune.retrieval.{name}\n" for name in names)
    loaded = run(program + "import sys; print(*sys.modules)").stdout.split()
    assert not {"numba", "torch", "ray"} & set(loaded)
    loaded = run("import crh_tune.retrieval.kernels, sys; print(*sys.modules)").stdout.split()
    assert "torch" not in loaded


@pytest.mark.skipif(os.name != "posix", reason="a file in the place of the cache folders")
def test_where_no_folder_can_be_written_kernels_work_and_a_line_says_what_it_costs(tmp_path):
    """Read-only folders, to root too: files stand where the cache folders would be."""
    source = tmp_path / "halves.py"
    source.write_text(
        "from crh_tune.compiled import kernel\n\n\n@kernel\ndef half(x):\n    return x / 2\n\n\nprint(half(3))\n"
    )
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    closed = {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home"), "NUMBA_CACHE_DIR": ""}
    path = f"{tmp_path}{os.pathsep}{ROOM.parent}"
    done = run("import halves", **closed, PYTHONPATH=path)
    assert done.stdout == "1.5\n"
    assert "compiled kernels are not kept, which costs each process seconds" in done.stderr
    assert "NUMBA_CACHE_DIR" in done.stderr
    done = run("import halves", **{**closed, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}, PYTHONPATH=path)
    assert (done.stdout, done.stderr) == ("1.5\n", "")
    assert list((tmp_path / "kept").rglob("*.nbc"))


@pytest.mark.parametrize(("size", "threads"), [(0, 2), (1, 4), (7, 1), (100, 3), (5, None)])
def test_parts_make_up_the_whole(size, threads):
    seen: list[int] = []
    in_parts(lambda start, stop: seen.extend(range(start, stop)), size, threads)
    assert sorted(seen) == list(range(size))


def test_an_error_in_a_part_is_raised():
    def work(start: int, _stop: int) -> None:
        if start:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        in_parts(work, 100, 2)


def test_threads_are_the_usable_cores_and_no_more_than_omp_num_threads(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = usable_threads()
    assert cores >= 1
    for value, expected in (("1", 1), ("1,2", 1), ("9999", cores), ("", cores), ("none", cores), ("0", cores)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert usable_threads() == expected


@pytest.mark.long
def test_after_precompiling_a_first_ranking_compiles_nothing(tmp_path):
    kept = str(tmp_path / "kept")
    run("from crh_tune.precompile import main; main()", NUMBA_CACHE_DIR=kept)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.nb?")}
    assert files
    program = """
import numpy as np
from crh_tune.retrieval.average_precision import LabelledCodes, RankingProtocol, average_precisions
from crh_tune.retrieval.packing import pack_codes
codes = pack_codes(np.random.default_rng(0).random((300, 64)) < 0.5)
for labels in (np.arange(300) % 7, np.eye(90, dtype=np.uint8)[np.arange(300) % 90]):
    side = LabelledCodes(codes, labels, 64)
    average_precisions(side, side, RankingProtocol(20))
"""
    run(program, NUMBA_CACHE_DIR=kept)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").rglob("*.nb?")} == files


def test_an_interruption_waits_for_the_parts_that_have_begun_alone(monkeypatch):
    begun, over, end = [], threading.Event(), ThreadPoolExecutor.shutdown

    def work(start: int, stop: int) -> None:
        begun.append(start)
        if start == 0:
            raise KeyboardInterrupt
        assert over.wait(60)

    def shutdown(pool, *given, **more) -> None:
        if more.get("cancel_futures"):
            end(pool, *given, **more)
        over.set()
        end(pool)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    with pytest.raises(KeyboardInterrupt):
        in_parts(work, 100, threads=2, per_thread=8)
    assert len(begun) <= 3  # of 16: the first, and one in each thread
