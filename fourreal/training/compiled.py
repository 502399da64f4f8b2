"""The training step as a compiled program: on the ambient mesh, its state donated, with its cost in one line."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fourreal.host.folders import in_bucket
from fourreal.parallel import layout
from fourreal.parallel.overlap import Overlap, compiler_options
from fourreal.training.config import TrainConfig
from fourreal.training.cost import compiled_bytes, jaxpr_flops, matmul_flops
from fourreal.training.state import State
from fourreal.training.step import fusion_of, input_axes, step_inputs


@contextlib.contextmanager
def kept_programs(folder: Path) -> Iterator[None]:
    """Inside, JAX keeps what it compiles for accelerators in a folder, so that a resumed run need not compile again.

    Programs for a CPU are those of one machine and stay out. A folder that the user has set (JAX_COMPILATION_CACHE_DIR) stays.
    """
    if jax.config.jax_compilation_cache_dir is not None or jax.default_backend() == "cpu":
        yield
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    own = jax.config.jax_persistent_cache_enable_xla_caches
    if in_bucket(folder):
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # XLA's own know only disks
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", None)
        jax.config.update("jax_persistent_cache_enable_xla_caches", own)


class CompiledSteps:
    """The training step on the ambient mesh, compiled once for each shape of a batch; the state is donated.

    It takes this process's `part`, (which, of how many), of every batch. `plain` is the same step with nothing computed again.
    """

    def __init__(
        self,
        train_step: Callable,
        config: TrainConfig,
        part: tuple[int, int] = (0, 1),
        plain: Callable | None = None,
    ):
        self.function, self.config, self.part, self.plain = train_step, config, part, plain
        self.lead = layout.reading_lead(fusion_of(config).lead, config.data.batch_size)
        self._programs: dict[tuple, tuple[jax.stages.Compiled, int]] = {}
        self._costs: dict[tuple[int, ...], tuple[int, int]] = {}

    def inputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The placed shapes of the whole batch's arrays that go into a step."""
        inputs = step_inputs(batch)
        return layout.batch_shapes(inputs, input_axes(self.config, inputs), self.part[1], self.lead)

    def program(self, state: State, batch: dict[str, Any]) -> tuple[jax.stages.Compiled, int]:
        """The compiled step for such a batch, and its FLOPs."""
        shapes = self.inputs(batch)
        leaves, structure = jax.tree.flatten(shapes)
        key = (structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in self._programs:
            traced = trace_step(self.function, state, shapes, self.config.overlap)
            self._programs[key] = traced.lower().compile(), jaxpr_flops(traced.jaxpr.jaxpr)
        return self._programs[key]

    def cost(self, state: State, batch: dict[str, Any]) -> tuple[int, int]:
        """(tokens, FLOPs of the model) of such a batch."""
        key = batch["frames"].shape
        if key not in self._costs:
            shapes = self.inputs(batch)
            flops = matmul_flops(self.plain, state, shapes) if self.plain else self.program(state, batch)[1]
            self._costs[key] = tokens_of(self.config, shapes["frames"]), flops
        return self._costs[key]

    def __call__(self, state: State, batch: dict[str, Any]) -> tuple[State, dict[str, jax.Array]]:
        compiled, _ = self.program(state, batch)
        return compiled(state, layout.put_batch(step_inputs(batch), self.inputs(batch), self.part))


def tokens_of(config: TrainConfig, frames: jax.ShapeDtypeStruct) -> int:
    """Tokens of a batch with such frames: pixels, or latents."""
    patch = config.model.patch[1]
    count, views, times, height, width, _ = frames.shape
    if frames.dtype == np.uint8:
        times, height, width, _ = config.codec.shape(times, height, width)
    return count * views * times * (height // patch) * (width // patch)


def trace_step(
    train_step: Callable, state: State, batch: dict[str, Any], overlap: Overlap = "chip"
) -> jax.stages.Traced:
    """The traced step for a placed state, or its shapes, and batches of such shapes; the state is donated."""
    everywhere = NamedSharding(jax.sharding.get_mesh(), P())
    jitted = jax.jit(
        train_step,
        donate_argnums=0,
        compiler_options=compiler_options(overlap),
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), everywhere),
    )
    return jitted.trace(state, batch)


def describe_cost(steps: CompiledSteps, state: State, batch: dict[str, Any]) -> str:
    """Parameters, tokens, FLOPs a step and compiled memory, in one line."""
    compiled, flops = steps.program(state, batch)
    size = {part: sum(leaf.size for leaf in jax.tree.leaves(state[part])) for part in ("params", "frozen")}
    memory = compiled_bytes(compiled)["total"]
    tokens = tokens_of(steps.config, steps.inputs(batch)["frames"])
    return (
        f"{size['params'] / 1e6:.2f} M parameters train, {size['frozen'] / 1e6:.2f} M are frozen; {tokens} tokens and "
        f"{flops / 1e9:.1f} GFLOP a step; {memory / 2**20:.0f} MiB of memory a device"
    )
