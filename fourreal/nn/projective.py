"""Projective relative positions: what two cameras see of each other, in attention (PRoPE, Li et al. 2025, section 4).

    attn(i) = D_i sum_j softmax_j(q_i^T D_i D_j^-1 k_j / sqrt(e)) D_j^-1 v_j,      D_i = diag(P_i x I_{e/8}, R(x_i, y_i))
            = D_i attend(D_i^T q, D^-1 k, D^-1 v)_i                                any attention kernel runs it

P_i = [K | 0; 0 1] c2w_i^-1 takes the world to the picture of token i's cell and acts on fours of the first half of a head's
numbers, R turns pairs of the other half by the column and the row of its patch. P_i G for any change G of the world leaves
P_i P_j^-1, and with it the result, as they were. A four is numbers i, i + e/8, i + 2e/8 and i + 3e/8: the paper takes
neighbours, a fixed permutation of the channels, and this way `transform` reads whole vectors.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from fourreal.nn.rotary import rotate

MULTIPLE = 8  # of a head's numbers: fours in one half, pairs for x and for y in the other
BASE = 100.0  # of the frequencies, the paper's


class Projective(NamedTuple):
    """D of the tokens of cells."""

    matrix: Float[Array, "*lead f 4 4"]
    """P"""
    inverse: Float[Array, "*lead f 4 4"]
    angles: Float[np.ndarray, "1 s e/4"]
    """of R"""

    @classmethod
    def of(cls, matrix: Float[Array, "*lead f 4 4"], height: int, width: int, head_size: int) -> "Projective":
        """D for frames of so many patches, from affine matrices P (last row 0 0 0 1)."""
        return cls(matrix, inverse_affine(matrix), patch_angles(height, width, head_size)[None])

    def arranged(self, arrange: Callable[[jax.Array], jax.Array]) -> "Projective":
        """The same with the cells' axes moved."""
        return self._replace(matrix=arrange(self.matrix), inverse=arrange(self.inverse))

    def into(self, q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """(D^T q, D^-1 k, D^-1 v) of `[..., f, s, h, e]`, fp32."""
        transposed = jnp.swapaxes(self.matrix, -1, -2)
        q = transform(q, transposed, -self.angles)
        return q, *(transform(x, self.inverse, -self.angles) for x in (k, v))

    def back(self, seen: Float[Array, "*lead f s h e"]) -> Float[Array, "*lead f s h e"]:
        """D times what attention gave, fp32."""
        return transform(seen, self.matrix, self.angles)


def patch_angles(height: int, width: int, head_size: int) -> Float[np.ndarray, "s e/4"]:
    """Angles of R for the patches of a frame: e/8 by the column, then e/8 by the row."""
    frequencies = BASE ** (-np.arange(head_size // 8) / (head_size // 8))
    y, x = np.mgrid[:height, :width]
    angles = np.concatenate([x[..., None] * frequencies, y[..., None] * frequencies], axis=-1)
    return rearrange(angles, "h w e -> (h w) e").astype(np.float32)


def inverse_affine(matrix: Float[Array, "*lead 4 4"]) -> Float[Array, "*lead 4 4"]:
    """Of [A, t; 0, 1], by the cross products of A's rows: elementwise, so exact to fp32's rounding on every device."""
    a, b, c = (matrix[..., row, :3] for row in range(3))
    crossed = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=-1)
    inverse = crossed / jnp.sum(a * crossed[..., 0], axis=-1)[..., None, None]
    moved = -jnp.sum(inverse * matrix[..., None, :3, 3], axis=-1, keepdims=True)
    return jnp.concatenate([jnp.concatenate([inverse, moved], axis=-1), matrix[..., 3:, :]], axis=-2)


def transform(
    x: Float[Array, "*lead f s h e"], matrix: Float[Array, "*lead f 4 4"], angles: Float[np.ndarray, "1 s e/4"]
) -> Float[Array, "*lead f s h e"]:
    """`matrix` on the fours of the first half of a head, a turn by `angles` of the other, in fp32 whatever a matmul rounds."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    parts = jnp.split(first, 4, axis=-1)
    rows = [sum(matrix[..., i, j, None, None, None] * parts[j] for j in range(4)) for i in range(4)]
    return jnp.concatenate([*rows, rotate(second, angles)], axis=-1)
