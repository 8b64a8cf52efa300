"""Study tables: their numbers by hand, their cells as printed, and what is said about the order."""

from __future__ import annotations

import math
import re
import statistics

import pandas as pd
import pytest

from crh_tune.reporting.tables import order_notes, printed_table, study_table, table_caption, to_html, to_markdown
from tests.reporting.conftest import a_run

ROWS = ["CRH", "CRH-M", "CRH-U"]


@pytest.fixture
def table(ablation):
    return study_table("table2", ablation, ROWS, ["stanford_cars"], [16, 32], "map")


def cell(table, row, bits=16):
    return table[(table["row"] == row) & (table["bits"] == bits)].iloc[0]


def test_cells_are_mean_sample_std_and_count_beside_the_published_number(table):
    assert list(table["row"]) == ["CRH", "CRH", "CRH-M", "CRH-M", "CRH-U", "CRH-U"]
    crh = cell(table, "CRH")
    assert (crh["mean"], crh["std"], crh["n"]) == (pytest.approx(82), pytest.approx(statistics.stdev([81, 82, 83])), 3)
    assert crh["published_mean"] == 87.31
    assert cell(table, "CRH-M")["std"] == pytest.approx(math.sqrt(2))
    single = cell(table, "CRH-U")
    assert single["n"] == 1  # the run without a value does not count
    assert math.isnan(single["std"])
    missing = cell(table, "CRH-U", 32)
    assert missing["n"] == 0
    assert math.isnan(missing["mean"])
    assert missing["published_mean"] == 87.22


def test_markdown_is_the_table_with_best_bold_and_missing_empty(table):
    assert to_markdown(table).splitlines() == [
        "| Method | Stanford Cars 16 bits | Stanford Cars 32 bits |",
        "| --- | ---: | ---: |",
        "| CRH | **82.00 ± 1.00** (pub. 87.31) | **90.00** (pub. 89.20) |",
        "| CRH-M | 79.00 ± 1.41 (pub. 87.31) |  |",
        "| CRH-U | 75.00 (pub. 85.12) |  |",
    ]


def test_a_length_that_a_dataset_has_nothing_of_is_no_column_of_it():
    measured = [("digit_pairs", 16, 0.5), ("digit_pairs", 32, 0.6), ("folder", 64, 0.7)]
    runs = pd.DataFrame([a_run("CRH", value, dataset=name, bits=bits) for name, bits, value in measured])
    table = study_table("table2", runs, ["CRH"], ["digit_pairs", "folder", "nabirds"], [16, 32, 64], "map")
    columns = list(zip(table["dataset"], table["bits"], strict=True))
    published = [("nabirds", 16), ("nabirds", 32), ("nabirds", 64)]
    assert columns == [("digit_pairs", 16), ("digit_pairs", 32), ("folder", 64), *published]
    assert re.findall(r'colspan="(\d)"', to_html(table)) == ["2", "1", "3"]
    assert not study_table("none", runs, ["CRH"], ["digits"], [8], "map").empty  # nothing measured, said as it is


