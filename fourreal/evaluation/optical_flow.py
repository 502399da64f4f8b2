"""The baseline that moves pixels: a view's given frame, carried along the optical flow of another view's given video.

    x[v, t](p) = x[v, t0](p + f(p)),    f: flow from x[v0, t] to x[v0, t0], so x[v0, t](p) = x[v0, t0](p + f(p))

f is seen from camera v0 but applied in camera v: right only where both cameras see the motion at the same pixels. It is a
simple stand-in for methods that know depth. DIS flow (Kroeger et al. 2016) of OpenCV, which the `eval` extra brings.
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fourreal.evaluation.baselines import copy_freeze_time, nearest_corner


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


def flow(start: UInt8[np.ndarray, "h w 3"], end: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 2"]:
    """DIS flow in pixels (right, down): what is at p in `start` is at p + flow(p) in `end`."""
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (start, end)]
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)


def warp(frame: UInt8[np.ndarray, "h w 3"], flow: Float[np.ndarray, "h w 2"]) -> UInt8[np.ndarray, "h w 3"]:
    """`frame` read bilinearly at p + flow(p); beyond the edge, the edge's pixels."""
    import cv2

    height, width = frame.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(frame, x + flow[..., 0], y + flow[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
