"""`fourreal convert wan`: from the folders that people download to a base that computes the same, and back, bit for bit."""

import dataclasses
import json
import re
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from einops import rearrange
from flax import nnx
from safetensors.numpy import load_file, save_file

from fourreal import cli
from fourreal.checkpoints.specs import describe_checkpoint
from fourreal.checkpoints.wan_files import base_config, load_base
from fourreal.checkpoints.weights import read_weights, save_weights
from fourreal.conditions import Prope, Text
from fourreal.host.streamed import Streamed, write_streamed
from fourreal.models import GridDiTConfig, VideoDiT
from fourreal.serialize import to_json
from fourreal.training.initialize import initial_params

SINGLE = "diffusion_pytorch_model.safetensors"
# of the original files -> diffusers', by hand from the two state dicts
ORIGINAL = {
    "patch_embedding.weight": "patch_embedding.weight",
    "text_embedding.0.bias": "condition_embedder.text_embedder.linear_1.bias",
    "text_embedding.2.weight": "condition_embedder.text_embedder.linear_2.weight",
    "time_embedding.0.weight": "condition_embedder.time_embedder.linear_1.weight",
    "time_embedding.2.bias": "condition_embedder.time_embedder.linear_2.bias",
    "time_projection.1.weight": "condition_embedder.time_proj.weight",
    "head.head.bias": "proj_out.bias",
    "head.modulation": "scale_shift_table",
    "blocks.1.modulation": "blocks.1.scale_shift_table",
    "blocks.1.self_attn.q.weight": "blocks.1.attn1.to_q.weight",
    "blocks.0.self_attn.o.bias": "blocks.0.attn1.to_out.0.bias",
    "blocks.0.self_attn.norm_k.weight": "blocks.0.attn1.norm_k.weight",
    "blocks.0.cross_attn.v.weight": "blocks.0.attn2.to_v.weight",
    "blocks.0.cross_attn.norm_q.weight": "blocks.0.attn2.norm_q.weight",
    "blocks.0.norm3.weight": "blocks.0.norm2.weight",
    "blocks.1.ffn.0.weight": "blocks.1.ffn.net.0.proj.weight",
    "blocks.1.ffn.2.bias": "blocks.1.ffn.net.2.bias",
}


@pytest.fixture(scope="module")
def config(wan_config) -> dict:
    return wan_config | {"_class_name": "WanTransformer3DModel"}


@pytest.fixture
def source(tmp_path, state, config) -> Path:
    """A pipeline's folder with the transformer in it."""
    folder = tmp_path / "pipeline" / "transformer"
    folder.mkdir(parents=True)
    save_file(state, folder / SINGLE)
    (folder / "config.json").write_text(json.dumps(config))
    return folder.parent


def convert(*argv) -> int:
    try:
        cli.main(["convert", "wan", *map(str, argv)])
    except SystemExit as stop:
        return stop.code
    return 0


