"""Where every parameter lives on the mesh: one table from its path to the axes that cut it.

Parameters, and with them optimizer and average, are cut over fsdp and grid jointly, along an axis of their width; heads and
hidden units over tensor. Scanned layers keep their leading axis whole. Small vectors are everywhere. A batch is cut like the
activations of its kind, see `activations.py`.
"""

import functools
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fourreal.parallel import activations
from fourreal.parallel.mesh import LEAD, make_mesh

if TYPE_CHECKING:
    from fourreal.models.video_dit import VideoDiTConfig

FSDP, TENSOR = ("fsdp", "grid"), "tensor"
ROOTS = ("base", "sync", "sigma_projection")  # where the paths of parameters begin
SCANNED = ("base.blocks", "sync")  # where those of a layer begin

# Pattern of the path, joined by dots -> the axes of the parameter. The first that matches counts.
TABLE = (
    (r"base\.blocks\.\w*attention\.(query|key|value)\.kernel", P(None, FSDP, TENSOR)),
    (r"base\.blocks\.\w*attention\.(query|key|value)\.bias", P(None, TENSOR)),
    (r"base\.blocks\.\w*attention\.(query|key)_norm\.scale", P(None, TENSOR)),
    (r"base\.blocks\.\w*attention\.out\.kernel", P(None, TENSOR, FSDP)),
    (r"base\.blocks\.mlp\.in_\.kernel", P(None, FSDP, TENSOR)),
    (r"base\.blocks\.mlp\.in_\.bias", P(None, TENSOR)),
    (r"base\.blocks\.mlp\.out\.kernel", P(None, TENSOR, FSDP)),
    (r"base\.blocks\.(\w*attention|mlp)\.out\.bias", P()),
    (r"base\.blocks\.cross_norm\.(scale|bias)", P()),
    (r"base\.blocks\.modulation", P()),
    (r"sync\.(mod_linear\.)?kernel", P(None, None, FSDP, None, TENSOR)),
    (r"sync\.(mod_linear\.)?(bias|modulation)", P()),
    (r"sigma_projection\.linear\.kernel", P(FSDP, None)),
    (r"base\.((patch|hint|camera)_embed|(time|text)_embed\.in_)\.kernel", P(None, FSDP)),
    (r"base\.(time_projection|(time|text)_embed\.out|head\.(out|copy_gate))\.kernel", P(FSDP, None)),
    (r"(base|sigma_projection)\.[\w.]+\.bias", P()),
    (r"base\.(context|given|head\.modulation)", P()),
)


def parameter_spec(path: str) -> P:
    """The axes of the parameter with such a dotted path; raises ValueError for one that the table does not know."""
    for pattern, axes in TABLE:
        if re.fullmatch(pattern, path):
            return axes
    raise ValueError(f"no row of the layout table matches the parameter {path}: add one to fourreal/parallel/layout.py")


def gather_layer(layer: tuple, dtype: jnp.dtype) -> tuple:
    """A layer's parameters, (block,) or (block, sync), whole over fsdp and grid and with kernels in `dtype`, as it needs them.

    Backward sums their gradients straight into the parts, in `dtype`, in which the matmuls return them: a cast before the sum
    would not change the program, and matmuls that return fp32 would move twice the bytes. Left alone, XLA may rather move
    activations, or cut the matmuls.
    """
    if activations.axis_size(*FSDP) == 1:
        return layer

    def gather(path: tuple, leaf: jax.Array) -> jax.Array:
        names = jax.tree_util.keystr(path[1:], simple=True, separator=".").removesuffix(".value")
        cut = P(*parameter_spec(f"{SCANNED[path[0].idx]}.{names}")[1:])  # without the axis of the layers
        return _gather(leaf.astype(dtype), cut) if FSDP in cut else leaf

    return jax.tree_util.tree_map_with_path(gather, layer)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x: jax.Array, cut: P) -> jax.Array:
    """A parameter whose parts lie as `cut` says, whole over fsdp and grid."""
    return jax.lax.with_sharding_constraint(x, P(*(None if axis == FSDP else axis for axis in cut)))


