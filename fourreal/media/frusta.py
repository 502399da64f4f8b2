"""Cameras as a picture: the pyramid that each sees, from above, from the front and from the side of the file's world."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw

SIDE, MARGIN = 480, 40  # pixels of a panel
FIRST, OTHERS, GREY = (214, 39, 40), (31, 119, 180), (130, 130, 130)
PANELS = ((0, 1), (0, 2), (1, 2))  # the axes to the right and up
LONG = 0.15  # of the picture: how far a pyramid reaches


def frusta_picture(c2w: Float[np.ndarray, "v 4 4"], tangents: Sequence[tuple[float, float]], first: str) -> Image.Image:
    """Three panels of x-y, x-z and y-z. `tangents`: of half the fields of view across and down; poses are OpenCV's.

    The first camera is red and has its name beside it; the scale below is in the file's unit.
    """
    places = c2w[:, :3, 3]
    middle = (places.min(0) + places.max(0)) / 2
    extent = max(float((places.max(0) - places.min(0)).max()), 1e-9 * float(np.abs(places).max()), 1e-12)
    reach = LONG * 2 * extent
    scale = (SIDE - 2 * MARGIN) / (extent + 2 * reach)  # pixels a unit
    picture = Image.new("RGB", (SIDE * len(PANELS), SIDE), "white")
    draw = ImageDraw.Draw(picture)
    for number, axes in enumerate(PANELS):
        center = np.array([SIDE * number + SIDE / 2, SIDE / 2])

        def at(
            points: np.ndarray, axes: tuple[int, int] = axes, center: np.ndarray = center
        ) -> list[tuple[float, float]]:
            shown = (points - middle)[..., list(axes)] * scale * [1, -1] + center
            return [tuple(map(float, point)) for point in shown]

        draw.text((SIDE * number + 8, 8), f"{'xyz'[axes[0]]} to the right, {'xyz'[axes[1]]} up", GREY)
        if number:
            draw.line([(SIDE * number, 0), (SIDE * number, SIDE)], GREY)
        for v in reversed(range(len(c2w))):  # the first on top
            across, down = tangents[v]
            corners = np.array([[x * across, y * down, 1] for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))])
            corners = places[v] + reach * corners @ c2w[v, :3, :3].T
            (tip,), base = at(places[v][None]), at(corners)
            color = OTHERS if v else FIRST
            for place in base:
                draw.line([tip, place], color)
            draw.line([*base, base[0]], color)
            draw.line(base[:2], color, 3)  # the picture's upper side
            draw.ellipse([tip[0] - 3, tip[1] - 3, tip[0] + 3, tip[1] + 3], color)
        (tip,) = at(places[0][None])
        draw.text((tip[0] + 6, tip[1] + 4), first[-40:].encode("latin-1", "replace").decode("latin-1"), FIRST)
    unit = 10.0 ** np.floor(np.log10(extent))
    draw.line([(12, SIDE - 14), (12 + float(unit * scale), SIDE - 14)], GREY, 2)
    draw.text((12, SIDE - 30), f"{unit:g}", GREY)
    return picture
