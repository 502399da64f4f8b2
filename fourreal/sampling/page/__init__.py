"""One offline HTML page to look around in a grid: times across, views down, and a comparison beside the sample.

The page holds everything: its style, its script (`viewer.*`) and the frames, as one lossless WebP strip per panel and view.
Opened from a file it asks the network for nothing.
"""

import base64
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange
from jaxtyping import Bool
from PIL import Image

from fourreal.media.sheet import Panel
from fourreal.metrics.pixels import psnr_per_cell

WEBP_SIDE = 16383  # px, the longest that WebP takes
TEMPLATE = Path(__file__).with_name("viewer.html")


def viewer_page(
    title: str,
    panels: Sequence[Panel],
    given: Bool[np.ndarray, "v t"],
    *,
    truth: np.ndarray | None = None,
    about: Mapping[str, object] | None = None,
    files: Sequence[str] = (),
) -> str:
    """The page as text. The first of `panels` is the sample; of the others the user chooses one to compare it with.

    With `truth` [v, t, h, w, 3] each panel says its PSNR in the cell shown. `about` is the line of facts below, `files` the
    paths of files to link, from the page's folder.
    """
    views, times, height, width, _ = panels[0].frames.shape
    columns = min(times, max(1, WEBP_SIDE // width))
    data = {
        "views": views,
        "times": times,
        "height": height,
        "width": width,
        "columns": columns,
        "given": given.astype(int).tolist(),
        "start": opening_cell(given),
        "panels": [
            {
                "title": panel.title,
                "strips": [_strip(frames, columns) for frames in panel.frames],
                "psnr": None if truth is None or panel.frames is truth else _finite(psnr_per_cell(panel.frames, truth)),
            }
            for panel in panels
        ],
        "about": {str(key): str(value) for key, value in (about or {}).items()},
        "files": list(files),
    }
    fill = {
        "title": html.escape(title),
        # Inside <script> only "</" and "<!--" could end the data early; \u003c is the same character to JSON.
        "data": json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
        "style": TEMPLATE.with_suffix(".css").read_text(encoding="utf-8"),
        "script": TEMPLATE.with_suffix(".js").read_text(encoding="utf-8"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: fill[match[1]], TEMPLATE.read_text(encoding="utf-8"))


def opening_cell(given: Bool[np.ndarray, "v t"]) -> tuple[int, int]:
    """The unknown cell (view, time) farthest from every given one, by |dv| + |dt|; of equally far ones the most central."""
    known, middle = np.argwhere(given).tolist(), ((given.shape[0] - 1) / 2, (given.shape[1] - 1) / 2)

    def away(cell: tuple[int, int], other: Sequence[float]) -> float:
        return abs(cell[0] - other[0]) + abs(cell[1] - other[1])

    def rank(cell: tuple[int, int]) -> tuple[float, float]:
        return -min((away(cell, other) for other in known), default=math.inf), away(cell, middle)

    return min(np.ndindex(given.shape), key=rank)


def _strip(frames: np.ndarray, columns: int) -> str:
    """All times of one view side by side, in rows of `columns` frames, as a data URL."""
    file = io.BytesIO()
    filled = np.pad(frames, ((0, -len(frames) % columns), (0, 0), (0, 0), (0, 0)))
    rows = rearrange(filled, "(down across) h w c -> (down h) (across w) c", across=columns)
    Image.fromarray(rows).save(file, "webp", lossless=True, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def _finite(scores: list[list[float]]) -> list[list[float | str]]:
    return [[round(score, 2) if math.isfinite(score) else "exact" for score in row] for row in scores]
