"""Settings files that people did not mean, and files that are no settings: one line each, never a traceback."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crh_tune.settings.base import SettingsError, read_yaml
from crh_tune.settings.search import read_search
from crh_tune.settings.study import read_study
from crh_tune.settings.trial import read_trial
from crh_tune.spaces import is_study, shipped

SPACES = {path.name: yaml.safe_load(path.read_text()) for path in sorted(shipped().rglob("*.yaml"))}
MANY = settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["crh", "full", "resnet34", "../../etc/passwd", "💥" * 100, "a" * 300, "1e999", "nan", "~"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)


def one_line(path: Path) -> str | None:
    """What is said of a file; None where it is fine. Anything but a SettingsError of one line comes out as it is."""
    try:
        read_study(path) if is_study(path) else read_search(path)
    except SettingsError as error:
        said = str(error)
    else:
        return None
    assert "\n" not in said
    assert said.startswith(str(path))
    return said


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value in nested settings."""
    found = [path] if path else []
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


@MANY
@given(data=st.data())
def test_a_search_space_with_any_value_in_any_place_is_taken_or_refused_in_one_line(tmp_path, data):
    content = copy.deepcopy(SPACES[data.draw(st.sampled_from(sorted(SPACES)))])
    for _ in range(data.draw(st.integers(1, 3))):
        *above, last = data.draw(st.sampled_from(places(content)))
        inner = content
        for key in above:
            inner = inner[key]
        what = data.draw(st.sampled_from(["another value", "removed", "another key"]))
        if what == "another value" or isinstance(inner, list):
            inner[last] = data.draw(VALUES)
        elif what == "removed":
            del inner[last]
        else:
            inner[data.draw(st.text(max_size=8))] = data.draw(VALUES)
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    one_line(path)


@MANY
@given(content=st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused_in_one_line(tmp_path, content):
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    assert one_line(path) is not None
    with pytest.raises(SettingsError):
        read_trial(path)


@MANY
@given(name=st.sampled_from(sorted(SPACES)), cut=st.integers(0, 2000), junk=st.text(max_size=5))
def test_a_file_that_is_cut_off_or_spoiled_is_taken_or_refused_in_one_line(tmp_path, name, cut, junk):
    text = next(shipped().rglob(name)).read_text()
    path = tmp_path / "space.yaml"
    path.write_text(text[:cut] + junk, encoding="utf-8")
    one_line(path)


def test_a_key_given_twice_is_refused_with_its_place(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text("name: a\ntrial: {bits: 16, bits: 32}\n")
    with pytest.raises(SettingsError, match=r"the key 'bits' is given twice") as caught:
        read_yaml(path)
    assert "line 2" in str(caught.value)


def test_yaml_executes_nothing(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/made']\n")
    with pytest.raises(SettingsError, match="not readable as YAML"):
        read_yaml(path)
    assert not (tmp_path / "made").exists()


def test_aliases_that_grow_without_end_are_no_harm(tmp_path):
    path = tmp_path / "space.yaml"
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    path.write_text("\n".join(rows))
    assert one_line(path) is not None