def refusal(capsys, tmp_path, *argv) -> str:
    """The line with which a conversion is refused, having left nothing."""
    before = sorted(tmp_path.iterdir())
    assert convert(*argv, "--out", tmp_path / "refused") == 2
    assert sorted(tmp_path.iterdir()) == before
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def original_names(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors as Wan's own files name them."""
    parts = [
        (r"^condition_embedder\.(text|time)_embedder\.linear_1", r"\1_embedding.0"),
        (r"^condition_embedder\.(text|time)_embedder\.linear_2", r"\1_embedding.2"),
        (r"^condition_embedder\.time_proj", "time_projection.1"),
        ("^proj_out", "head.head"),
        ("^scale_shift_table", "head.modulation"),
        ("scale_shift_table", "modulation"),
        (r"norm2\.", "norm3."),
        (r"to_out\.0", "o"),
        ("to_", ""),
        ("attn1", "self_attn"),
        ("attn2", "cross_attn"),
        (r"ffn\.net\.0\.proj", "ffn.0"),
        (r"ffn\.net\.2", "ffn.2"),
    ]
    renamed = {}
    for name, value in state.items():
        for pattern, new in parts:
            name = re.sub(pattern, new, name)
        renamed[name] = value
    return renamed


def test_a_converted_pipeline_computes_what_diffusers_computed(wan, source, tmp_path, capsys):
    assert convert(source, "--out", tmp_path / "base", "--dtype", "float32") == 0
    assert "69 tensors used, 0 missing; zero, as Wan has none: context.table, given.vector" in capsys.readouterr().out
    spec = describe_checkpoint(tmp_path / "base")
    assert spec.grid == GridDiTConfig("base") and spec.model.conditions == (Text(width=32),)
    model = load_base(tmp_path / "base")
    clip = jnp.asarray(rearrange(wan["clip"], "b c f h w -> b f h w c"))
    for sigma in ("b", "bf"):
        with jax.default_matmul_precision("highest"):
            out = as_fp32(model)(clip, jnp.asarray(wan[f"sigma_{sigma}"]), None, {"context": None, "text": wan["text"]})
        found = rearrange(np.asarray(out), "b f h w c -> b c f h w")
        np.testing.assert_allclose(found, wan[f"output_{sigma}"], atol=2e-5, rtol=0)  # as tests/checkpoints/test_wan.py


def as_fp32(model):
    """The base with matmuls in fp32, not the bf16 that a conversion asks for."""
    plain = VideoDiT(dataclasses.replace(model.config, dtype="float32"), rngs=nnx.Rngs(0))
    nnx.update(plain, nnx.state(model))
    return plain


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_there_and_back_is_the_same_bit_for_bit_in_every_precision(kind, state, config, source, tmp_path):
    kept = {name: value.astype(np.dtype(getattr(ml_dtypes, kind, kind))) for name, value in state.items()}
    save_file(kept, source / "transformer" / SINGLE)
    assert convert(source, "--out", tmp_path / "base") == 0
    assert convert(tmp_path / "base", "--export", "--out", tmp_path / "back") == 0
    found = load_file(tmp_path / "back" / SINGLE)
    assert set(found) == set(kept)
    for name, value in kept.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name].view(np.uint8), value.view(np.uint8), err_msg=name)
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {name: written[name] for name in config if name != "rope_max_seq_len"} == {
        name: value for name, value in json.loads(json.dumps(config)).items() if name != "rope_max_seq_len"
    }


def test_original_files_and_shards_give_the_same_weights(state, config, source, tmp_path):
    assert convert(source, "--out", tmp_path / "base") == 0
    folder = tmp_path / "original"
    folder.mkdir()
    renamed = original_names(state)
    for ours, theirs in ORIGINAL.items():
        np.testing.assert_array_equal(renamed[ours], state[theirs])
    shards = {"a.safetensors": dict(list(renamed.items())[:30]), "b.safetensors": dict(list(renamed.items())[30:])}
    for name, part in shards.items():
        save_file(part, folder / name)
    listed = {name: shard for shard, part in shards.items() for name in part}
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"weight_map": listed}))
    values = {"model_type": "t2v", "dim": 48, "num_layers": 2, "num_heads": 2, "ffn_dim": 64, "in_dim": 4, "out_dim": 4}
    (folder / "config.json").write_text(json.dumps(values | {"freq_dim": 32, "text_dim": 32, "eps": 1e-6}))
    assert convert(folder, "--out", tmp_path / "same") == 0
    one, other = (read_weights(tmp_path / name) for name in ("base", "same"))
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value)
    assert describe_checkpoint(tmp_path / "base") == describe_checkpoint(tmp_path / "same")