def _gather_forward(x, cut):
    return _gather(x, cut), None


def _gather_backward(cut, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, cut),)


_gather.defvjp(_gather_forward, _gather_backward)


def check_widths(config: "VideoDiTConfig") -> None:
    """Raises ValueError where the ambient mesh does not cut the widths of a model into equal parts."""
    fsdp, grid, tensor = (activations.axis_size(axis) for axis in (*FSDP, TENSOR))
    for name in ("width", "mlp_width"):
        if (width := getattr(config, name)) % (fsdp * grid) or width % tensor:
            raise ValueError(
                f"mesh.fsdp {fsdp} x mesh.grid {grid} and mesh.tensor {tensor} must divide model.{name} {width}: "
                "give less of them and more of data"
            )


def shardings(tree: Any) -> Any:
    """Where parameters live on the ambient mesh, or anything whose paths end in theirs, as a training state does."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        mesh = make_mesh(devices=jax.devices()[:1])

    def sharding(path: tuple, _: Any) -> NamedSharding:
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        start = next((place for place, name in enumerate(names) if name in ROOTS), None)
        return NamedSharding(mesh, P() if start is None else parameter_spec(".".join(names[start:])))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def placed_shapes(tree: Any) -> Any:
    """The shapes of such a tree with their places."""
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, shardings(tree))


def jit_placed(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """`function` jitted, so that the parameters (or state) it returns for such arguments are made where they live."""
    return jax.jit(function, out_shardings=shardings(jax.eval_shape(function, *arguments)))


def batch_shapes(part: dict[str, np.ndarray], kind: str, parts: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and places of the whole batch's arrays, from one of its equal parts; `kind` is grid or clip."""
    mesh = jax.sharding.get_mesh()

    def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
        whole = jax.ShapeDtypeStruct((len(x) * parts, *x.shape[1:]), x.dtype)
        at = NamedSharding(mesh, activations.spec(whole, LEAD[kind] if x.ndim > 1 else 1))
        return jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=at)

    return {name: shape(x) for name, x in part.items()}


def share_of_batch(kind: str, size: int) -> tuple[int, int]:
    """(which, of how many): the part of a batch of `size` examples that this process's devices hold, in equal parts.

    Processes that hold other views of the same examples have the same part.
    """
    axes = activations.spec(jax.ShapeDtypeStruct((size, 1), bool), LEAD[kind])[0]
    sharding = NamedSharding(jax.sharding.get_mesh(), P(axes))
    rows = [index[0].indices(size)[:2] for index in sharding.addressable_devices_indices_map((size,)).values()]
    return smallest_part(min(start for start, _ in rows), max(end for _, end in rows), size)


def smallest_part(first: int, end: int, size: int) -> tuple[int, int]:
    """(which, of how many): the smallest of equal parts of `size` rows that holds rows `first` to `end`.

    On a torus of chips a host's rows may have gaps, and lie across the border of two parts.
    """
    for parts in range(size // (end - first), 1, -1):
        rows = size // parts
        if size % parts == 0 and first // rows == (end - 1) // rows:
            return first // rows, parts
    return 0, 1


def put_batch(
    batch: dict[str, np.ndarray], shapes: dict[str, jax.ShapeDtypeStruct], part: tuple[int, int]
) -> dict[str, jax.Array]:
    """The arrays of a whole batch from this process's part of it."""
    return {name: put(batch[name], shape.sharding, part) for name, shape in shapes.items()}


def put(x: np.ndarray, sharding: NamedSharding, part: tuple[int, int] = (0, 1)) -> jax.Array:
    """An array of the host on the devices, of which none gets more than its share; `x` may be one of equal parts of it."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    which, parts = part

    def share(index: tuple[slice, ...]) -> np.ndarray:
        start, end, _ = index[0].indices(len(x) * parts)
        return x[(slice(start - which * len(x), end - which * len(x)), *index[1:])]

    return jax.make_array_from_callback((len(x) * parts, *x.shape[1:]), sharding, share)
