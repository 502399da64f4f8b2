"""Where every parameter lives on the mesh: modules claim their parameters, each with the axes that cut it.

    class CameraRays(nnx.Module):
        layout = {"embed.kernel": P(None, FSDP), "embed.bias": P()}     path below the module -> axes
        group = "conditions"                                            what it trains with, see `training/state.py`
        stacked = ("blocks",)                                           submodules whose parameters have a leading layer axis

Parameters, and with them optimizer and average, are cut over fsdp and grid jointly, along an axis of their width; heads and
hidden units over tensor. Stacked layers keep their leading axis whole. Small vectors are everywhere. A parameter that no module
claims is an error. A batch is cut like the activations of its kind, see `activations.py`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from fourreal.errors import UserError
from fourreal.parallel import activations
from fourreal.parallel.mesh import make_mesh, repeats

FSDP, TENSOR = ("fsdp", "grid"), "tensor"


class Claim(NamedTuple):
    """What a module says of one of its parameters."""

    spec: P
    """the mesh axes that cut it"""
    group: str
    """what it trains with: base, attention, lora, sync, conditions"""
    dtype: Any = jnp.float32
    """what its module computes with, in which it is held where it does not train"""


Table = Mapping[str, Claim]  # by path, joined by dots


def claims(module: nnx.Module, path: str = "", stacked: bool = False, group: str = "base") -> dict[str, Claim]:
    """What a module and the modules in it claim, by path."""
    group = getattr(type(module), "group", group)
    found = {}
    for name, spec in getattr(type(module), "layout", {}).items():
        found[path + name] = Claim(P(None, *spec) if stacked else spec, group)
    for name, child in vars(module).items():
        if isinstance(child, nnx.Module):
            layers = stacked or name in getattr(type(module), "stacked", ())
            found |= claims(child, f"{path}{name}.", layers, group)
    return found


def parameter_table(model: nnx.Module) -> Table:
    """The claims on every parameter of a model. Raises TypeError for a parameter that no module claims."""
    found, dtypes, table = claims(model), matmul_dtypes(model), {}
    for path in traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(model, nnx.Param)), sep="."):
        if path not in found:
            raise TypeError(
                f"no module claims the parameter {path}: add it to the `layout` of the module that makes it"
            )
        table[path] = found[path]._replace(dtype=dtypes.get(path, jnp.float32))
    return table


def matmul_dtypes(module: nnx.Module, path: str = "") -> dict[str, Any]:
    """What the linear maps in a module compute with, by their parameters' paths: these see their parameters in no other.

    A module of another kind names those of its own in `cast`, which it casts to its `dtype` wherever it uses them.
    """
    linear = ("kernel", "bias", *getattr(type(module), "layout", ())) if isinstance(module, nnx.Linear) else ()
    if names := getattr(type(module), "cast", linear):
        return {f"{path}{name}": jnp.dtype(module.dtype or jnp.float32) for name in names}
    children = ((name, child) for name, child in vars(module).items() if isinstance(child, nnx.Module))
    return {at: dtype for name, child in children for at, dtype in matmul_dtypes(child, f"{path}{name}.").items()}


def gather(module: nnx.Module | None, dtype: jnp.dtype | None = None) -> nnx.Module | None:
    """A module with its kernels whole over fsdp and grid, as it needs them, in `dtype` or their own; stacked layers stay cut.

    Backward sums their gradients straight into the parts, in `dtype`, in which the matmuls return them: a cast before the sum
    would not change the program, and matmuls that return fp32 would move twice the bytes. Left alone, XLA may rather move
    activations, or cut the matmuls.
    """
    if module is None or activations.axis_size(*FSDP) == 1:
        return module
    table, stacked = claims(module), getattr(type(module), "stacked", ())

    def whole(path: tuple, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        if name.split(".")[0] in stacked or FSDP not in (cut := table[name].spec):
            return leaf
        return _gather(leaf if dtype is None else leaf.astype(dtype), cut)

    return jax.tree_util.tree_map_with_path(whole, module)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(x: jax.Array, cut: P) -> jax.Array:
    """A parameter whose parts lie as `cut` says, whole over fsdp and grid.

    Over one after the other, and so are gradients summed: over all chips of a three-dimensional torus at once, XLA's compiler
    for TPUs makes a gather, or a sum into parts, an all-reduce of the whole.
    """
    return _cut_over(_halfway(x, cut), cut, None)


def _gather_forward(x, cut):
    return _gather(x, cut), None


def _gather_backward(cut, _, gradient):
    return (_cut_over(_halfway(gradient, cut), cut, FSDP),)


_gather.defvjp(_gather_forward, _gather_backward)


def _halfway(x: jax.Array, cut: P) -> jax.Array:
    """`x` cut over fsdp alone, where grid cuts, too; the barrier keeps XLA from joining this step with the next."""
    if min(map(activations.axis_size, FSDP)) == 1:
        return x
    return jax.lax.optimization_barrier(_cut_over(x, cut, "fsdp"))


def _cut_over(x: jax.Array, cut: P, axes: tuple[str, ...] | str | None) -> jax.Array:
    """`x` cut as `cut` says, but over `axes` where that says fsdp and grid."""
    return jax.lax.with_sharding_constraint(x, P(*(axes if axis == FSDP else axis for axis in cut)))


def check_widths(config: Any) -> None:
    """Raises UserError where the ambient mesh does not cut a model's `width` and `mlp_width` into equal parts."""
    fsdp, grid, tensor = (activations.axis_size(axis) for axis in (*FSDP, TENSOR))
    for name in ("width", "mlp_width"):
        if (width := getattr(config, name)) % (fsdp * grid) or width % tensor:
            raise UserError(
                f"mesh.fsdp {fsdp} x mesh.grid {grid} and mesh.tensor {tensor} must divide model.{name} {width}: "
                "give less of them and more of data"
            )


