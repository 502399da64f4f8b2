"""What all tests share: exact fp32 matmuls, and a tiny model whose parameters are all away from zero.

`tiny` is a namespace of functions: `config` (a `VideoDiTConfig`), `params` (random parameters of a model), `forward` (its
jitted call), `grid` (random input). Forwards and parameters are kept over the whole test run, since compiling is what costs.
"""

import atexit
import functools
import importlib.metadata
import os
import shutil
import tempfile
from types import SimpleNamespace

# Compiling is most of the suite's time. XLA's older emitters of CPU code take half of it, code in one piece, rather than in 32
# for as many threads, four fifths. Other releases may lack either.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    flags = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

# One compilation cache of this run for all its workers, which inherit the name of the folder.
if "FOURREAL_TESTS_COMPILED" not in os.environ:
    os.environ["FOURREAL_TESTS_COMPILED"] = tempfile.mkdtemp(prefix="fourreal-compiled-")
    atexit.register(shutil.rmtree, os.environ["FOURREAL_TESTS_COMPILED"], ignore_errors=True)

import jax
import numpy as np
import pytest
from flax import nnx, traverse_util

from fourreal.cli import pass_over_libtpu
from fourreal.conditions import Cameras, Hints, Text
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import fresh_params, split_model

pass_over_libtpu()
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_num_cpu_devices", 8)  # for tests/parallel
jax.config.update("jax_compilation_cache_dir", os.environ["FOURREAL_TESTS_COMPILED"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

OPTIMIZED = ("planning",)  # folders of tests about compiled programs
SYNC_PARTS = ("sync", "sigma_projection")


def config(
    hints: bool = False, cameras: bool = False, text_width: int | None = None, conditions: tuple = (), **changes
) -> VideoDiTConfig:
    """Two layers, two heads of 12 numbers, patches of 2 x 2 pixels; the built-in conditions by name, others after them."""
    sizes = {"width": 24, "depth": 2, "heads": 2, "mlp_width": 32, "patch": (1, 2, 2), "frequency_width": 16}
    listed = [Hints()] * hints + [Cameras()] * cameras + ([] if text_width is None else [Text(width=text_width)])
    return VideoDiTConfig(**sizes | changes, conditions=(*listed, *conditions))


@functools.cache
def initial(base: VideoDiTConfig, grid: GridDiTConfig | None) -> dict:
    """The product's own initial parameters, flat by path."""
    fresh = fresh_params(base, grid or GridDiTConfig("base"), 0)
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(fresh).items()}


@functools.cache
def params(base: VideoDiTConfig, grid: GridDiTConfig | None = None, seed: int = 0, fresh_sync: bool = False) -> dict:
    """Every parameter plus noise, so that zeros hide nothing; `fresh_sync` leaves the sync layers at their initial values.

    A parameter's noise depends on its name and the seed alone, so a base has the same values in every grid model.
    """
    # One initialisation serves all fusions: only the sync parameters' shapes differ.
    flat = dict(initial(base, None))
    if grid is not None and grid.fusion not in ("none", "base"):
        flat |= {k: v for k, v in initial(base, grid).items() if k[0] in SYNC_PARTS}
    for path, value in flat.items():
        if not (fresh_sync and path[0] in SYNC_PARTS):
            noise = np.random.default_rng([seed, *".".join(path).encode()]).normal(size=value.shape)
            flat[path] = (value + noise * (0.1 if path[-1] == "kernel" else 0.3)).astype(np.float32)
    return traverse_util.unflatten_dict(flat)


@functools.cache
def forward(base: VideoDiTConfig, grid: GridDiTConfig | None = None):
    """The jitted `forward(params, x, sigma, given, context=..., hints=...)` of a grid model, or of a base on clips."""
    graph, _ = split_model(base, grid or GridDiTConfig("base"))

    def run(params, x, sigma, given=None, context="dynamic", **conditions):
        model = nnx.merge(graph, nnx.State(params))
        if grid is None:
            return model.base(x, sigma, given, conditions | {"context": context})
        return model(x, sigma, given, conditions)

    return jax.jit(run, static_argnames="context")


def random_grid(views: int, times: int, size: int = 4, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """`x`, a `sigma` for every cell, and `given` with about a third of the cells, none the same in two examples."""
    rng = np.random.default_rng(seed)
    cells = (batch, views, times)
    given = rng.random(cells) < 0.35
    given[0, 0, 0], given[0, -1, -1] = True, False
    return {
        "x": rng.normal(size=(*cells, size, size, 3)).astype(np.float32),
        "sigma": rng.uniform(0.1, 1, cells).astype(np.float32),
        "given": given,
    }


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(config=config, initial=initial, params=params, forward=forward, grid=random_grid)


@pytest.fixture(scope="session", autouse=True)
def one_device():
    """A run takes all devices that `jax.devices` gives: one here. Tests of several take `jax.local_devices`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Before fixtures of any scope: half the compile time for slower programs, since those of tests are tiny."""
    jax.config.update("jax_disable_most_optimizations", item.path.parent.name not in OPTIMIZED)
