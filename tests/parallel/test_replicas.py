"""Copies along `data` that differ are found, and whose they are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scenes_in_memory import Noise

from fourreal.data.batches import PipelineConfig
from fourreal.errors import TrainingStopped, exit_code
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.parallel.digest import digest
from fourreal.parallel.mesh import MeshConfig, make_mesh
from fourreal.parallel.replicas import make_digests, odd_processes
from fourreal.training.compiled import CompiledSteps
from fourreal.training.config import TrainConfig
from fourreal.training.loop import run
from fourreal.training.run_folder import Start

TREE = {
    "kernel": (np.arange(32, dtype=np.float32).reshape(8, 4) / 7, P(("fsdp", "grid"))),
    "bias": (np.linspace(-1, 1, 8).astype(jnp.bfloat16), P()),
    "step": (np.int32(5), P()),
}


def placed(mesh: jax.sharding.Mesh, flip: tuple[str, int] | None = None) -> dict:
    """The tree on a mesh; `flip`: the lowest bit of the first number of an array on one device."""
    found = {}
    for name, (value, spec) in TREE.items():
        sharding = NamedSharding(mesh, spec)
        shards = []
        for device, index in sharding.devices_indices_map(value.shape).items():
            shard = np.array(value[index])
            if flip == (name, device.id):
                shard.reshape(-1).view(np.uint8)[0] ^= 1
            shards.append(jax.device_put(shard, device))
        found[name] = jax.make_array_from_single_device_arrays(value.shape, sharding, shards)
    return found


def test_digests_are_those_of_what_each_device_holds():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, grid=2), jax.local_devices())
    with jax.set_mesh(mesh):
        tree = placed(mesh)
        found = np.asarray(make_digests(tree)(tree))
        assert found.shape == (2, 2, 2, 1) and not odd_processes(found)
    for place in np.ndindex(found.shape):
        device = mesh.devices[place]
        own = {name: next(s.data for s in x.addressable_shards if s.device == device) for name, x in tree.items()}
        each = [int(digest(own[name])) for name in sorted(own)]
        assert found[place] == int(digest(jnp.array(each, jnp.uint32)))


@pytest.mark.parametrize("name", TREE)
@pytest.mark.parametrize(("copies", "odd"), [(4, [5]), (2, [1, 5])])  # of two copies nobody can tell which is right
def test_one_flipped_bit_names_its_process(name, copies, odd, monkeypatch):
    mesh = make_mesh(MeshConfig(data=copies, fsdp=8 // copies), jax.local_devices())
    with jax.set_mesh(mesh):
        tree = placed(mesh, (name, 5))
        found = np.asarray(make_digests(tree)(tree))

        class AsProcesses:  # each device as a process of its own
            devices = np.vectorize(lambda device: type("Device", (), {"process_index": device.id}), otypes=[object])(
                mesh.devices
            )

        monkeypatch.setattr(jax.sharding, "get_mesh", lambda: AsProcesses)
        assert odd_processes(found) == odd


@pytest.mark.slow
def test_a_run_whose_copies_differ_stops_before_its_next_checkpoint_and_goes_on(monkeypatch, tmp_path):
    config = TrainConfig(
        name="copies",
        model=VideoDiTConfig(width=16, depth=1, heads=2, mlp_width=16, patch=(1, 2, 2), frequency_width=8),
        grid=GridDiTConfig("none"),
        data=PipelineConfig(source=Noise(), views=2, times=2, batch_size=2),
        mesh=MeshConfig(data=2),
        steps=6,
        eval_every=0,
        eval_grids=1,
        save_every=2,
        log_every=1,
        replicas_every=3,
    )
    monkeypatch.setattr(jax, "devices", lambda *_, first=jax.local_devices()[:2]: first)
    run(config, tmp_path / "good")
    step = CompiledSteps.__call__

    def spoiled(self, state, batch):
        """After step 3 the second device holds zeros."""
        state, metrics = step(self, state, batch)
        if int(state["step"]) == 3:
            bias = state["params"]["base"]["patch_embed"]["bias"]
            shards = [jnp.zeros_like(s.data) if s.device.id else s.data for s in bias.addressable_shards]
            state["params"]["base"]["patch_embed"]["bias"] = jax.make_array_from_single_device_arrays(
                bias.shape, bias.sharding, shards
            )
        return state, metrics

    monkeypatch.setattr(CompiledSteps, "__call__", spoiled)
    with pytest.raises(
        TrainingStopped, match=r"step 3: .* other parameters than the copies.*goes on after 2 steps"
    ) as raised:
        run(config, tmp_path / "run")
    assert exit_code(raised.value) == 3
    monkeypatch.setattr(CompiledSteps, "__call__", step)
    run(config, tmp_path / "run", Start(resume=True))
    for name in ("metrics.jsonl",):
        assert (tmp_path / "run" / name).read_text() == (tmp_path / "good" / name).read_text()
    with pytest.raises(TrainingStopped, match=r"step 4: "):  # before the checkpoint that nobody should trust
        monkeypatch.setattr(CompiledSteps, "__call__", spoiled)
        run(dataclasses.replace(config, replicas_every=100), tmp_path / "late")
