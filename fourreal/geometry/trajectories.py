"""Cameras along a named trajectory. The first one looks down by the elevation at a subject in distance 1:

orbit:60     around the subject by 60 degrees, to the right (below 0: to the left); of whole turns, as orbit:360, the last
             view stops one step before the first
arc:60       the same, rising by a fifth of it
rise:20      upward over the subject by 20 degrees
dolly:0.3    towards the subject by 0.3 of the distance (below 0: away)
"""

import difflib
import math

import numpy as np

from fourreal.errors import UserError
from fourreal.geometry.pinhole import intrinsics, orbit_arc
from fourreal.scene import Cameras

TRAJECTORIES = {"orbit": 60.0, "arc": 60.0, "rise": 20.0, "dolly": 0.3}  # and how far by default
CLIMB = 0.2  # of an arc's sweep
HIGHEST = 85.0  # degrees of elevation: straight above, "up" would mean nothing


def trajectory(text: str, views: int, size: tuple[int, int], fov: float = 40.0, elevation: float = 20.0) -> Cameras:
    """Cameras evenly along the trajectory `NAME` or `NAME:AMOUNT`, for frames of `size` (height, width).

    `fov` is the field of view across the width, `elevation` how far the first camera looks down, both in degrees. Raises
    ValueError for an unknown name, an amount that is no number, and a path through the subject or over its zenith.
    """
    name, _, amount = text.partition(":")
    if name not in TRAJECTORIES:
        near = difflib.get_close_matches(name, TRAJECTORIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--trajectory {text}: expected one of {', '.join(TRAJECTORIES)}, as orbit:60{hint}")
    try:
        number = float(amount) if amount else TRAJECTORIES[name]
        if not math.isfinite(number):
            raise ValueError
    except ValueError:
        raise UserError(
            f"--trajectory {text}: '{amount}' is no finite number; expected NAME or NAME:AMOUNT, as orbit:60"
        ) from None
    whole_turns = name == "orbit" and number != 0 and number % 360 == 0
    share = np.linspace(0, 1, views, endpoint=not whole_turns)
    sweep = number * share if name in ("orbit", "arc") else 0 * share
    climb = {"arc": abs(number) * CLIMB, "rise": number}.get(name, 0.0)
    distance = 1 - number * share if name == "dolly" else np.ones(views)
    if not distance.min() >= 0.1:
        raise UserError(f"--trajectory {text}: that ends in the subject; expected at most dolly:0.9")
    if not max(abs(elevation), abs(elevation + climb)) <= HIGHEST:
        raise UserError(
            f"--trajectory {text} from --elevation {elevation:g}: expected to stay between -{HIGHEST:g} and {HIGHEST:g} degrees"
        )
    height, width = size
    K = intrinsics(fov, width)
    K[1, 2] = height / 2
    c2w = orbit_arc(np.zeros(3), distance, sweep, elevation + climb * share)
    return Cameras(np.tile(K, (views, 1, 1)), c2w, focus=np.float32(1))