def test_sizes_of_the_released_models_are_read_of_either_config():
    """Wan 2.1's 1.3B in diffusers' terms, Wan 2.2's 5B in its own."""
    small = base_config(
        {"attention_head_dim": 128, "num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "in_channels": 16}
        | {"out_channels": 16, "freq_dim": 256, "text_dim": 4096, "patch_size": [1, 2, 2], "image_dim": None}
    )
    assert (small.width, small.depth, small.heads, small.mlp_width, small.channels) == (1536, 30, 12, 8960, 16)
    large = base_config(
        {"model_type": "ti2v", "dim": 3072, "num_layers": 30, "num_heads": 24, "ffn_dim": 14336, "in_dim": 48}
        | {"out_dim": 48, "freq_dim": 256}
    )
    assert (large.width, large.heads, large.mlp_width, large.channels) == (3072, 24, 14336, 48)
    assert large.conditions == small.conditions == (Text(width=4096),) and large.prediction == "u"


def test_a_grid_model_starts_from_a_converted_base(source, tmp_path):
    assert convert(source, "--out", tmp_path / "base") == 0
    spec = describe_checkpoint(tmp_path / "base")
    grid = dataclasses.replace(spec, grid=GridDiTConfig("soft"), views=2, times=2)
    params, said = initial_params(grid, 0, tmp_path / "base")
    assert "fresh: sigma_projection, sync" in said
    stored = read_weights(tmp_path / "base")
    np.testing.assert_array_equal(
        params["base"]["blocks"]["mlp"]["in_"]["kernel"], stored["base.blocks.mlp.in_.kernel"]
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("proj_out.bias"), ("misses 1 tensors (proj_out.bias)", "2 layers")),
        (lambda state: state.update(extra=np.zeros(2, np.float32)), ("has unknown 1 tensors (extra)",)),
        (
            lambda state: state.update({"proj_out.bias": np.zeros(3, np.float32)}),
            ("tensor proj_out.bias has shape [3]", "expects [16]"),
        ),
        (
            lambda state: state.update({"proj_out.bias": np.full(16, np.nan, np.float32)}),
            ("the tensor proj_out.bias holds values that are not finite",),
        ),
        (
            lambda state: state.update({"proj_out.bias": np.zeros(16, np.int32)}),
            ("the tensor proj_out.bias is I32, expected F32, BF16 or F16",),
        ),
    ],
    ids=["missing", "unknown", "misshapen", "nan", "integers"],
)
def test_tensors_that_do_not_fit_are_refused_by_name_and_nothing_is_left(change, said, state, source, tmp_path, capsys):
    changed = dict(state)
    change(changed)
    save_file(changed, source / "transformer" / SINGLE)
    line = refusal(capsys, tmp_path, source)
    assert all(part in line for part in said), line


def test_files_that_do_not_fit_are_refused_by_name(state, config, source, tmp_path, capsys):
    folder = source / "transformer"
    whole = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(whole[:-100])
    assert f"{SINGLE} is broken" in refusal(capsys, tmp_path, source)
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"weight_map": {"proj_out.bias": "lost.safetensors"}}))
    assert "lacks lost.safetensors, which" in refusal(capsys, tmp_path, source)
    (folder / f"{SINGLE}.index.json").write_text(json.dumps({"weights": []}))
    assert "has no weight_map" in refusal(capsys, tmp_path, source)
    (folder / f"{SINGLE}.index.json").unlink()
    (folder / SINGLE).write_bytes(whole)
    (folder / "config.json").write_text(json.dumps(config | {"image_dim": 1280}))
    assert "image_dim is 1280: only text-to-video transformers fit" in refusal(capsys, tmp_path, source)
    (folder / "config.json").write_text(json.dumps(config | {"num_layers": None}))
    assert "num_layers is None, expected a whole number" in refusal(capsys, tmp_path, source)
    (folder / "config.json").unlink()
    assert "holds no config.json" in refusal(capsys, tmp_path, source)
    assert "exists; add --overwrite" in refusal_of_place(capsys, source, tmp_path)


def refusal_of_place(capsys, source, tmp_path) -> str:
    (tmp_path / "taken").mkdir()
    assert convert(source, "--out", tmp_path / "taken") == 2
    return capsys.readouterr().err


def test_what_the_other_side_has_not_stays_behind_only_if_it_is_named(state, source, tmp_path, capsys):
    save_file(state | {"extra": np.ones(2, np.float32)}, source / "transformer" / SINGLE)
    assert convert(source, "--out", tmp_path / "base", "--leave-out", "ext*") == 0
    assert "left out as asked: extra" in capsys.readouterr().out
    weights = read_weights(tmp_path / "base")
    weights["base.given.vector"] += 1
    save_file(weights, tmp_path / "base" / "model.safetensors")
    line = refusal(capsys, tmp_path, tmp_path / "base", "--export")
    assert "Wan has no base.given.vector, and it is not zero" in line
    assert convert(tmp_path / "base", "--export", "--out", tmp_path / "back", "--leave-out", "base.given.*") == 0


