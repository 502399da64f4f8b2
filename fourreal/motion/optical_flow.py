"""Optical flow between two pictures, and a picture moved along it.

    start(p) = end(p + f(p)),    f: flow from start to end

DIS flow (Kroeger et al. 2016) of OpenCV, which the `eval` extra brings.
"""

import numpy as np
from jaxtyping import Float, UInt8


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
