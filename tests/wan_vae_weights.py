"""Random weights for Wan's autoencoders under diffusers' names: the same for diffusers, as it made a fixture, and for us."""

from collections.abc import Mapping, Sequence

import numpy as np


def random_weights(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """fp32 tensors in the order of their names; no bias is zero and no norm is all ones, so that none hides an error."""
    rng, tensors = np.random.default_rng(seed), {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        noise = rng.standard_normal(shape, dtype=np.float32)
        if name.endswith("gamma"):
            tensors[name] = 1 + np.float32(0.2) * noise
        elif name.endswith("bias"):
            tensors[name] = np.float32(0.1) * noise
        else:
            tensors[name] = noise / np.float32(np.prod(shape[1:]) ** 0.5)
    return tensors
