"""How far queries are from every stored code: what is far, by counting, and where it is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crh_tune.errors import DataError
from crh_tune.serving import load_reach
from crh_tune.serving.reach import Reach
from tests.serving.test_commands import run


@given(nearest=st.lists(st.integers(0, 20), min_size=1, max_size=60))
def test_nine_of_ten_known_queries_are_within_the_threshold_and_fewer_within_less(nearest):
    reach = Reach.of(np.array(nearest))
    within = sum(each <= reach.threshold for each in nearest)
    assert 10 * within >= 9 * len(nearest)
    assert reach.threshold == 0 or 10 * sum(each < reach.threshold for each in nearest) < 9 * len(nearest)
    assert reach.known_share == pytest.approx(1 - within / len(nearest))
    assert reach.share(nearest) == pytest.approx(reach.known_share)


def test_a_service_says_how_many_queries_are_far(export, photos, tmp_path, capsys):
    folder = Path(shutil.copytree(export, tmp_path / "export"))
    query = [photos / "test" / "a" / "0.jpg", photos / "train" / "a" / "0.jpg"]
    (folder / "reach.json").write_text(json.dumps({"counts": [19, 0, 1]}))
    assert run("query", folder, folder, *query, "--sheet", tmp_path / "q.png") == 0
    lines = capsys.readouterr().out.splitlines()
    nearest = [int(lines[start].split()[0]) for start in (2, 14)]
    assert f"{sum(each > 0 for each in nearest)} of 2 queries farther than 0 bits from every stored code" in lines[-2]
    assert "of queries of known classes 5% were" in lines[-2]
    (folder / "reach.json").unlink()
    assert load_reach(folder) is None
    assert run("query", folder, folder, *query, "--sheet", tmp_path / "q.png") == 0
    assert "farther" not in capsys.readouterr().out


def test_a_single_query_has_a_note_where_it_is_far():
    reach = Reach((9, 0, 0, 0, 1))
    assert [reach.note(each) for each in (0, 1)] == [
        "",
        "no stored code within 0 bits: it may show what the encoder was not trained on",
    ]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"counts": []}', '{"counts": [0]}', '{"counts": [-1, 2]}'])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "reach.json").write_text(content)
    with pytest.raises(DataError, match=r"reach\.json: not what crh-tune export writes: "):
        load_reach(tmp_path)
