"""Optical flow between two pictures.

    start(p) = end(p + f(p)),    f: flow from start to end

DIS flow (Kroeger et al. 2016) of OpenCV.
"""

import numpy as np
from jaxtyping import Float, UInt8


def flow(start: UInt8[np.ndarray, "h w 3"], end: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 2"]:
    """DIS flow in pixels (right, down): what is at p in `start` is at p + flow(p) in `end`."""
    import cv2

    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (start, end)]
    return cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)
