"""Still and animated pictures of grids: contact sheets (views down, times across) and the README's animation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw, ImageFont

GIVEN_COLOUR = "#f08c00"
CURSOR_COLOUR = "#1c7ed6"
PAPER, INK, EMPTY = "#ffffff", "#343a40", "#e9ecef"
LABEL = 16  # px of margin for v0.., t0.. and for a panel's title
GAP = 4
BIG = 192  # px, height of a picture in the animation


@dataclass(frozen=True)
class Panel:
    """One grid to show beside others. `shown`: which cells have a picture; None means all of them."""

    title: str
    frames: UInt8[np.ndarray, "v t h w 3"]
    shown: Bool[np.ndarray, "v t"] | None = None


def contact_sheet(panels: Sequence[Panel], given: Bool[np.ndarray, "v t"], shorter: int = 96) -> Image.Image:
    """Panels side by side, each with its views downwards and its times across; given cells are framed in orange.

    A cell's shorter side is `shorter` px, or more if its frames are larger. Cells that a panel does not show are grey.
    """
    drawn = [_labelled(panel, given, shorter) for panel in panels]
    sheet = Image.new("RGB", (sum(one.width for one in drawn), max(one.height for one in drawn)), PAPER)
    left = 0
    for one in drawn:
        sheet.paste(one, (left, 0))
        left += one.width
    return sheet


def stack_sheets(sheets: Sequence[UInt8[np.ndarray, "h w 3"]]) -> UInt8[np.ndarray, "h w 3"]:
    """Sheets below each other, the narrower ones filled with black."""
    width = max(sheet.shape[1] for sheet in sheets)
    return np.concatenate([np.pad(sheet, ((0, 0), (0, width - sheet.shape[1]), (0, 0))) for sheet in sheets])


def animated_picture(path: Path, panels: Sequence[Panel], given: Bool[np.ndarray, "v t"], fps: int = 6) -> None:
    """A looping animation for a page: given cells in, grid out with a cursor, and that cell of every panel beside.

    The first panel is the sampled grid. Time plays at each view in turn, then the camera moves at each time in turn.
    `path` ends in .webp (small, full colour) or .gif. Pictures are 192 px high.
    """
    sampled = panels[0]
    known = Panel(f"in: {given.sum()} of {given.size} cells", sampled.frames, shown=given)
    map_in = _small_map(known, given)
    map_out = _small_map(Panel("out: all of them", sampled.frames), given)
    frames = []
    for (v, t), caption in _walk(*given.shape):
        pieces = [map_in, _with_cursor(map_out, sampled.frames.shape, v, t)]
        for index, panel in enumerate(panels):
            marked = bool(given[v, t]) and index == 0
            pieces.append(_titled(_picture(panel.frames[v, t], BIG), panel.title, GIVEN_COLOUR if marked else None))
        frames.append(_in_a_row(pieces, caption))
    if path.suffix == ".gif":  # no dithering: its noise moves, and does not compress
        frames = [frame.quantize(128, dither=Image.Dither.NONE) for frame in frames]
    options = {"quality": 80, "method": 4} if path.suffix == ".webp" else {"optimize": True}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, **options)


def _walk(views: int, times: int) -> Iterator[tuple[tuple[int, int], str]]:
    """Every cell twice, each step to a neighbour: time plays to and fro as the view rises, then the other way round."""
    for v in range(views):
        for t in range(times) if v % 2 == 0 else reversed(range(times)):
            yield (v, t), f"view {v}: time plays"
    # The first half ends in the last view; the second starts there, at the time where the first stopped.
    last = times - 1 if views % 2 else 0
    order = range(times) if last == 0 else range(times - 1, -1, -1)
    for step, t in enumerate(order):
        for v in reversed(range(views)) if step % 2 == 0 else range(views):
            yield (v, t), f"time {t}: the camera moves"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _picture(frame: np.ndarray, shorter: int) -> Image.Image:
    picture = Image.fromarray(frame)
    scale = max(1.0, shorter / min(picture.size))
    return picture.resize(tuple(round(side * scale) for side in picture.size), Image.Resampling.BICUBIC)


def _cells(panel: Panel, given: np.ndarray, cell: tuple[int, int], gap: int) -> Image.Image:
    """The bare grid of pictures, each `cell` (width, height) px, with the given ones framed in the gap around them."""
    views, times = given.shape
    width, height = cell
    image = Image.new("RGB", (times * (width + gap) + gap, views * (height + gap) + gap), PAPER)
    draw = ImageDraw.Draw(image)
    for v, t in np.ndindex(views, times):
        left, top = gap + t * (width + gap), gap + v * (height + gap)
        if given[v, t]:
            draw.rectangle(
                (left - gap + 1, top - gap + 1, left + width + gap - 2, top + height + gap - 2), GIVEN_COLOUR
            )
        if panel.shown is None or panel.shown[v, t]:
            picture = Image.fromarray(panel.frames[v, t]).resize(cell, Image.Resampling.BICUBIC)
            image.paste(picture, (left, top))
        else:
            draw.rectangle((left, top, left + width - 1, top + height - 1), EMPTY)
    return image


def _labelled(panel: Panel, given: np.ndarray, shorter: int) -> Image.Image:
    views, times = given.shape
    cell = _picture(panel.frames[0, 0], shorter).size
    cells = _cells(panel, given, cell, GAP)
    margin = 2 * LABEL
    image = Image.new("RGB", (cells.width + margin + LABEL, cells.height + 3 * LABEL), PAPER)
    image.paste(cells, (margin, 2 * LABEL))
    draw = ImageDraw.Draw(image)
    draw.text((margin + GAP, 2), panel.title, INK, font=_font(13))
    for t in range(times):
        across = margin + GAP + t * (cell[0] + GAP) + cell[0] // 2
        draw.text((across, 2 * LABEL), f"t{t}", INK, font=_font(11), anchor="mb")
    for v in range(views):
        down = 2 * LABEL + GAP + v * (cell[1] + GAP) + cell[1] // 2
        draw.text((margin - 3, down), f"v{v}", INK, font=_font(11), anchor="rm")
    return image


def _map_cell(shape: tuple[int, ...]) -> tuple[int, int]:
    """Width and height of a cell so that the whole map fits a square of BIG px."""
    views, times, height, width, _ = shape
    scale = min((BIG - 2) / times / width, (BIG - 2) / views / height)
    return max(4, int(width * scale) - 2), max(4, int(height * scale) - 2)


def _small_map(panel: Panel, given: np.ndarray) -> Image.Image:
    return _titled(_cells(panel, given, _map_cell(panel.frames.shape), 2), panel.title)


def _with_cursor(image: Image.Image, shape: tuple[int, ...], v: int, t: int) -> Image.Image:
    width, height = _map_cell(shape)
    left, top = GAP + t * (width + 2), LABEL + GAP + v * (height + 2)
    image = image.copy()
    box = (left, top, left + width + 3, top + height + 3)
    ImageDraw.Draw(image).rectangle(box, outline=CURSOR_COLOUR, width=3)
    return image


def _titled(picture: Image.Image, title: str, frame: str | None = None) -> Image.Image:
    image = Image.new("RGB", (picture.width + 2 * GAP, picture.height + 2 * GAP + LABEL), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((GAP, 1), title, INK, font=_font(12))
    if frame:
        draw.rectangle((0, LABEL, image.width - 1, image.height - 1), frame)
    image.paste(picture, (GAP, LABEL + GAP))
    return image


def _in_a_row(pieces: Sequence[Image.Image], caption: str) -> Image.Image:
    width = sum(piece.width for piece in pieces) + 3 * GAP * (len(pieces) + 1)
    image = Image.new("RGB", (width, max(piece.height for piece in pieces) + 2 * LABEL), PAPER)
    left = 3 * GAP
    for piece in pieces:
        image.paste(piece, (left, GAP))
        left += piece.width + 3 * GAP
    ImageDraw.Draw(image).text((4 * GAP, image.height - GAP), caption, CURSOR_COLOUR, font=_font(13), anchor="lb")
    return image
