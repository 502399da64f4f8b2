"""`load_pipeline` and what it promises about given cells, seeds and sizes."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fourreal
from fourreal.checkpoints.specs import ModelSpec, describe_checkpoint
from fourreal.checkpoints.weights import save_weights
from fourreal.conditions import Cameras, Hints, Prompt, Prope, Text
from fourreal.errors import UserError
from fourreal.geometry.trajectories import trajectory
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import fresh_params
from fourreal.nn.kernels import AttentionConfig
from fourreal.sampling import pipeline
from fourreal.sampling.pipeline import GridPipeline
from fourreal.serialize import to_json

BASE = VideoDiTConfig(width=24, depth=2, heads=2, mlp_width=48, patch=(1, 4, 4), conditions=(Hints(),))
SPEC = ModelSpec(BASE, GridDiTConfig("soft"), views=3, times=2, size=(8, 8))
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 256, (3, 2, 8, 8, 3), np.uint8)
GIVEN = np.array([[True, True], [True, False], [False, False]])


@pytest.fixture(scope="module")
def params():
    fresh = fresh_params(SPEC.model, SPEC.grid, 0)
    return jax.tree.map(lambda x: x + 0.05 * RNG.standard_normal(x.shape, np.float32), fresh)


@pytest.fixture(scope="module")
def pipe(params):
    return GridPipeline(SPEC, params)


def test_given_cells_come_back_bit_for_bit_and_unknown_ones_are_not_read(pipe):
    result = pipe(FRAMES, GIVEN, steps=3)
    np.testing.assert_array_equal(result[GIVEN], FRAMES[GIVEN])
    other = np.where(GIVEN[..., None, None, None], FRAMES, 255 - FRAMES)
    np.testing.assert_array_equal(pipe(other, GIVEN, steps=3), result)


def test_steps_are_those_that_the_checkpoint_names_unless_a_call_does(pipe, params):
    two = GridPipeline(replace(SPEC, steps=2), params)
    assert two.steps == (2,) and pipe.steps == (4,)
    np.testing.assert_array_equal(two(FRAMES, GIVEN), pipe(FRAMES, GIVEN, steps=2))
    np.testing.assert_array_equal(two(FRAMES, GIVEN, steps=4), pipe(FRAMES, GIVEN))


def test_the_shift_of_the_noise_levels_is_the_checkpoints_unless_a_call_says_another(pipe, params):
    shifted = GridPipeline(replace(SPEC, shift=3.0), params)
    np.testing.assert_array_equal(pipe(FRAMES, GIVEN, shift=3.0), shifted(FRAMES, GIVEN))
    assert (shifted(FRAMES, GIVEN) != pipe(FRAMES, GIVEN)).any()


def test_the_seed_decides_the_sample(pipe):
    first, again, other = (pipe(FRAMES, GIVEN, steps=3, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_several_seeds_give_one_grid_each_bit_for_bit_as_alone(pipe):
    grids = pipe(FRAMES, GIVEN, steps=3, seed=[1, 0])
    assert grids.shape == (2, *FRAMES.shape)
    for grid, seed in zip(grids, (1, 0), strict=True):
        np.testing.assert_array_equal(grid, pipe(FRAMES, GIVEN, steps=3, seed=seed))


@pytest.mark.parametrize("fusion", ["soft", "fused"])
def test_matrices_are_held_in_half_of_the_memory_where_matmuls_are_in_bfloat16_with_the_same_result(
    fusion, monkeypatch
):
    spec = replace(SPEC, model=replace(BASE, dtype="bfloat16", lora_rank=2), grid=GridDiTConfig(fusion))
    fresh = fresh_params(spec.model, spec.grid, 0)
    params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(1).standard_normal(x.shape, np.float32), fresh)
    pipe = GridPipeline(spec, params)
    blocks = pipe.params["base"]["blocks"]
    assert blocks["mlp"]["in_"]["kernel"].dtype == jnp.bfloat16 and blocks["modulation"].dtype == jnp.float32
    assert fusion != "soft" or pipe.params["sync"]["mod_linear"]["kernel"].dtype == jnp.bfloat16
    monkeypatch.setattr(pipeline, "computed_types", lambda params, _: jax.tree.map(lambda x: x.dtype, params))
    whole = GridPipeline(spec, params)
    np.testing.assert_array_equal(pipe(FRAMES, GIVEN, steps=2), whole(FRAMES, GIVEN, steps=2))


def test_guidance_of_one_is_no_guidance_and_another_weight_changes_unknown_cells(pipe):
    plain, guided = pipe(FRAMES, GIVEN, steps=3), pipe(FRAMES, GIVEN, steps=3, guidance_scale=3.0)
    np.testing.assert_array_equal(pipe(FRAMES, GIVEN, steps=3, guidance_scale=1.0), plain)
    assert (guided[~GIVEN] != plain[~GIVEN]).any()
    np.testing.assert_array_equal(guided[GIVEN], FRAMES[GIVEN])


@pytest.fixture(scope="module")
def text_pipe():
    spec = replace(SPEC, model=replace(BASE, depth=1, conditions=(Text(width=6),)))
    fresh = fresh_params(spec.model, spec.grid, 0)
    params = jax.tree.map(lambda x: x + 0.1 * np.random.default_rng(1).standard_normal(x.shape, np.float32), fresh)
    return GridPipeline(spec, params)


FEATURES, NEGATIVE = (np.random.default_rng(2).normal(size=(tokens, 6)).astype(np.float32) for tokens in (5, 3))


def test_guidance_by_text_alone_goes_away_from_the_negative_prompt_and_keeps_the_given_cells(text_pipe):
    sample = partial(text_pipe, FRAMES, GIVEN, steps=2, guidance_scale=4.0)
    plain = text_pipe(FRAMES, GIVEN, steps=2, text=FEATURES).astype(int)
    same = sample(text=Prompt(FEATURES, FEATURES), guide=("text",))
    assert np.abs(same - plain).max() <= 1  # rounding: both branches say the same
    over_text, over_both = (sample(text=Prompt(FEATURES, NEGATIVE), guide=guide) for guide in (("text",), None))
    assert np.abs(over_text - plain).max() > 5 and np.abs(over_both - plain).max() > 5
    assert (over_text != over_both).any()
    np.testing.assert_array_equal(over_text[GIVEN], FRAMES[GIVEN])
    np.testing.assert_array_equal(over_both, sample(text=Prompt(FEATURES, NEGATIVE), guide=("given", "text")))


def test_features_alone_are_sampled_without_guidance_by_text(text_pipe):
    prompt = Prompt(np.concatenate([FEATURES, np.zeros((507, 6), np.float32)]), NEGATIVE)
    options = {"steps": 2, "guidance_scale": 2.0, "guide": ("given",)}
    of_features, of_prompt = (text_pipe(FRAMES, GIVEN, text=text, **options) for text in (FEATURES, prompt))
    np.testing.assert_array_equal(of_features, of_prompt)
    with pytest.raises(UserError, match=r"text=Prompt\(features, negative\)"):
        text_pipe(FRAMES, GIVEN, steps=2, text=FEATURES, guidance_scale=2.0)


def test_any_subset_may_be_given_also_none(pipe):
    assert pipe(FRAMES, np.zeros((3, 2), bool), steps=2).shape == FRAMES.shape


def test_a_grid_of_another_shape_than_trained_is_sampled(pipe):
    frames = np.zeros((2, 3, 4, 12, 3), np.uint8)
    assert pipe(frames, np.zeros((2, 3), bool), steps=1).shape == frames.shape


@pytest.mark.parametrize("method", ["heun", "unipc"])
def test_methods_of_order_two_agree_with_euler_in_one_step_alone(pipe, method):
    one, three = (pipe(FRAMES, GIVEN, steps=steps, method=method) for steps in (1, 3))
    np.testing.assert_array_equal(one, pipe(FRAMES, GIVEN, steps=1))
    assert (three != pipe(FRAMES, GIVEN, steps=3)).any()


def test_a_saved_folder_gives_the_same_samples(params, pipe, tmp_path):
    save_weights(tmp_path, params, to_json(SPEC), dtype="float32")
    loaded = fourreal.load_pipeline(tmp_path)
    assert loaded.config == SPEC and len(loaded.weights_hash) == 64
    np.testing.assert_array_equal(loaded(FRAMES, GIVEN, steps=2), pipe(FRAMES, GIVEN, steps=2))


@pytest.mark.parametrize(
    ("frames", "given", "steps", "message"),
    [
        (FRAMES.astype(np.float32), GIVEN, 2, "expected uint8"),
        (FRAMES[0], GIVEN, 2, "views, times"),
        (FRAMES, GIVEN[:2], 2, "expected bool"),
        (FRAMES, GIVEN.astype(int), 2, "expected bool"),
        (FRAMES, GIVEN, 0, "at least 1"),
        (FRAMES[:, :, :7], GIVEN, 2, "patch of 4"),
        (FRAMES[:0], GIVEN[:0], 2, "at least 1"),
    ],
)
def test_wrong_inputs_are_refused_with_what_was_expected(pipe, frames, given, steps, message):
    with pytest.raises(ValueError, match=message):
        pipe(frames, given, steps=steps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "seed from 0"),
        ({"seed": [0, 2**32]}, "seed from 0"),
        ({"untold": ("wind",)}, "untold names wind"),
        ({"shift": 0.0}, "shift 0.0: give a number above 0"),
        ({"method": "hean"}, "did you mean 'heun'"),
        ({"guidance_scale": 2.0, "guide": ["text"]}, "guidance by text: .* expected some of given, hints"),
        ({"text": np.zeros((3, 8), np.float32)}, "takes no text"),
        ({"conditions": {"wind": 3.0}}, "takes no wind"),
    ],
)
def test_wrong_options_are_refused_with_what_was_expected(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe(FRAMES, GIVEN, steps=2, **options)


def test_a_base_alone_samples_clips_and_refuses_grids(tmp_path, pipe, params):
    spec = ModelSpec(BASE, GridDiTConfig("base"), views=1, times=2, size=(8, 8))
    save_weights(tmp_path, {"base": params["base"]}, to_json(spec), dtype="float32")
    base = fourreal.load_pipeline(tmp_path)
    video, given = base(FRAMES[:1], ~GIVEN[1:2], steps=2), ~GIVEN[1:2]
    np.testing.assert_array_equal(video[given], FRAMES[:1][given])
    np.testing.assert_array_equal(video, pipe.base(FRAMES[:1], given, steps=2))
    assert base(FRAMES[:, :1], GIVEN[:, :1], steps=1).shape == (3, 1, 8, 8, 3)
    with pytest.raises(ValueError, match="makes clips, not a grid of 3 views x 2 times"):
        base(FRAMES, GIVEN, steps=2)


def test_the_attention_kernel_is_the_callers():
    with pytest.raises(ValueError, match="splash needs a TPU"):
        fourreal.load_pipeline("nano", attention=AttentionConfig("splash"))


def test_an_unknown_checkpoint_names_the_nearest_bundled_one():
    with pytest.raises(FileNotFoundError, match="did you mean 'nano'"):
        describe_checkpoint("nanoo")


@pytest.mark.slow
def test_cameras_change_what_is_sampled_and_a_model_without_them_refuses(pipe):
    spec = replace(SPEC, model=replace(BASE, conditions=(Hints(), Cameras())))
    fresh = fresh_params(spec.model, spec.grid, 0)
    told = GridPipeline(spec, jax.tree.map(lambda x: x + 0.05 * RNG.standard_normal(x.shape, np.float32), fresh))
    cameras = trajectory("orbit:90", 3, (8, 8))
    without, along = told(FRAMES, GIVEN, steps=2), told(FRAMES, GIVEN, steps=2, cameras=cameras)
    by_name = told(FRAMES, GIVEN, steps=2, conditions={"cameras": cameras})
    np.testing.assert_array_equal(by_name, along)
    seen = told(FRAMES, GIVEN, steps=2, cameras=cameras._replace(known=np.array(False)))
    np.testing.assert_array_equal(seen, without)
    other = told(FRAMES, GIVEN, steps=2, cameras=cameras._replace(focus=None, reference=1))
    assert (other != along).any()
    with pytest.raises(ValueError, match="reference is 3: expected a view from 0 to 2"):
        told(FRAMES, GIVEN, steps=2, cameras=cameras._replace(reference=3))
    with pytest.raises(ValueError, match="given twice"):
        told(FRAMES, GIVEN, steps=2, cameras=cameras, conditions={"cameras": trajectory("orbit", 3, (8, 8))})
    assert (without[~GIVEN] != along[~GIVEN]).any()
    np.testing.assert_array_equal(along[GIVEN], FRAMES[GIVEN])
    with pytest.raises(ValueError, match=r"expected \[3, 3, 3\], one a view"):
        told(FRAMES, GIVEN, steps=2, cameras=trajectory("orbit", 2, (8, 8)))
    with pytest.raises(ValueError, match="takes no cameras"):
        pipe(FRAMES, GIVEN, steps=2, cameras=cameras)


@pytest.mark.slow
def test_cameras_are_told_to_every_condition_that_takes_them():
    model = replace(BASE, width=24, heads=3, conditions=(Hints(), Cameras(), Prope()))
    spec = replace(SPEC, model=model)
    fresh = fresh_params(spec.model, spec.grid, 0)
    told = GridPipeline(spec, jax.tree.map(lambda x: x + 0.05 * RNG.standard_normal(x.shape, np.float32), fresh))
    cameras = trajectory("orbit:90", 3, (8, 8))
    both = told(FRAMES, GIVEN, steps=1, cameras=cameras)
    by_name = told(FRAMES, GIVEN, steps=1, conditions={"cameras": cameras, "prope": cameras})
    np.testing.assert_array_equal(by_name, both)
    assert (told(FRAMES, GIVEN, steps=1, conditions={"cameras": cameras}) != both).any()
    untold = told(FRAMES, GIVEN, steps=1, cameras=cameras, untold={"cameras", "prope"})
    np.testing.assert_array_equal(untold, told(FRAMES, GIVEN, steps=1))


def test_a_model_whose_hints_move_makes_them_of_the_given_frames_or_takes_a_callers():
    base = replace(BASE, conditions=(Hints(moved=True),))
    fresh = fresh_params(base, SPEC.grid, 0)
    params = jax.tree.map(lambda x: x + 0.05 * RNG.standard_normal(x.shape, np.float32), fresh)
    pipe = GridPipeline(replace(SPEC, model=base), params)
    made = Hints(moved=True).from_frames(FRAMES, GIVEN)
    assert made.found.any() and not made.found.all()
    result = pipe(FRAMES, GIVEN, steps=2)
    np.testing.assert_array_equal(pipe(FRAMES, GIVEN, conditions={"hints": made}, steps=2), result)
    other = made._replace(pictures=255 - made.pictures)
    assert (pipe(FRAMES, GIVEN, conditions={"hints": other}, steps=2) != result).any()
    hidden = np.where(GIVEN[..., None, None, None], FRAMES, np.uint8(3))
    np.testing.assert_array_equal(pipe(hidden, GIVEN, steps=2), result)
    drawn = RNG.normal(size=(3, 2, 4, 8, 8, 4))
    assert (pipe(FRAMES, GIVEN, conditions={"hints": drawn}, steps=2, guidance_scale=2.0) != result).any()
