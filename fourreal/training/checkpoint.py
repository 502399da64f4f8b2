"""Checkpoints of a run through orbax: saved asynchronously, the newest few kept, restored onto the target's shardings.

The state holds step, trained parameters, average and optimizer. A frozen base never changes, so it is saved once, apart.
"""

import dataclasses
import logging
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from fourreal.training.state import State

KEPT = 2  # newest checkpoints that stay


@dataclasses.dataclass
class Checkpoints:
    """The checkpoints of one run folder."""

    folder: Path

    def __post_init__(self):
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every save
        self._folder = Path(self.folder).absolute()
        self._manager = ocp.training.Checkpointer(
            self._folder / "checkpoints",
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """Number of the newest complete checkpoint: the steps done."""
        newest = self._manager.latest
        return None if newest is None else newest.step

    def save(self, step: int, state: State) -> None:
        """Starts to save the state after `step` steps; returns as soon as the arrays may change again."""
        if step == self.latest():
            return
        state = dict(state)
        frozen = state.pop("frozen")
        if frozen and self.latest() is None:
            ocp.save(self._folder / "frozen", frozen, overwrite=True)
        self._manager.save_async(step, state)

    def restore(self, shapes: State) -> State:
        """The newest state, laid out as `shapes` (a tree of `jax.ShapeDtypeStruct`, sharded or not)."""
        shapes = dict(shapes)
        frozen = shapes.pop("frozen")
        try:
            state = self._manager.load(self.latest(), shapes)
            state["frozen"] = ocp.load(self._folder / "frozen", frozen) if frozen else {}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"the checkpoint in {self.folder} does not fit this config ({' '.join(str(error).split())[:200]}): resume "
                "with the config that the run was started with"
            ) from error
        return state

    def close(self) -> None:
        """Waits for saves under way."""
        self._manager.close()


def shapes_of(state: State) -> State:
    """Shapes, types and shardings of a state."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), state)