def shardings(tree: Any, table: Table) -> Any:
    """Where parameters live on the ambient mesh, or anything whose paths end in theirs, as a training state does."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        mesh = make_mesh(devices=jax.devices()[:1])

    def sharding(path: tuple, _: Any) -> NamedSharding:
        names = [str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey)]
        ends = (".".join(names[start:]) for start in range(len(names)))
        return NamedSharding(mesh, next((table[end].spec for end in ends if end in table), P()))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def placed_shapes(tree: Any, table: Table) -> Any:
    """The shapes of such a tree with their shardings."""
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, shardings(tree, table))


def jit_placed(function: Callable[..., Any], table: Table, *arguments: Any, donate: bool = False) -> Callable[..., Any]:
    """`function` jitted, so that the parameters (or state) it returns for such arguments are made where they live.

    `donate`: the first argument may become part of what it returns.
    """
    places = shardings(jax.eval_shape(function, *arguments), table)
    return jax.jit(function, out_shardings=places, donate_argnums=(0,) if donate else ())


def batch_shapes(part: Any, axes: Any, parts: int, lead: int) -> Any:
    """Shapes and shardings of the whole batch's arrays, from one of its equal parts; see `activations.spec`."""
    mesh = jax.sharding.get_mesh()

    def shape(x: np.ndarray, axes: int) -> jax.ShapeDtypeStruct:
        whole = jax.ShapeDtypeStruct((len(x) * parts, *x.shape[1:]), x.dtype)
        sharding = NamedSharding(mesh, activations.spec(whole, lead, axes=axes))
        return jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=sharding)

    return jax.tree.map(shape, part, axes)


def reading_lead(lead: int, size: int) -> int:
    """How a batch of `size` examples is cut as it is read, see `activations.spec`: as the step cuts it, with `lead`, or by
    examples alone, where processes that hold other views of the same examples would each make all of these.
    """
    divided = repeats(size, 1, jax.sharding.get_mesh().shape) == 1
    return 1 if divided and share_of_batch(1, size)[1] > share_of_batch(lead, size)[1] else lead


def share_of_batch(lead: int, size: int) -> tuple[int, int]:
    """(which, of how many): the part of a batch of `size` examples that this process's devices hold, in equal parts.

    Processes that hold other views of the same examples have the same part. `lead`: see `activations.spec`.
    """
    axes = activations.spec(jax.ShapeDtypeStruct((size, 1), bool), lead)[0]
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


def put_batch(batch: Any, shapes: Any, part: tuple[int, int]) -> Any:
    """The arrays of a whole batch from this process's part of it; the batch may hold more than `shapes` asks for."""
    return jax.tree.map(lambda shape, x: put(x, shape.sharding, part), shapes, batch)


def put(x: np.ndarray, sharding: NamedSharding, part: tuple[int, int] = (0, 1)) -> jax.Array:
    """An array of the host on the devices, of which none gets more than its share; `x` may be one of equal parts of it."""
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    which, parts = part

    def share(index: tuple[slice, ...]) -> np.ndarray:
        start, end, _ = index[0].indices(len(x) * parts)
        return x[(slice(start - which * len(x), end - which * len(x)), *index[1:])]

    return jax.make_array_from_callback((len(x) * parts, *x.shape[1:]), sharding, share)
