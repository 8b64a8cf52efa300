"""Makes images/demo.png: the demo's page with a photo and its neighbours, in headless Chromium.

python -m docs.make_demo_image crh_runs/photos-001/export index new.jpg
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from crh_tune.serving.answers import open_answers
from crh_tune.serving.demo import make_app
from tests.browser import browser, served

IMAGE = Path(__file__).parent / "images" / "demo.png"
SHOWN = "[...document.querySelectorAll('#found img')].filter(each => each.naturalWidth > 0).length >= 10"


def main() -> None:
    parser = argparse.ArgumentParser(description="A picture of the demo's page.")
    for name in ("export", "index", "photo"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    answers = open_answers(arguments.export, arguments.index)
    with served(make_app(answers, answers.about.root)) as address:
        asyncio.run(take(address, arguments.photo.absolute()))


async def take(address: str, photo: Path) -> None:
    async with browser(1000, 1160) as page:
        await page.open(address)
        await page.drop(photo, "#drop")
        await page.until(SHOWN)
        await page.click("input[value=outputs]")
        await page.until("document.getElementById('found').innerText.includes('score')")
        await page.until(SHOWN)
        await page.value("scrollTo(0, 0)")
        await page.picture(IMAGE)


if __name__ == "__main__":
    main()
