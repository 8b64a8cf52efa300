"""What is handed over, loaded into the real thing: NumPy, faiss, PostgreSQL, Qdrant's local mode, Milvus Lite."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from crh_tune.errors import DataError
from crh_tune.retrieval.index import Index
from crh_tune.retrieval.packing import pack_codes
from crh_tune.serving.codes import Codes, write_codes
from crh_tune.serving.handover import STORES, graph, hand_over
from crh_tune.serving.handover.stores import WITH_GRAPH
from crh_tune.serving.index import About

LABELS = ["plain", "a\ttab", "a\nline", "back\\slash", "\\N", "quo\"te, 'comma'", "ünïcode ✓", ""]


def some_index(bits: int, count: int = 60) -> tuple[Index, About, np.ndarray]:
    """Codes of which many are the same, labels that are hard to write, and the codes as N x K booleans."""
    generator = np.random.default_rng(bits)
    ones = generator.random((count // 3, bits))[generator.integers(0, count // 3, count)] < 0.5
    labels = np.array([LABELS[i % len(LABELS)] for i in range(count)])
    items = np.array([f"folder/{LABELS[i % len(LABELS)]}{i}.jpg" for i in range(count)])
    return Index(pack_codes(ones), labels, items), About("name", "/photos"), ones


def queries_file(folder: Path, bits: int) -> tuple[Path, np.ndarray]:
    ones = np.random.default_rng(1).random((3, bits)) < 0.5
    nothing = np.array(["", "", ""])
    path = folder / "queries.npz"
    write_codes(Codes(pack_codes(ones), nothing, nothing, "name", bits), path)
    return path, ones


def check_answers(text: str, queries: np.ndarray, ones: np.ndarray, index: Index, ordered: bool) -> None:
    """Ten lines a query: the right distances, ids that have them, and their own labels; ties by id where asked."""
    rows = list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))  # labels may hold line breaks
    expected = (queries[:, None] != ones[None]).sum(axis=2)
    numbers = [row for row in rows if len(row) >= 3 and all(part.lstrip("-").isdigit() for part in row[:3])]
    for query, distances in enumerate(expected):
        found = [(int(row[1]), int(row[2])) for row in numbers if int(row[0]) == query]
        order = np.argsort(distances, kind="stable")[:10]
        assert [distance for _, distance in found] == distances[order].tolist()
        assert all(distances[near] == distance for near, distance in found)
        assert len({near for near, _ in found}) == 10
        if ordered:
            assert [near for near, _ in found] == order.tolist()


def milvus_lite() -> bool:
    try:
        return importlib.metadata.version("milvus-lite").startswith("2.")
    except importlib.metadata.PackageNotFoundError:
        return False


def script(folder: Path, name: str, *arguments: object) -> str:
    command = [sys.executable, folder / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("store", STORES)
def test_ids_labels_and_items_are_kept_as_they_are(tmp_path, store):
    index, about, _ = some_index(20)
    hand_over(index, about, 20, store, tmp_path)
    with (tmp_path / "items.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["id"]) for row in rows] == list(range(60))
    assert [row["label"] for row in rows] == index.labels.tolist()
    assert [row["item"] for row in rows] == index.items.tolist()
    readme = (tmp_path / "README.md").read_text()
    assert "60 codes of 20 bits" in readme
    assert "$" not in readme


@pytest.mark.parametrize("bits", [8, 20, 64, 100])
def test_numpy_answers_as_brute_force(tmp_path, bits):
    index, about, ones = some_index(bits)
    hand_over(index, about, bits, "numpy", tmp_path)
    path, queries = queries_file(tmp_path, bits)
    check_answers(script(tmp_path, "query.py", path), queries, ones, index, ordered=True)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss-cpu is not installed")
@pytest.mark.parametrize("bits", [20, 64])
def test_faiss_answers_as_brute_force(tmp_path, bits):
    index, about, ones = some_index(bits)
    hand_over(index, about, bits, "faiss", tmp_path)
    path, queries = queries_file(tmp_path, bits)
    check_answers(script(tmp_path, "query.py", path), queries, ones, index, ordered=False)


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss-cpu is not installed")
def test_a_graph_is_measured_against_the_exact_answers_before_it_is_handed_over(tmp_path, monkeypatch):
    import faiss  # noqa: PLC0415

    monkeypatch.setattr(graph, "SEARCH", 12)
    monkeypatch.setattr(graph, "LINKS", 2)  # a graph that misses much
    index, about, ones = some_index(20, 3000)
    lines = {store: hand_over(index, about, 20, store, tmp_path / store, True) for store in WITH_GRAPH}
    found = faiss.read_index_binary(str(tmp_path / "faiss" / "index.faiss"))
    assert isinstance(found, faiss.IndexBinaryHNSW)
    assert (found.hnsw.efSearch, found.hnsw.efConstruction) == (12, graph.BUILD)
    rows = np.sort(np.random.default_rng(0).permutation(3000)[:1000])
    tenth = np.sort((ones[rows][:, None] != ones[None]).sum(axis=2), axis=1)[:, 9]
    codes = np.packbits(np.pad(ones, ((0, 0), (0, 4))), axis=1, bitorder="little")
    distances, ids = found.search(codes[rows], 10)
    recall = ((ids >= 0) & (distances <= tenth[:, None])).mean(axis=1)
    assert 0.1 < recall.mean() < 0.99
    said = f"1,000 of its own codes: {recall.mean():.4f} on average, {recall.min():.2f} for the worst query"
    for store, measured in lines.items():
        readme = (tmp_path / store / "README.md").read_text()
        assert said in measured[0]
        assert "".join(f"- {line}\n" for line in measured) in readme
        assert "**It can answer wrongly where the exact search does not.**" in readme
        assert ("An estimate" in readme) == (store != "faiss")
        assert "$" not in readme
    gaps = np.where(ids < 0, 24, distances).max(axis=1) - tenth
    assert f"an item at distance {tenth[gaps.argmax()] + gaps.max()} among the ten" in measured[1]
    assert "USING hnsw (code bit_hamming_ops) WITH (m = 2" in (tmp_path / "pgvector" / "graph_load.sql").read_text()
    assert "SET hnsw.ef_search = 12;" in (tmp_path / "pgvector" / "graph_query.sql").read_text()
    assert "HnswConfigDiff(m=2, ef_construct=200)" in (tmp_path / "qdrant" / "load.py").read_text()
    assert "SearchParams(hnsw_ef=12)" in (tmp_path / "qdrant" / "query.py").read_text()


def test_no_graph_is_made_unless_it_is_asked_for_and_none_for_other_stores(tmp_path):
    index, about, _ = some_index(20)
    for store in STORES:
        if store != "faiss" or importlib.util.find_spec("faiss"):
            assert hand_over(index, about, 20, store, tmp_path / store) == []
    assert not list(tmp_path.glob("*/graph*"))
    assert "HnswConfigDiff(m=0)" in (tmp_path / "qdrant" / "load.py").read_text()
    with pytest.raises(DataError, match="--graph: none is made for numpy: for faiss, pgvector, qdrant"):
        hand_over(index, about, 20, "numpy", tmp_path, True)


@pytest.mark.skipif(importlib.util.find_spec("qdrant_client") is None, reason="qdrant-client is not installed")
def test_qdrants_local_mode_answers_as_brute_force(tmp_path):
    index, about, ones = some_index(20)
    hand_over(index, about, 20, "qdrant", tmp_path)
    path, queries = queries_file(tmp_path, 20)
    assert "60 codes loaded" in script(tmp_path, "load.py", tmp_path / "qdrant")
    check_answers(script(tmp_path, "query.py", tmp_path / "qdrant", path), queries, ones, index, ordered=False)


@pytest.mark.skipif(not milvus_lite(), reason="Milvus Lite 2 is not installed (3 takes no binary vectors)")
def test_milvus_lite_answers_as_brute_force(tmp_path):
    index, about, ones = some_index(20)
    hand_over(index, about, 20, "milvus", tmp_path)
    path, queries = queries_file(tmp_path, 20)
    assert "60 codes loaded" in script(tmp_path, "load.py", tmp_path / "milvus.db")
    check_answers(script(tmp_path, "query.py", tmp_path / "milvus.db", path), queries, ones, index, ordered=False)


def postgres_tool(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(found[-1]) if found else shutil.which(name)


@pytest.fixture(scope="module")
def postgres() -> Iterator[dict[str, str]]:
    """A PostgreSQL server of its own in a temporary folder, on a unix socket only: the environment for psql."""
    tools = {name: postgres_tool(name) for name in ("initdb", "pg_ctl", "psql")}
    root = os.geteuid() == 0
    if None in tools.values():
        pytest.skip("PostgreSQL is not installed (Debian's package postgresql)")
    if root and "postgres" not in {user.pw_name for user in pwd.getpwall()}:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="crh-pg-", dir="/tmp"))  # a short path: a socket's name has 107 letters
    own = {"user": "postgres", "group": "postgres", "extra_groups": []} if root else {}
    if root:
        shutil.chown(folder, "postgres", "postgres")

    def run(name: str, *arguments: str) -> None:
        command = [str(tools[name]), "-D", str(folder / "data"), *arguments]
        subprocess.run(command, check=True, timeout=120, cwd=folder, stdout=subprocess.DEVNULL, **own)  # type: ignore[call-overload]

    try:
        run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--no-sync", "--locale=C")
        options = f"-k {folder} -c listen_addresses='' -c fsync=off"
        run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield {**os.environ, "PGHOST": str(folder), "PGUSER": "postgres", "PGDATABASE": "postgres"}
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("bits", [20, 64])
def test_postgresql_loads_and_ranks_the_codes(tmp_path, postgres, bits):
    index, about, ones = some_index(bits)
    hand_over(index, about, bits, "pgvector", tmp_path)

    def psql(*arguments: str) -> str:
        command = [str(postgres_tool("psql")), "-X", "-v", "ON_ERROR_STOP=1", "-At", "-F", "\t", *arguments]
        done = subprocess.run(
            command, env=postgres, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    psql("-f", "load.sql")
    try:
        assert psql("-c", "SELECT count(*) FROM crh_items").strip() == "60"
        hexed = ", ".join(f"encode(convert_to({column}, 'UTF8'), 'hex')" for column in ("label", "item"))
        texts = psql("-c", f"SELECT {hexed} FROM crh_items ORDER BY id")
        stored = [[bytes.fromhex(part).decode() for part in line.split("\t")] for line in texts.splitlines()]
        assert stored == [list(pair) for pair in zip(index.labels.tolist(), index.items.tolist(), strict=True)]
        for row in (0, 7):
            text = psql("-v", f"id={row}", "-f", "query.sql", "-R", "\x1e")
            lines = [record.split("\t")[:2] for record in text.strip("\n").split("\x1e")]
            distances = (ones[row] != ones).sum(axis=1)
            order = np.argsort(distances, kind="stable")[:10]
            assert [(int(near), int(far)) for near, far in lines] == [(int(i), int(distances[i])) for i in order]
        bit0 = psql("-c", "SELECT get_bit(code, 0) FROM crh_items ORDER BY id").split()
        assert [bit == "1" for bit in bit0] == ones[:, 0].tolist()
    finally:
        psql("-c", "DROP TABLE crh_items")


def test_an_unknown_store_is_one_line(export, tmp_path, capsys):
    from crh_tune.serving.__main__ import main  # noqa: PLC0415

    assert main(["handover", str(export), "--to", "oracle", "-o", str(tmp_path / "out")]) == 2
    assert "unknown store 'oracle': one of faiss, pgvector, milvus, qdrant, numpy" in capsys.readouterr().err
    assert main(["handover", str(export), "--to", "numpy", "-o", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "codes.npy").exists()
