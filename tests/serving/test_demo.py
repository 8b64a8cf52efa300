"""The page's server: answers as the library's, bounded uploads, nothing written, and it stays up."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from crh_tune.retrieval.index import Index
from crh_tune.serving import demo
from crh_tune.serving.answers import open_answers


@pytest.fixture
def answers(export):
    return open_answers(export)


@pytest.fixture
def client(answers):
    with TestClient(demo.make_app(answers, answers.about.root), base_url="http://127.0.0.1") as client:
        yield client


def test_the_page_is_there_and_asks_nobody_else(client):
    page = client.get("/")
    assert page.status_code == 200
    assert "Drop a photo here" in page.text
    assert "http" not in page.text.replace("http-equiv", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"


def test_a_photo_has_the_neighbours_that_the_library_finds(client, answers, photos):
    query = photos / "test" / "a" / "0.jpg"
    answer = client.post("/search", content=query.read_bytes()).json()
    found = answer["found"]
    assert answers.reach is not None
    assert answer["note"] == answers.reach.note(found[0]["distance"])
    rows, distances = answers.index.search(answers.encoder.encode_files([query]), 10)
    assert [each["row"] for each in found] == rows[0].tolist()
    assert [each["distance"] for each in found] == distances[0].tolist()
    assert [each["item"] for each in found] == answers.index.items[rows[0]].tolist()
    assert [each["label"] for each in found] == [each["item"].split("/")[1] for each in found]


def test_a_photo_is_ranked_by_its_real_outputs_where_that_is_asked(client, answers, photos):
    query = photos / "test" / "a" / "0.jpg"
    answer = client.post("/search?by=outputs", content=query.read_bytes()).json()
    nearest = answers.index.search(answers.encoder.encode_files([query]), 1)[1][0, 0]
    assert answer["note"] == answers.reach.note(nearest)  # of the nearest code of all, which need not be among the ten
    found = answer["found"]
    rows, scores = answers.index.search(answers.encoder.outputs(answers.encoder.read(query)[None]), 10)
    assert [each["row"] for each in found] == rows[0].tolist()
    assert [each["score"] for each in found] == scores[0].tolist()
    for each in found:
        bits = np.bitwise_count(answers.encoder.encode_files([query]) ^ answers.index.words[each["row"]])
        assert each["distance"] == bits.sum()
    assert client.post("/search?by=label", content=query.read_bytes()).status_code == 422


def test_an_item_can_be_searched_on_and_its_photo_seen(client, answers, photos):
    found = client.get("/items/4/near").json()["found"]
    assert found[0]["distance"] == 0
    rows, _ = answers.index.search(answers.index.words[4:5], 10)
    assert [each["row"] for each in found] == rows[0].tolist()
    answer = client.get("/items/4/photo")
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as seen, Image.open(photos / answers.index.items[4]) as own:
        assert max(seen.size) == 256
        same = own.convert("RGB").resize(seen.size, Image.Resampling.BICUBIC)
        apart = np.abs(np.asarray(seen, dtype=float) - np.asarray(same, dtype=float)).mean()
        assert apart < 12


@pytest.mark.parametrize("row", ["18", "-1", "99999999999999999999", "x", "..%2f..%2fetc%2fpasswd", "1.5", "%00"])
def test_other_items_are_not_there(client, row):
    for what in ("near", "photo"):
        assert 400 <= client.get(f"/items/{row}/{what}").status_code < 500


@pytest.mark.parametrize("item", ["../secret.png", "/etc/passwd", "{secret}", "link.png", "a/../../secret.png", "a\0b"])
def test_an_index_cannot_name_files_outside_its_folder(answers, tmp_path, photos, item):
    folder, secret = tmp_path / "photos", tmp_path / "secret.png"
    folder.mkdir()
    shutil.copy(photos / "test" / "a" / "1.png", secret)
    (folder / "link.png").symlink_to(secret)
    items = np.array([item.format(secret=secret), *answers.index.items[1:]])
    other = replace(answers, index=Index(answers.index.words, answers.index.labels, items))
    with TestClient(demo.make_app(other, str(folder)), base_url="http://127.0.0.1") as client:
        assert client.get("/items/0/photo").status_code == 404
        assert client.get("/items/0/near").status_code == 200


def png(width: int, height: int) -> bytes:
    target = io.BytesIO()
    Image.new("L", (width, height)).save(target, "PNG")
    return target.getvalue()


def test_uploads_are_bounded_in_bytes_and_pixels(client, monkeypatch):
    assert client.post("/search", content=png(8000, 8000)).status_code == 400  # 64 million pixels in a few kB
    assert client.post("/search", content=png(300, 300)).status_code == 200
    monkeypatch.setattr(demo, "LARGEST", 1000)
    answer = client.post("/search", content=png(300, 300) + bytes(1000))
    assert answer.status_code == 413
    answer = client.post("/search", content=(bytes(300) for _ in range(1000)))
    assert answer.status_code == 413


def test_more_requests_than_can_wait_are_sent_away(client, monkeypatch, photos):
    monkeypatch.setattr(demo, "WAITING", -demo.AT_ONCE)
    content = (photos / "test" / "a" / "0.jpg").read_bytes()
    assert client.post("/search", content=content).status_code == 503
    monkeypatch.undo()
    for _ in range(3 * demo.AT_ONCE):
        assert client.post("/search", content=content).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", ""])
def test_pages_of_other_hosts_are_refused(client, host):
    assert client.get("/items/0/near", headers={"host": host}).status_code == 400


def test_it_stays_up_through_a_thousand_random_bodies(client, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    good = [path.read_bytes() for path in sorted((photos / "test").rglob("*.*"))]
    codes = []
    for i in range(1000):
        base = bytearray(good[i % len(good)])
        if i % 4 == 0:
            base = bytearray(generator.bytes(int(generator.integers(0, 3000))))
        elif i % 4 == 1:
            base = base[: int(generator.integers(0, len(base)))]
        else:
            for place in generator.integers(0, len(base), int(generator.integers(1, 40))):
                base[place] = int(generator.integers(256))
        codes.append(client.post("/search", content=bytes(base)).status_code)
    assert set(codes) <= {200, 400}
    assert codes.count(400) > 300
    assert client.post("/search", content=good[0]).status_code == 200
    assert not list(tmp_path.iterdir())


def test_only_what_is_meant_is_served(client):
    for path in ("/docs", "/openapi.json", "/page.html", "/../page.html", "/static/x"):
        assert client.get(path).status_code == 404
    assert client.get("/search").status_code == 405
