"""Projective relative positions against the formula of every pair of tokens, written out in fp64."""

import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.nn.attention import attend, clip_attention
from fourreal.nn.kernels import Kernel
from fourreal.nn.projective import Projective, inverse_affine, patch_angles, transform

FRAMES, HEIGHT, WIDTH, HEADS = 3, 2, 3, 2


def affine(rng: np.random.Generator, *lead: int) -> np.ndarray:
    """Random affine matrices, near a rotation and a focal length of 1."""
    matrix = np.tile(np.eye(4), (*lead, 1, 1))
    matrix[..., :3, :] += 0.4 * rng.normal(size=(*lead, 3, 4))
    return matrix


def dense(matrix: np.ndarray, row: int, column: int, head: int) -> np.ndarray:
    """D of a token, [e, e]: P for channels i + (0 to 3) e/8, turns of the pairs (i, i + e/4) of the other half."""
    rotation = np.zeros((head // 2, head // 2))
    for i in range(head // 4):
        position, frequency = (column, i) if i < head // 8 else (row, i - head // 8)
        angle = position * 100 ** (-frequency / (head // 8))
        pair = np.ix_([i, i + head // 4], [i, i + head // 4])
        rotation[pair] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    zeros = np.zeros_like(rotation)
    return np.block([[np.kron(matrix, np.eye(head // 8)), zeros], [zeros, rotation]])


def by_pairs(q: np.ndarray, k: np.ndarray, v: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """softmax_j(q_i^T D_i D_j^-1 k_j / sqrt(e)) D_i D_j^-1 v_j of tokens [f s h e]."""
    head = q.shape[-1]
    places = [(f, s) for f in range(FRAMES) for s in range(HEIGHT * WIDTH)]
    d = {(f, s): dense(matrix[f], s // WIDTH, s % WIDTH, head) for f, s in places}
    out = np.zeros_like(q)
    for i in places:
        relative = {j: d[i] @ np.linalg.inv(d[j]) for j in places}
        for h in range(HEADS):
            logits = np.array([q[i][h] @ relative[j] @ k[j][h] for j in places]) / np.sqrt(head)
            weights = np.exp(logits - logits.max())
            values = np.stack([relative[j] @ v[j][h] for j in places])
            out[i][h] = weights / weights.sum() @ values
    return out


def attended(q, k, v, matrix, kernel=Kernel("xla")) -> np.ndarray:
    where = Projective.of(jnp.asarray(matrix, jnp.float32), HEIGHT, WIDTH, q.shape[-1])
    inputs = where.into(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)))
    return np.asarray(where.back(clip_attention(*inputs, kernel=kernel)))


@pytest.mark.parametrize("kernel", ["xla", "chunked"])
@pytest.mark.parametrize("head", [8, 16])
def test_attention_is_the_formula_of_every_pair_of_tokens(head, kernel):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, FRAMES, HEIGHT * WIDTH, HEADS, head))
    matrix = affine(rng, FRAMES)
    expected = by_pairs(q, k, v, matrix)
    # numbers near 1 through some hundred fp32 products
    np.testing.assert_allclose(attended(q, k, v, matrix, Kernel(kernel)), expected, atol=1e-5)
    identity = np.tile(np.eye(4), (FRAMES, 1, 1))
    assert np.abs(by_pairs(q, k, v, identity) - expected).max() > 0.1  # the matrices matter


def test_another_world_changes_nothing_and_another_camera_does():
    rng = np.random.default_rng(1)
    q, k, v = rng.normal(size=(3, FRAMES, HEIGHT * WIDTH, HEADS, 16))
    matrix, world = affine(rng, FRAMES), affine(rng)
    out = attended(q, k, v, matrix)
    # P G and its inverse carry the rounding of G: some 1e-7 of numbers near 1, through a softmax
    np.testing.assert_allclose(attended(q, k, v, matrix @ world), out, atol=3e-5)
    one = np.concatenate([matrix[:1] @ world, matrix[1:]])
    assert np.abs(attended(q, k, v, one) - out).max() > 0.1


def test_equal_matrices_leave_attention_by_places_in_the_picture_alone():
    rng = np.random.default_rng(2)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in rng.normal(size=(3, FRAMES, HEIGHT * WIDTH, HEADS, 8)))
    identity = jnp.eye(4)[None]
    angles = patch_angles(HEIGHT, WIDTH, 8)[None]
    turned = [transform(x, identity, -angles).reshape(1, -1, HEADS, 8) for x in (q, k, v)]
    expected = transform(attend(*turned).reshape(v.shape), identity, angles)
    same = affine(rng)
    np.testing.assert_allclose(attended(q, k, v, np.stack([same] * FRAMES)), expected, atol=2e-5)  # as above


def test_inverse_is_numpys_in_fp64():
    matrix = affine(np.random.default_rng(3), 5, 2)
    expected = np.linalg.inv(matrix)
    found = inverse_affine(jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())  # rounding of fp32
