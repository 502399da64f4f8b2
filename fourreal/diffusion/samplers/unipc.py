"""UniPC of order 2 (arXiv 2302.04867): a multistep predictor, corrected by the evaluation that the next step needs anyway.

On the flow's path x_sigma = (1 - sigma) x0 + sigma eps, in lambda = log((1 - sigma) / sigma), with the model's x0 as what is
predicted, the paper's B2(h) = e^h - 1, and m_i the answer at sigma_i to the predicted y_i:

    h = lambda_{i+1} - lambda_i,   r = (lambda_{i-1} - lambda_i) / h,   a = sigma_{i+1} / sigma_i
    e_{i+1} = m_i + a (x_i - m_i)                                      Euler's step, exact if x0 did not change
    y_{i+1} = e_{i+1} + (1 - a) (m_{i-1} - m_i) / (2 r)                                           UniP, evaluated
    x_{i+1} = e_{i+1} + (1 - a) [rho (m_{i-1} - m_i) / r + rho' (m_{i+1} - m_i)]                  UniC

where rho + rho' = b1 and r rho + rho' = b2, with b1 = 1 / (1 - e^-h) - 1 / h and b2 = 1 / (1 - e^-h) - 2 b1 / h. The first step
has no m_{i-1}: order 1, rho = 0, rho' = 1/2. The last step is Euler's and ends at m_{N-1}. At sigma = 1 lambda is minus
infinity; the coefficients are their limits, in which the second step does without m_{i-1}, too.

A row corrects the state at sigma_i by m_i, then predicts sigma_{i+1}: N evaluations for N steps.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fourreal.diffusion.samplers.base import Sampler


class UniPCState(NamedTuple):
    x: jax.Array
    """predicted, at the level of the next evaluation"""
    euler: jax.Array
    """Euler's step to that level"""
    x0: jax.Array
    """the evaluation before"""
    change: jax.Array
    """what was to be added to `x0` to have the one before that"""


@dataclasses.dataclass(frozen=True)
class UniPC(Sampler):
    """Order 2 at one evaluation a step: N evaluations for N steps."""

    kind: ClassVar[str] = "unipc"

    def rows(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        sigma = np.asarray(levels, np.float64)
        steps = len(sigma) - 1
        with np.errstate(divide="ignore"):
            half_log_snr = np.log1p(-sigma) - np.log(sigma)  # lambda: -inf at 1 to inf at 0
        ratio = sigma[1:] / sigma[:-1]
        # One row an evaluation: how it corrects the step that led to it, and how the next one is predicted.
        rows = {name: np.zeros(steps) for name in ("correct_change", "correct_new", "predict_change")}
        for i in range(steps - 1):  # the step from sigma_i to sigma_{i+1}; the last one is Euler's
            h = half_log_snr[i + 1] - half_log_snr[i]
            rows["correct_new"][i + 1] = (1 - ratio[i]) / 2
            if i > 0:
                r = (half_log_snr[i - 1] - half_log_snr[i]) / h
                b1 = -1 / np.expm1(-h) - 1 / h
                b2 = -1 / np.expm1(-h) - 2 * b1 / h
                rho = (b1 - b2) / (1 - r)
                rows["predict_change"][i] = (1 - ratio[i]) / 2 / r
                rows["correct_change"][i + 1] = (1 - ratio[i]) * rho / r
                rows["correct_new"][i + 1] = (1 - ratio[i]) * (b1 - rho)
        return {k: v.astype(np.float32) for k, v in {"sigma": sigma[:-1], "ratio": ratio, **rows}.items()}

    def init(self, noise: jax.Array) -> UniPCState:
        nothing = jnp.zeros_like(noise)
        return UniPCState(noise, noise, nothing, nothing)

    def step(
        self, state: UniPCState, x0: jax.Array, row: dict[str, jax.Array], key: jax.Array | None = None
    ) -> UniPCState:
        corrected = state.euler + row["correct_change"] * state.change + row["correct_new"] * (x0 - state.x0)
        euler = x0 + row["ratio"] * (corrected - x0)
        change = state.x0 - x0
        return UniPCState(euler + row["predict_change"] * change, euler, x0, change)
