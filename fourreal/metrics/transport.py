"""The baseline that moves pixels: a view's given frame, carried along the optical flow of another view's given video.

    x[v, t](p) = x[v, t0](p + f(p)),    f: flow from x[v0, t] to x[v0, t0], so x[v0, t](p) = x[v0, t0](p + f(p))

f is seen from camera v0 but applied in camera v: right only where both cameras see the motion at the same pixels. It is a
simple stand-in for methods that know depth.
"""

import numpy as np
from jaxtyping import Bool, UInt8

from fourreal.metrics.baselines import copy_freeze_time, nearest_corner
from fourreal.motion.optical_flow import flow, warp


def flow_transport(
    frames: UInt8[np.ndarray, "v t h w 3"], given: Bool[np.ndarray, "v t"]
) -> UInt8[np.ndarray, "v t h w 3"]:
    """Unknown cells from x[v, t0] along the flow of view v0, (v0, t0) as in the sum of differences; else the copy."""
    out = copy_freeze_time(frames, given)
    flows = {}
    for v, t in np.argwhere(~given):
        if corner := nearest_corner(given, v, t):
            w, s = corner
            if (w, s, t) not in flows:
                flows[w, s, t] = flow(frames[w, t], frames[w, s])
            out[v, t] = warp(frames[v, s], flows[w, s, t])
    return out
