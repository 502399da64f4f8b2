"""What a sampler is, the noise levels, and the loop: one `lax.scan` with one evaluation of the model a row.

    x_sigma = (1 - sigma) x0 + sigma eps        levels 1 = sigma_0 > sigma_1 > ... > sigma_N = 0

A sampler turns levels into rows of coefficients on the host, in fp64, so that the compiled loop holds no branch. A denoiser
returns the known frame as x0 in a given cell. Each update here is

    x' = x0 + (sigma' / sigma) (x - x0) + terms in differences of x0

so a cell whose x0 does not change stays on the straight path from its noise to x0; at sigma' = 0, where a sampler adds no
further terms, it is x0 bit for bit.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fourreal.diffusion.flow import shift_sigma
from fourreal.errors import UserError
from fourreal.serialize import Kind

State = Any
"""a NamedTuple of the sampler's own, with a field `x`"""


class Sampler(Kind):
    """One way from noise to x0; subclasses are frozen dataclasses with a `kind`."""

    family: ClassVar[str] = "sampler"

    def rows(self, levels: Float[np.ndarray, "steps+1"]) -> dict[str, np.ndarray]:
        """One row an evaluation, float32: `sigma`, where the model is evaluated, and the sampler's coefficients."""
        raise NotImplementedError

    def init(self, noise: Float[Array, "*cells h w c"]) -> State:
        """The state at the first level; `state.x` is always what is evaluated next."""
        raise NotImplementedError

    def step(
        self, state: State, x0: Float[Array, "*cells h w c"], row: dict[str, jax.Array], key: jax.Array | None
    ) -> State:
        """Takes in x0, the model's answer to `state.x` at `row["sigma"]`. `key` is the row's own, for stochastic samplers."""
        raise NotImplementedError

    def finish(self, state: State) -> Float[Array, "*cells h w c"]:
        """x0, after the last row."""
        return state.x


def noise_levels(steps: int, shift: float = 1.0, floor: float = 0.0) -> Float[np.ndarray, "steps+1"]:
    """sigma from 1 to 0 in `steps` steps, evenly spaced before the shift.

    No level but the final 0 is below `floor` (SIGMA_FLOOR for x0-models, which were trained no lower): where the last one would
    be, the levels before 0 are spaced from 1 to `floor`. Raises UserError for less than one step or a floor outside [0, 1).
    """
    if steps < 1 or not 0 <= floor < 1:
        raise UserError(
            f"{steps} steps, floor {floor}: expected at least 1 step and a floor from 0 up to, not including, 1"
        )
    levels = shift_sigma(np.linspace(1.0, 0.0, steps + 1), shift).astype(np.float32)
    if levels[-2] < np.float32(floor):
        unshifted = floor / (shift - (shift - 1.0) * floor)
        levels[:-1] = shift_sigma(np.linspace(1.0, unshifted, steps), shift)
    return levels


def integrate(
    denoise: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
    noise: Float[Array, "*cells h w c"],
    levels: Float[np.ndarray, "steps+1"],
    sampler: Sampler,
    key: jax.Array | None = None,
) -> Float[Array, "*cells h w c"]:
    """Follows the flow of `denoise(x, sigma, row) -> x0` from `noise`, which is at `levels[0]`, to x0.

    `row` is the index of the evaluation, to pick what changes along the way (guidance weights). `levels` are known when the
    program is built. Raises UserError unless they fall, at most from 1 and at least to 0.
    """
    levels = np.asarray(levels)
    if levels.ndim != 1 or len(levels) < 2 or levels[0] > 1 or levels[-1] < 0 or not (np.diff(levels) < 0).all():
        raise UserError(f"noise levels {levels.tolist()}: expected at least two that fall, within 1 and 0")
    rows = jax.tree.map(jnp.asarray, sampler.rows(levels))

    def body(state: State, inputs: tuple[dict[str, jax.Array], jax.Array]) -> tuple[State, None]:
        row, index = inputs
        x0 = denoise(state.x, row["sigma"], index)
        return sampler.step(state, x0, row, None if key is None else jax.random.fold_in(key, index)), None

    state, _ = jax.lax.scan(body, sampler.init(noise), (rows, jnp.arange(len(rows["sigma"]))))
    return sampler.finish(state)
