"""A denoiser of a few operations, nonlinear in all that a model is told, for what surrounds a model."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fourreal.diffusion.denoiser import Denoiser
from fourreal.grid import Known


def normal(*shape, seed=0) -> np.ndarray:
    """Standard normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def answer(x, sigma, given, conditions, cells=None):
    """Something of everything: frames, noise levels, marks, pictures, text, cameras."""
    out = jnp.sin(2 * x + sigma[..., None, None, None]) * jnp.where(given, 0.7, 0.2)[..., None, None, None]
    out = out + jnp.mean(x, axis=(1, 2), keepdims=True)
    if "hints" in conditions:
        out = out + jnp.tanh(conditions["hints"][..., :-1].sum(3)) * x + conditions["hints"][..., -1:].sum(3) / 5
    if "text" in conditions:
        out = out * (1 + conditions["text"].mean((1, 2)).reshape(-1, 1, 1, 1, 1, 1))
    if "cameras" in conditions:
        known = conditions["cameras"].known
        level = conditions["cameras"].K.mean((1, 2, 3)) * (1 if known is None else known)
        out = out + level.reshape(-1, 1, 1, 1, 1, 1)
    return out


class Toy(nnx.Module):
    """A model that says `answer` of what it sees."""

    def __init__(self, answer: Callable):
        self.answer, self.scale = answer, nnx.Param(jnp.ones(()))

    def __call__(self, x, sigma, given, conditions=None, cells=None):
        return self.scale * self.answer(x, sigma, given, conditions or {}, cells)


@dataclasses.dataclass(frozen=True)
class Spied:
    """A denoiser and what its model saw: (x, sigma, given) of every evaluation, in order."""

    denoiser: Denoiser
    seen: list


def toy(answer: Callable = answer, conditions: tuple = (), prediction: str = "x0") -> Denoiser:
    """A denoiser of such an answer, with the parameters `PARAMS`."""
    return Denoiser(nnx.split(Toy(answer))[0], prediction, conditions)


PARAMS = {"scale": jnp.ones(())}


def spied(answer: Callable = answer, conditions: tuple = ()) -> Spied:
    """The same, with what it saw."""
    seen = []

    def watched(x, sigma, given, conditions, cells):
        def keep(*arrays):
            seen.append([np.asarray(each) for each in arrays])

        jax.debug.callback(keep, x, sigma, given, ordered=True)
        return answer(x, sigma, given, conditions, cells)

    return Spied(toy(watched, conditions), seen)


def known_cells(shape: tuple[int, ...], seed: int = 1) -> Known:
    """About 40 % of the cells given, with frames everywhere."""
    return Known(jnp.asarray(normal(*shape)), jnp.asarray(np.random.default_rng(seed).random(shape[:3]) < 0.4))
