"""The page in a real browser: its cells have known colours, so that a pixel of a canvas proves which cell is shown."""

import itertools
import re
import shutil

import numpy as np
import pytest

from fourreal.media.sheet import Panel
from fourreal.sampling import page as page_module
from fourreal.sampling.page import viewer_page

sync_api = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
VIEWS, TIMES, LEVEL = 3, 5, 50
TITLES = ("sampled", "nearest given frame", "moved hint", "truth")


def coloured(panel, views=VIEWS, times=TIMES):
    """Cell (v, t) of a panel is flat (LEVEL v, LEVEL t, LEVEL panel)."""
    frames = np.zeros((views, times, 8, 12, 3), np.uint8)
    frames[..., 0] = LEVEL * np.arange(views)[:, None, None, None]
    frames[..., 1] = LEVEL * np.arange(times)[:, None, None]
    frames[..., 2] = LEVEL * panel
    return frames


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(params=[16383, 30], ids=["one row a strip", "rows of two"])
def webp_side(request, monkeypatch):
    """The longest strip of pictures, in pixels."""
    monkeypatch.setattr(page_module, "WEBP_SIDE", request.param)


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page of coloured cells, view 0 and time 0 given, at a clock that stands still until it is told to run."""
    contexts = []

    def open_it(*, width=1280, known=True, shape=(VIEWS, TIMES), address="", **options):
        given = np.zeros(shape, bool)
        given[0] = given[:, 0] = True
        panels = [Panel(title, coloured(k, *shape)) for k, title in enumerate(TITLES[: 4 if known else 3])]
        truth = panels[3].frames if known else None
        files = ["grid.mp4", "videos/cam00.mp4"]
        (tmp_path / "index.html").write_text(
            viewer_page("grid", panels, given, truth=truth, about={"seed": 1}, files=files), encoding="utf-8"
        )
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.clock.install(time=0)
        page.clock.pause_at(1000)
        page.faults, page.requests = [], []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda message: page.faults.extend([message.text] * (message.type == "error")))
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto((tmp_path / "index.html").as_uri() + address)
        page.wait_for_selector("body[data-ready=yes]")
        return page

    yield open_it
    faults = [fault for context in contexts for page in context.pages for fault in page.faults]
    for context in contexts:
        context.close()
    assert not faults


def shown(page, figure=0):
    """(view, time, panel) of the cell in a figure's canvas, by the pixel in its middle."""
    pixel = page.evaluate(
        "(k) => [...document.querySelectorAll('canvas')[k].getContext('2d').getImageData(6, 4, 1, 1).data]", figure
    )
    assert pixel[3] == 255 and not any(level % LEVEL for level in pixel[:3])
    return tuple(level // LEVEL for level in pixel[:3])


def played(page, seconds):
    """The cells (view, time) that are shown one after the other."""
    cells = [shown(page)[:2]]
    for _ in range(round(10 * seconds)):
        page.clock.run_for(100)
        cells.append(shown(page)[:2])
    return [cell for cell, _ in itertools.groupby(cells)]


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def still(opened, **options):
    """A page that does not play, at view 1, time 2."""
    return opened(address="#v=1,t=2", **options)


def test_page_opens_on_an_unknown_cell_and_plays_time_to_and_fro_in_three_seconds_or_more(opened):
    page = opened()
    assert shown(page) == (2, 2, 0)  # as far from the given cells as times 3 and 4, and nearer the middle
    assert page.get_attribute("#playTime", "aria-pressed") == "true"
    times = [t for v, t in played(page, 4) if v == 2]
    assert times[:9] == [2, 3, 4, 3, 2, 1, 0, 1, 2]
    assert len(played(page, 12)) - 1 <= 4 * 2 * (TIMES - 1)  # at most four rounds in twelve seconds


def test_page_stands_still_where_motion_is_unwanted_and_plays_when_told(opened):
    page = opened(reduced_motion="reduce")
    assert played(page, 2) == [(2, 2)]
    press(page, "Space")
    assert len(played(page, 2)) > 3


def test_an_address_names_a_cell_that_stands_still_and_follows_the_steps(opened):
    page = still(opened)
    assert played(page, 1) == [(1, 2)]
    press(page, "ArrowRight")
    assert page.url.endswith("#v=1,t=3")


def test_arrows_step_times_across_and_views_down_as_the_map_lies(opened, webp_side):
    page = still(opened)
    for key, cell in (
        ("ArrowRight", (1, 3)),
        ("ArrowLeft", (1, 2)),
        ("ArrowDown", (2, 2)),
        ("ArrowDown", (2, 2)),
        ("ArrowUp", (1, 2)),
    ):
        press(page, key)
        assert shown(page)[:2] == cell and shown(page, 1)[:2] == cell
        boxes = {name: page.locator(f"#map span{name}").first.bounding_box() for name in ("", ".here")}
        pitch = page.locator("#map span").nth(1).bounding_box()["x"] - boxes[""]["x"]
        offset = [round((boxes[".here"][axis] - boxes[""][axis]) / pitch) for axis in ("y", "x")]
        assert tuple(offset) == cell


def test_drag_and_map_follow_the_same_axes(opened):
    page = still(opened)
    box = page.locator("canvas").first.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(middle[0] + 2 * 0.8 * box["width"] / (TIMES - 1), middle[1])
    assert shown(page)[:2] == (1, 4)
    page.mouse.move(middle[0], middle[1] - 0.8 * box["height"] / (VIEWS - 1))
    page.mouse.up()
    assert shown(page)[:2] == (0, 2)
    page.locator("#map span").nth(2 * TIMES + 4).click()
    assert shown(page)[:2] == (2, 4)


def test_space_plays_and_pauses_time_and_with_shift_the_views(opened):
    page = still(opened)
    assert page.locator("#playTime").get_attribute("aria-label") == "Play time"
    press(page, "Space")
    assert page.locator("#playTime").get_attribute("aria-label") == "Pause time"
    assert played(page, 2)[:5] == [(1, 2), (1, 3), (1, 4), (1, 3), (1, 2)]
    press(page, "Space")
    assert len(played(page, 2)) == 1
    press(page, "ArrowLeft", "Shift+Space")
    time = shown(page)[1]
    assert {cell[1] for cell in played(page, 4)} == {time} and len(played(page, 4)) >= 4


def test_bullet_time_stops_time_in_the_middle_while_the_camera_sweeps_every_view(opened):
    page = still(opened)
    press(page, "ArrowLeft", "ArrowLeft", "b")
    cells = played(page, 8)
    there = [(1, 0), (1, 1), (1, 2), (2, 2), (1, 2), (0, 2), (1, 2), (1, 3), (1, 4)]
    assert cells[: len(there)] == there and cells[len(there)] == (1, 3)  # and the same way back
    press(page, "b")
    assert len(played(page, 2)) == 1


@pytest.mark.parametrize("known", [True, False])
def test_keys_and_buttons_choose_what_the_sample_is_compared_with(opened, known):
    page = still(opened, known=known)
    titles = TITLES[1 : 4 if known else 3]
    assert [text[1:] for text in page.locator("figcaption button").all_inner_texts()] == list(titles)
    assert page.locator("canvas").count() == 2 and shown(page, 1) == (1, 2, 1)
    for k, title in enumerate(titles, start=1):
        press(page, str(k))
        assert shown(page, 1) == (1, 2, k) and shown(page) == (1, 2, 0)
        assert page.locator("figcaption [aria-pressed=true]").inner_text() == f"{k}{title}"
        assert page.locator("canvas").nth(1).get_attribute("aria-label") == f"{title}, view 1, time 2"
    press(page, "9")
    assert shown(page, 1) == (1, 2, len(titles))
    page.locator("figcaption button").first.click()
    press(page, "ArrowDown")  # keys still work with the focus on a button
    assert shown(page, 1) == (2, 2, 1)


def test_the_shown_cell_says_its_psnr_only_where_the_truth_is_known(opened):
    page = still(opened)
    sampled, compared = page.locator("figcaption .score").all_inner_texts()
    off = [10 * np.log10(255**2 / ((LEVEL * k) ** 2 / 3)) for k in (3, 2)]  # one of three channels, by k levels
    assert [sampled, compared] == [f"v1 t2 · {off[0]:.1f} dB", f"{off[1]:.1f} dB"]
    press(page, "3")
    assert page.locator("figcaption .score").nth(1).inner_text() == ""
    assert still(opened, known=False).locator("figcaption .score").all_inner_texts() == ["v1 t2", ""]


def test_page_asks_for_nothing_but_itself_and_links_only_files_beside_it(opened, tmp_path):
    page = still(opened)
    asked = {url.split("#")[0] for url in page.requests if not url.startswith("data:")}
    assert asked == {(tmp_path / "index.html").as_uri()}
    links = page.evaluate("[...document.links].map((link) => link.href)")
    assert links == [(tmp_path / name).as_uri() for name in ("grid.mp4", "videos/cam00.mp4")]


@pytest.mark.parametrize("shape", [(VIEWS, TIMES), (4, 5), (5, 1)])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_sideways(opened, width, shape):
    page = opened(width=width, shape=shape)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in ("canvas", "button", "#map", "input"):
        for box in (element.bounding_box() for element in page.locator(name).all()):
            assert box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_both_colour_schemes(opened, scheme):
    page = still(opened, color_scheme=scheme)

    def colours(selector):
        style = "(e) => { const s = getComputedStyle(e); return [s.color, s.backgroundColor]; }"
        return [luminance(colour) for colour in page.locator(selector).first.evaluate(style)]

    page_ink, page_ground = colours("body")
    assert (page_ground < 0.1) == (scheme == "dark")
    for pair in ((page_ink, page_ground), colours("button[aria-pressed=true]"), colours(".badge")):
        assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5  # WCAG AA


def luminance(colour):
    """Relative luminance of a CSS colour rgb(r, g, b)."""
    channels = np.array([int(level) / 255 for level in re.findall(r"\d+", colour)[:3]])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