def test_a_base_gets_a_fresh_branch_for_cameras_and_goes_back_while_that_is_zero_or_left_out(source, tmp_path, capsys):
    assert convert(source, "--out", tmp_path / "base") == 0
    spec = describe_checkpoint(tmp_path / "base")
    model = dataclasses.replace(spec.model, conditions=(*spec.model.conditions, Prope()))
    spec = dataclasses.replace(spec, model=model)
    params, said = initial_params(spec, 0, tmp_path / "base")
    assert said.endswith("; fresh: base.blocks.pose.prope")
    save_weights(tmp_path / "more", params, to_json(spec), dtype="float32")
    assert convert(tmp_path / "more", "--export", "--out", tmp_path / "back") == 0
    weights = read_weights(tmp_path / "more")
    weights["base.blocks.pose.prope.kernel"][1, 0, 0] = 1e-3
    save_file(weights, tmp_path / "more" / "model.safetensors")
    line = refusal(capsys, tmp_path, tmp_path / "more", "--export")
    assert "Wan has no base.blocks.pose.prope.kernel, and it is not zero" in line
    left = ("--leave-out", "base.blocks.pose.*")
    assert convert(tmp_path / "more", "--export", "--out", tmp_path / "left", *left) == 0


def test_low_rank_additions_are_merged_or_written_as_diffusers_loads_them(wan, source, tmp_path):
    """B A is what the merged kernels have beyond the base's, and the merged base computes what the two together compute."""
    assert convert(source, "--out", tmp_path / "base") == 0
    spec = describe_checkpoint(tmp_path / "base")
    model = dataclasses.replace(spec.model, lora_rank=2, lora_alpha=3.0, lora_maps=("attention.*", "mlp.out"))
    spec = dataclasses.replace(spec, model=model)
    params, said = initial_params(spec, 0, tmp_path / "base")
    assert "fresh: base.blocks" in said
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) if np.any(leaf) else 0.1 * rng.normal(size=leaf.shape), params)
    for name in ("context", "given"):
        params["base"][name] = jax.tree.map(np.zeros_like, params["base"][name])
    save_weights(tmp_path / "tuned", params, to_json(spec), dtype="float32")
    assert convert(tmp_path / "tuned", "--export", "--out", tmp_path / "merged") == 0
    assert convert(tmp_path / "merged", "--out", tmp_path / "again") == 0
    clip, text = jnp.asarray(rearrange(wan["clip"], "b c f h w -> b f h w c")), wan["text"]
    with jax.default_matmul_precision("highest"):
        together, merged, base = (
            as_fp32(load_base(tmp_path / name))(clip, wan["sigma_b"], None, {"context": None, "text": text})
            for name in ("tuned", "again", "base")
        )
    assert np.abs(together - base).max() > 0.01
    np.testing.assert_allclose(merged, together, atol=1e-5)  # fp32 sums in another order

    assert convert(tmp_path / "tuned", "--export", "--lora", "--out", tmp_path / "lora") == 0
    added = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    whole, plain = (load_file(folder / SINGLE) for folder in (tmp_path / "merged", source / "transformer"))
    assert len(added) == 2 * 2 * 5
    for name in ("blocks.1.attn1.to_q", "blocks.0.attn1.to_out.0", "blocks.0.ffn.net.2"):
        down, up = (added[f"transformer.{name}.lora_{part}.weight"] for part in "AB")
        assert down.shape == (2, plain[f"{name}.weight"].shape[1])
        np.testing.assert_allclose(whole[f"{name}.weight"] - plain[f"{name}.weight"], up @ down, atol=1e-6)


def test_low_rank_additions_that_are_not_there_are_refused(source, tmp_path, capsys):
    assert convert(source, "--out", tmp_path / "base") == 0
    assert "has no low-rank additions" in refusal(capsys, tmp_path, tmp_path / "base", "--export", "--lora")
    assert "--lora says what --export writes" in refusal(capsys, tmp_path, tmp_path / "base", "--lora")


def test_memory_holds_a_tensor_of_a_layer_and_not_the_stack(tmp_path):
    """Sixteen layers of 1 MB each: at most three of them at once, as they come and as they are written."""
    part = 2**18
    tensors = {
        "x": Streamed((16, part), np.dtype(np.float32), lambda: (np.full(part, i, np.float32) for i in range(16)))
    }
    tracemalloc.start()
    write_streamed(tmp_path / "x.safetensors", tensors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3.5 * 4 * part
    found = load_file(tmp_path / "x.safetensors")["x"]
    np.testing.assert_array_equal(found, np.tile(np.arange(16, dtype=np.float32)[:, None], part))


def test_a_part_of_another_size_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError, match="x: its parts are not"):
        write_streamed(tmp_path / "x.safetensors", {"x": Streamed((3,), np.dtype(np.float32), lambda: [np.zeros(2)])})
    assert list(tmp_path.iterdir()) == []
