"""What the compiler is asked for collectives, by chip; what comes of it is in `planning/test_tpu.py`."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.parallel.overlap import OPTIONS, compiler_options


def on(monkeypatch, kind: str, devices: int = 4) -> None:
    mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(device_kind=kind)]), size=devices)
    monkeypatch.setattr(jax.sharding, "get_mesh", lambda: mesh)


@pytest.mark.parametrize(
    ("kind", "overlap", "expected"),
    [
        ("TPU v4", "chip", "fusions"),
        ("TPU v5 lite", "chip", "fusions"),
        ("TPU v5", "chip", "fusions"),
        ("TPU v5", "sparse_cores", "sparse_cores"),
        ("TPU v6 lite", "chip", "sparse_cores"),
        ("TPU v6 lite", "fusions", "fusions"),
        ("TPU v6 lite", "none", "none"),
        ("TPU7x", "chip", "sparse_cores"),
        ("NVIDIA H100 80GB HBM3", "chip", "scheduler"),
        ("NVIDIA H100 80GB HBM3", "sparse_cores", "scheduler"),
        ("NVIDIA H100 80GB HBM3", "none", "none"),
    ],
)
def test_each_chip_has_its_own_options_unless_others_are_asked_for(monkeypatch, kind, overlap, expected):
    on(monkeypatch, kind)
    assert compiler_options(overlap) == dict.fromkeys(OPTIONS[expected], True)


@pytest.mark.parametrize(("kind", "devices"), [("cpu", 8), ("NVIDIA A100", 8), ("TPU v6 lite", 1)])
def test_unknown_chips_and_a_single_device_get_none(monkeypatch, kind, devices):
    on(monkeypatch, kind, devices)
    assert compiler_options() is None and compiler_options("sparse_cores") is None


def test_compilers_of_gpus_know_their_option():
    """They share it with those of CPUs, which it does not concern; one that no compiler knows is refused."""
    double = lambda x: 2 * x  # noqa: E731
    assert jax.jit(double, compiler_options=dict.fromkeys(OPTIONS["scheduler"], True))(jnp.ones(())) == 2
    with pytest.raises(Exception, match="xla_gpu_enable_nothing"):
        jax.jit(double, compiler_options={"xla_gpu_enable_nothing": True})(jnp.ones(()))
