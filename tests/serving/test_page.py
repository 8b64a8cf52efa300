"""The demo's page in real Chromium: a photo is dropped, its neighbours are seen, one is clicked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from crh_tune.serving import demo
from crh_tune.serving.answers import Answers, open_answers
from tests.browser import CHROMIUM, browser, served

FOUND = "[...document.querySelectorAll('#found li')].map(each => each.innerText.split('\\n').filter(line => line))"
SHOWN = "[...document.querySelectorAll('#found img')].every(each => each.complete && each.naturalWidth > 0)"
SAID = "document.getElementById('said').textContent"


@pytest.fixture
def answers(export) -> Answers:
    return open_answers(export)


@pytest.fixture
def address(answers) -> Iterator[str]:
    with served(demo.make_app(answers, answers.about.root)) as address:
        yield address


def lines(answers: Answers, rows: np.ndarray, distances: np.ndarray) -> list[list[str]]:
    items, label = answers.index.items, answers.about.label
    labels = [label(answers.index.labels[row]) for row in rows]
    return [
        [f"{far} bits, {name}", item] for far, name, item in zip(distances, labels, items[rows].tolist(), strict=True)
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_photo_is_dropped_ten_neighbours_are_seen_and_one_is_searched_on(address, answers, photos, tmp_path):
    query = photos / "test" / "a" / "0.jpg"
    pixels, index = answers.encoder.read(query)[None], answers.index
    rows, distances = index.search(answers.encoder.encode(pixels), 10)
    by_outputs, scores = index.search(answers.encoder.outputs(pixels), 10)
    third = index.search(index.codes_of(by_outputs[0, 2:3]), 10)

    async def visit() -> None:
        async with browser() as page:
            await page.open(address)
            await page.drop(query, "#drop")
            await page.until(f"{SAID}.startsWith('nearest to 0.jpg, by bits')")
            assert await page.value(FOUND) == lines(answers, rows[0], distances[0])
            await page.until(SHOWN)
            await page.picture(tmp_path / "page.png")

            await page.click("input[value=outputs]")
            await page.until(f"{SAID}.startsWith('nearest to 0.jpg, by outputs')")
            found = await page.value(FOUND)
            assert [each[1] for each in found] == index.items[by_outputs[0]].tolist()
            assert [each[0].split(", ")[0] for each in found] == [f"score {score:.2f}" for score in scores[0]]

            await page.click("#found li:nth-child(3) button")
            await page.until(f"{SAID}.startsWith('nearest to {index.items[by_outputs[0, 2]]}, by its stored bits')")
            assert await page.value(FOUND) == lines(answers, third[0][0], third[1][0])
            await page.until(SHOWN)

            (tmp_path / "text.jpg").write_text("no photo")
            await page.drop(tmp_path / "text.jpg", "#drop")
            await page.until(f"{SAID}.startsWith('no photo that can be read')")
            assert await page.value(FOUND) == []

    asyncio.run(visit())
    with Image.open(tmp_path / "page.png") as seen:
        assert seen.size[0] == 1000
        assert np.asarray(seen.convert("RGB"))[450:800].std() > 10  # pictures, not an empty page
