import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from fourreal.media.sheet import Panel
from fourreal.sampling.page import opening_cell, viewer_page


def random_grid(seed, views=3, times=4, height=6, width=10):
    return np.random.default_rng(seed).integers(0, 256, (views, times, height, width, 3), dtype=np.uint8)


def page_data(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


@pytest.fixture
def given():
    mask = np.zeros((3, 4), bool)
    mask[0, :] = mask[:, 0] = True
    return mask


def test_page_holds_every_frame_bit_for_bit(given):
    panels = [Panel("sampled", random_grid(0)), Panel("truth", random_grid(1))]
    data = page_data(viewer_page("grid", panels, given))
    assert (data["views"], data["times"], data["height"], data["width"]) == (3, 4, 6, 10)
    for panel, stored in zip(panels, data["panels"], strict=True):
        for v, strip in enumerate(stored["strips"]):
            kind, content = strip.split(",")
            assert kind == "data:image/webp;base64"
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
            for t in range(4):
                assert (pixels[:, 10 * t : 10 * (t + 1)] == panel.frames[v, t]).all()


def test_frames_that_are_too_wide_for_one_strip_stand_in_rows():
    frames = random_grid(0, views=1, times=3, height=2, width=7000)
    data = page_data(viewer_page("grid", [Panel("sampled", frames)], np.zeros((1, 3), bool)))
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data["panels"][0]["strips"][0].split(",")[1]))))
    assert data["columns"] == 2
    for t, (row, column) in enumerate(((0, 0), (0, 1), (1, 0))):
        assert (pixels[2 * row : 2 * row + 2, 7000 * column : 7000 * column + 7000] == frames[0, t]).all()


def test_page_says_which_cells_are_given_and_how_good_each_is(given):
    truth = random_grid(0)
    sampled = truth.copy()
    sampled[2, 3] = 255 - sampled[2, 3]
    data = page_data(viewer_page("grid", [Panel("sampled", sampled), Panel("truth", truth)], given, truth=truth))
    assert data["given"] == given.astype(int).tolist()
    assert data["panels"][0]["psnr"][0][0] == "exact"
    assert isinstance(data["panels"][0]["psnr"][2][3], float)
    assert data["panels"][1]["psnr"] is None


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ([(0, t) for t in range(4)] + [(v, 0) for v in range(3)], (2, 2)),  # as far as (2, 3), and nearer the middle
        ([(0, 0), (2, 3)], (1, 1)),
        ([(1, 1)], (0, 3)),
        ([], (1, 1)),
    ],
)
def test_page_opens_on_the_unknown_cell_farthest_from_the_given_ones(cells, expected):
    given = np.zeros((3, 4), bool)
    for cell in cells:
        given[cell] = True
    assert opening_cell(given) == expected
    assert page_data(viewer_page("grid", [Panel("sampled", random_grid(0))], given))["start"] == list(expected)


def test_page_asks_nothing_of_the_network(given):
    page = viewer_page("grid", [Panel("sampled", random_grid(0))], given, files=["grid.mp4"])
    assert not re.search(r"""(?:src|href)\s*=\s*["']|https?://|@import|url\(|fetch\(|XMLHttp""", page)
    assert re.findall(r"\b(?:src|href): ([^, ]+)", page) == [
        "source",
        "`./${file}`",
    ]  # data URLs; files beside the page
    assert "default-src 'none'; img-src data:" in page  # and a browser would refuse


def test_text_from_outside_cannot_become_markup(given):
    evil = "</script><script>alert(1)</script><!--"
    page = viewer_page(evil, [Panel(evil, random_grid(0))], given, about={evil: evil})
    assert "<script>alert" not in page and "<!--" not in page
    assert page.count("</script>") == 2  # the data's and the program's own
    data = page_data(page)
    assert data["panels"][0]["title"] == evil and data["about"] == {evil: evil}


def test_text_that_looks_like_a_placeholder_is_left_alone(given):
    page = viewer_page("{{data}}", [Panel("{{title}}", random_grid(0))], given)
    assert "<title>{{data}}</title>" in page
    assert page_data(page)["panels"][0]["title"] == "{{title}}"
