import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.nn.cpu import dot


def normal(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(("rows", "columns"), [(24, 96), (96, 24)])
def test_kernels_gradient_is_one_product_on_cpu_wide_and_without_a_turned_copy_of_tokens(
    rows: int, columns: int
) -> None:
    x, kernel, dy = normal(2, 3, 5, rows), normal(rows, columns, seed=1), normal(2, 3, 5, columns, seed=2)
    arrays = [jnp.float32(array) for array in (x, kernel, dy)]

    def run(x, kernel, dy):
        out, gradients = jax.vjp(dot, x, kernel)
        return out, *gradients(dy)

    program = jax.jit(run).lower(*arrays).compile()
    wanted = x @ kernel, dy @ kernel.T, np.einsum("abck,abcn->kn", x, dy)
    for found, value in zip(program(*arrays), wanted, strict=True):
        np.testing.assert_allclose(found, value, atol=2e-5)  # fp32 sums of up to 96 products near 1
    text = program.as_text()
    (product,) = (line for line in text.splitlines() if "lhs_contracting_dims={0}, rhs_contracting_dims={0}" in line)
    assert "f32[24,96]{1,0} dot" in product or "f32[96,24]{0,1} dot" in product  # two names of one order in memory
    assert f"f32[{rows},30]" not in text and f"f32[{columns},30]" not in text