def test_bold_is_the_largest_mean_of_each_column_and_all_that_print_the_same():
    values = {"CSQ": (0.5, 0.9), "MDS": (0.7, 0.2), "SHC": (0.70000001, 0.1)}
    runs = pd.DataFrame(
        [a_run(row, v, bits=b) for row, pair in values.items() for b, v in zip((16, 32), pair, strict=True)]
    )
    table = study_table("none", runs, list(values), ["stanford_cars"], [16, 32], "map")
    assert re.findall(r"<b>(.*?)</b>", to_html(table)) == ["90.00", "70.00", "70.00"]
    assert [line.count("**") // 2 for line in to_markdown(table).splitlines()[2:]] == [1, 1, 1]


def test_html_spans_datasets_and_leaves_missing_cells_empty(ablation):
    table = study_table("table2", ablation, ROWS, ["stanford_cars", "digits"], [16, 32], "map")
    page = to_html(table)
    assert '<th colspan="2">Stanford Cars</th><th colspan="2">digits</th>' in page
    assert page.count("<td></td>") == 12 - 4
    assert page.count("<td>") == 12
    assert "nan" not in page.lower()
    assert "<td><b>82.00 ± 1.00</b> <small>(pub. 87.31)</small></td>" in page


def test_pcc_has_three_decimals_and_random_draws_bring_their_own_std():
    runs = pd.DataFrame([a_run("Learned", math.nan, pcc=0.25), a_run("Random", math.nan, pcc=-0.0004, pcc_std=0.0071)])
    table = study_table("table5", runs, ["Learned", "Random"], ["stanford_cars"], [16], "pcc")
    lines = to_markdown(table).splitlines()
    assert lines[2] == "| Learned | **0.250** (pub. 0.242) |"
    assert lines[3] == "| Random | -0.000 ± 0.007 (pub. 0.000 ± 0.007) |"
    assert order_notes(table) == ["Stanford Cars, 16 bits: the order shows in the measured means (Learned > Random)."]


def test_published_map_is_not_put_beside_pcc(ablation):
    table = study_table("table2", ablation.assign(pcc=0.1), ROWS, ["stanford_cars"], [16], "pcc")
    assert table["published_mean"].isna().all()


@pytest.mark.parametrize("tool", [to_html, to_markdown])
def test_hostile_names_are_text(tool):
    row, dataset = "<script>alert(1)</script>|*x*\n`", 'a"<img src=x>'
    runs = pd.DataFrame([a_run(row, 0.5, dataset=dataset)])
    text = tool(study_table("none", runs, [row], [dataset], [16], "map"))
    assert "<script" not in text
    assert "<img" not in text
    if tool is to_markdown:
        assert len(text.splitlines()) == 3
        assert r"&lt;script>alert(1)&lt;/script>\|\*x\* \`" in text


def test_order_notes_say_what_shows_and_what_does_not(table, ablation):
    first, second = order_notes(table)
    # CRH and CRH-M are published as equal at 16 bits
    assert first == (
        "Stanford Cars, 16 bits: the order of all 2 pairs of rows shows in the measured means "
        "(CRH > CRH-U, CRH-M > CRH-U)."
    )
    assert second == "Stanford Cars, 32 bits: no two measured rows have a published or expected order."
    swapped = ablation.assign(row=ablation["row"].replace({"CRH": "CRH-U", "CRH-U": "CRH"}))
    assert order_notes(study_table("table2", swapped, ROWS, ["stanford_cars"], [16], "map")) == [
        "Stanford Cars, 16 bits: 0 of 2 orders of two rows show in the measured means; not: "
        "CRH (75.00) > CRH-U (82.00), published 87.31 > 85.12; CRH-M (79.00) > CRH-U (82.00), published 87.31 > 85.12."
    ]


def test_unpublished_columns_are_held_against_the_papers_text(ablation):
    digits = study_table("table2", ablation.assign(dataset="digits"), ROWS, ["digits"], [16], "map")
    assert order_notes(digits) == [
        "digits, 16 bits: the order of all 3 pairs of rows shows in the measured means (CRH > CRH-M > CRH-U)."
    ]
    runs = pd.DataFrame([a_run("MDS", 0.6), a_run("MDS_U", 0.5), a_run("CSQ", 0.9)])
    table = study_table("none", runs, ["MDS", "MDS_U", "CSQ"], ["stanford_cars"], [16], "map")
    assert order_notes(table) == [
        "Stanford Cars, 16 bits: 0 of 1 orders of two rows show in the measured means; not: "
        "MDS_U (50.00) > MDS (60.00)."
    ]


def test_the_published_order_counts_even_where_the_text_claims_another():
    """At 64 bits on COCO the paper prints CRH-U above CRH-M."""
    runs = pd.DataFrame([a_run("CRH-M", 0.8, dataset="coco", bits=64), a_run("CRH-U", 0.9, dataset="coco", bits=64)])
    notes = order_notes(study_table("table2", runs, ROWS, ["coco"], [64], "map"))
    assert notes == ["MS COCO, 64 bits: the order shows in the measured means (CRH-U > CRH-M)."]


def test_caption_says_unit_and_number_of_runs(table, ablation):
    assert table_caption(table).startswith("mAP in %: mean ± sample standard deviation over 1 to 3 runs a cell; (pub.)")
    none = study_table("table2", ablation.iloc[:0], ROWS, ["coco"], [16], "map")
    assert table_caption(none) == "mAP in %; nothing measured yet."
    assert "**" not in to_markdown(none)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: (runs.drop(columns="map"), ROWS), "lacks"),
        (lambda runs: (runs.assign(map=81.0), ROWS), "outside"),
        (lambda runs: (runs, []), "rows"),
        (lambda runs: (runs, ["CRH", "CRH"]), "rows"),
    ],
)
def test_what_is_wrong_with_the_input_is_said(ablation, change, message):
    runs, rows = change(ablation)
    with pytest.raises(ValueError, match=message):
        study_table("table2", runs, rows, ["stanford_cars"], [16], "map")


def test_the_table_for_files_has_the_cells_of_the_markdown_without_its_marks(table):
    printed = printed_table(table)
    lines = to_markdown(table).splitlines()
    assert [f"| {' | '.join(printed.columns)} |"] == lines[:1]
    body = [f"| {' | '.join(row)} |" for row in printed.itertuples(index=False)]
    assert body == [line.replace("**", "") for line in lines[2:]]
