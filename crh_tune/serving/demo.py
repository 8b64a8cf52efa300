"""``crh-tune demo``: a page on this machine's own address on which a photo is dropped and its neighbours are seen.

A photo is the body of one request: it has no file name, and nothing is written. Bodies are bounded in bytes, images in
pixels, and so is how many are worked on at once. Photos of the index are read below its folder only, by their row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from starlette.middleware.trustedhost import TrustedHostMiddleware

from crh_tune.data.store.decode import BadImage, decode
from crh_tune.errors import DataError
from crh_tune.serving.answers import Answers, By
from crh_tune.serving.photos import as_jpeg, photo_path, small

LARGEST = 20 * 2**20
"""Bytes of an upload."""
MEGAPIXELS = 50.0
PATIENCE = 30.0
"""Seconds in which an upload must have come."""
AT_ONCE, WAITING = 2, 30
"""How many requests are worked on at once, and how many wait; more are sent away with 503."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_PAGE = Path(__file__).with_name("page.html")


def make_app(answers: Answers, root: str | None, hosts: tuple[str, ...] = ("127.0.0.1", "localhost")) -> FastAPI:
    """The page and what it asks: ``root`` is the folder of the indexed photos.

    POST /search with an image as body (/search?by=outputs: ranked by real outputs), and GET /items/ROW/near, give ten
    neighbours as JSON; GET /items/ROW/photo a small picture. A search has a note where all neighbours are far. Raises
    ValueError where the encoder takes no photos.
    """
    answers.encoder.want_images()
    app = FastAPI(title="crh-tune demo", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))  # no other site's page may ask in its name
    line = _Line()

    @app.middleware("http")
    async def bounded(request: Request, go_on: Any) -> Response:
        response: Response = await go_on(request)
        response.headers.update(_HEADERS)
        return response

    @app.get("/")
    def page() -> Response:
        return Response(_PAGE.read_text(encoding="utf-8"), media_type="text/html; charset=utf-8")

    @app.post("/search")
    async def search(request: Request, by: By = "bits") -> dict[str, Any]:
        with line.place():
            return await line.work(_search, answers, await _body(request), by)

    @app.get("/items/{row}/near")
    async def near(row: int) -> dict[str, Any]:
        _want(row, answers)
        with line.place():
            found = await line.work(answers.near_row, row)
        return {"found": [vars(each) for each in found]}

    @app.get("/items/{row}/photo")
    async def photo(row: int) -> Response:
        _want(row, answers)
        with line.place():
            return Response(await line.work(_photo, answers, root, row), media_type="image/jpeg")

    return app


class _Line:
    """A few requests are worked on at once, some wait, the others are sent away."""

    def __init__(self) -> None:
        self.busy, self.inside = asyncio.Semaphore(AT_ONCE), 0

    @contextmanager
    def place(self) -> Iterator[None]:
        if self.inside >= AT_ONCE + WAITING:
            raise HTTPException(503, "too many requests at once: try again")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    async def work(self, function: Callable[..., Any], *arguments: Any) -> Any:
        async with self.busy:
            return await asyncio.to_thread(function, *arguments)


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    try:
        async with asyncio.timeout(PATIENCE):
            async for part in request.stream():
                size += len(part)
                if size > LARGEST:
                    raise HTTPException(413, f"more than {LARGEST // 2**20} MiB")
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"not here after {PATIENCE:g} seconds") from None
    return b"".join(parts)


def _search(answers: Answers, content: bytes, by: By) -> dict[str, Any]:
    encoder = answers.encoder
    try:
        image = decode(content, encoder.shape[1], encoder.fit, encoder.span, min(MEGAPIXELS, encoder.megapixels))
    except BadImage as error:
        raise HTTPException(400, f"no photo that can be read: {error}") from None
    [(found, nearest)] = answers.near_inputs(image.transpose(2, 0, 1)[None], by=by)
    note = answers.reach.note(nearest) if answers.reach is not None else ""
    return {"found": [vars(each) for each in found], "note": note}


def _want(row: int, answers: Answers) -> None:
    if not 0 <= row < len(answers.index.items):
        raise HTTPException(404, "there is no such item")


def _photo(answers: Answers, root: str | None, row: int) -> bytes:
    item = answers.index.items[row]
    try:
        return as_jpeg(small(photo_path(root, str(item) if item.dtype.kind == "U" else item), 256))
    except (DataError, BadImage, OSError):
        raise HTTPException(404, "its photo is not there") from None
