"""Encoding and decoding a grid in pieces, for codecs that take seconds (`Codec.in_pieces`): bounded memory, and progress.

A program codes as many pieces as there are devices, one on each; what no one asked for is not coded.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Bool, Float, Shaped, UInt8
from tqdm import tqdm

from fourreal.checkpoints.weights import read_placed
from fourreal.codecs import Codec


class PieceCoder:
    """A codec on a mesh: its parameters are on every device, its results on every host."""

    def __init__(self, codec: Codec, mesh: Mesh):
        self.codec, self.mesh = codec, mesh
        whole = NamedSharding(mesh, P())
        self.parameters = jax.tree.map(lambda x: read_placed(np.asarray(x), whole, x.dtype), codec.parameters())
        self.programs = {what: jax.jit(getattr(codec, what), out_shardings=whole) for what in ("encode", "decode")}

    def encode(
        self, frames: UInt8[np.ndarray, "v t h w 3"], given: Bool[np.ndarray, "v u"]
    ) -> Float[np.ndarray, "1 v u y x c"]:
        """The latents of the pieces that hold a given one; zeros for the others."""
        views, times, height, width, _ = frames.shape
        shape = (1, views, *self.codec.shape(times, height, width))
        return self._code("encode", frames[None], np.zeros(shape, np.float32), given)

    def decode(
        self,
        latents: Float[jax.Array, "1 v u y x c"],
        frames: UInt8[np.ndarray, "v t h w 3"],
        given: Bool[np.ndarray, "v t"],
    ) -> UInt8[np.ndarray, "1 v t h w 3"]:
        """`frames` with the pieces in it decoded that are not given as a whole."""
        return self._code("decode", latents, frames[None].copy(), ~given)

    def _code(self, what: str, x: Any, into: np.ndarray, wanted: Bool[np.ndarray, "v t"]) -> np.ndarray:
        """`into` with the codec's result in the wanted pieces of one grid `x`."""
        pieces, into_pieces = self.codec.pieces(x), self.codec.pieces(into)
        chosen = np.flatnonzero(self.codec.pieces(wanted[None]).any(axis=(1, 2)))
        program, said = self.programs[what], f"{what[:-1]}ing"
        if idle := max(0, self.mesh.size - len(chosen)):
            said += f", {idle} of {self.mesh.size} devices idle"
        with jax.set_mesh(self.mesh):
            code_some(lambda some: program(self.parameters, some), pieces, into_pieces, chosen, self.mesh.size, said)
        return self.codec.joined(into_pieces, 1, into.shape[1])


def code_some(
    code: Callable[[Any], jax.Array],
    pieces: Shaped[Any, "n *rest"],
    into: Shaped[np.ndarray, "n *out"],
    chosen: np.ndarray,
    at_once: int,
    said: str,
) -> None:
    """Puts code(pieces) into the chosen places of `into`, so many at once, with a bar on stderr where that takes several turns.

    All turns are of one shape, so that one program is compiled: the last one repeats some of those before it.
    """
    size = min(at_once, len(chosen))
    starts = [min(start, len(chosen) - size) for start in range(0, len(chosen), max(size, 1))]
    silent = len(starts) < 2 or jax.process_index() > 0
    with tqdm(total=len(chosen), desc=said, unit="piece", leave=False, dynamic_ncols=True, disable=silent) as bar:
        for start in starts:
            some = chosen[start : start + size]
            into[some] = np.asarray(code(pieces[some]))
            bar.update(start + size - bar.n)
