"""Breaks the code one line at a time and shows that the test named beside each break fails.

python tests/mutations.py            all breaks
python tests/mutations.py --check    no break: only whether every fragment occurs once and every test exists

A break is a fragment that occurs once in a file and what takes its place. It counts as caught only if the named test ran
and failed: a test that cannot be collected, or an error outside a test, catches nothing. First all named tests must pass
on the unbroken code. The work goes on in copies of the package and the tests, so the working tree is never touched. Each
break has a process of its own, forked from one that has imported the libraries and nothing of ours.
"""

import dataclasses
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).parents[1]
LIBRARIES = ("pytest", "jax", "flax.nnx", "optax", "orbax.checkpoint.v1", "grain", "tensorflow_datasets", "tyro")
COPIED = ("fourreal", "tests", "configs", "train.py", "pyproject.toml")
WORKERS = 2


@dataclasses.dataclass(frozen=True)
class Break:
    """One broken line and the test that must notice."""

    file: str
    """under fourreal/"""
    old: str
    new: str
    test: str
    """under tests/, as pytest names it"""


BAD_INPUT = "test_bad_input.py::test_bad_input_is_one_line_exit_code_2_and_leaves_no_trace"
GRID = "test_grid.py::test_"
ATTENTION = "nn/test_attention.py::test_"
KERNELS = "nn/test_kernels.py::test_"
BLOCK = "models/test_block.py::test_"
DIT = "models/test_video_dit.py::test_"
SYNC = "models/fusions/test_sync.py::test_"
GRID_DIT = "models/test_grid_dit.py::test_"
CONDITION = "conditions/test_condition.py::test_"
CAMERAS = "conditions/test_cameras.py::test_"
TEXT = "conditions/test_text.py::test_"
EMBED = "text/test_command.py::test_"
PROPE = "conditions/test_prope.py::test_"
PROJECTIVE = "nn/test_projective.py::test_"
HINTS = "conditions/test_hints.py::test_"
RIG = "sampling/test_rig.py::test_"
RAYS = "geometry/test_rays.py::test_"
LOCAL = "training/test_local.py::test_"
LAYOUT = "parallel/test_layout.py::test_"
WEIGHTS = "checkpoints/test_weights.py::test_"
MOVED_PIXELS = (
    "motion/test_moved.py::test_moved_pixels_are_within_one_of_where_they_belong_and_most_that_a_source_shows_are_valid"
)
ROLL = "data/test_shift_and_roll.py::test_"
FLOW = "diffusion/test_flow.py::test_"
DENOISER = "diffusion/test_denoiser.py::test_"
GUIDANCE = "diffusion/test_guidance.py::test_"
SAMPLERS = "diffusion/test_samplers.py::test_"
STAGE = "diffusion/test_stage.py::test_"
OPTIMIZER = "training/test_optimizer.py::test_"
STATE = "training/test_state.py::test_"
STEP = "training/test_step.py::test_"
BUCKET = "host/test_bucket.py::test_"
CHECKPOINT = "training/test_orbax.py::test_"
LOG = "training/test_log.py::test_"
ABLATION = "evaluation/test_ablation.py::test_"
PROBE = "evaluation/test_probe.py::test_"
MASKS = "data/test_masks.py::test_"
BATCHES = "data/test_batches.py::test_"
RECORDS = "data/test_records.py::test_"

BREAKS = [
    # evaluation/probe.py, interchange.py
    Break(
        "evaluation/probe.py",
        "scenes.some(part - 1)",
        "scenes.some(part)",
        PROBE + "foreign_messages_of_the_last_layer_are_the_answer_of_the_scene_before",
    ),
    Break(
        "evaluation/probe.py",
        "zip(np.concatenate(found), frames,",
        "zip(np.concatenate(found[::-1]), frames,",
        PROBE + "several_programs_say_the_same_as_one",
    ),
    Break(
        "evaluation/interchange.py",
        "jax.tree.map(lambda x: x[layer], lent.messages[stream])",
        "jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), message)",
        PROBE + "a_lender_is_itself_undisturbed",
    ),
    Break(
        "evaluation/interchange.py",
        "messages[stream][layer], message, jax.tree.map(jnp.zeros_like, message)",
        "messages[stream][layer], message, message",
        PROBE + "silent_messages_of_the_last_layer_leave_a_head_of_zeros",
    ),
    Break(
        "evaluation/interchange.py",
        "without(denoiser.conditions, told, frozenset({name}))[name]",
        "told[name]",
        PROBE + "hints_are_silent_as_without_them_and_foreign_as_those_of_the_scene_before",
    ),
    Break(
        "evaluation/interchange.py",
        '{"view": streams["time"], "time": streams["view"]}',
        "streams",
        PROBE + "strength_and_gap_are_those_of_the_streams_and_messages",
    ),
    # sampling/pipeline.py
    Break(
        "sampling/pipeline.py",
        "told = dict(conditions or {})",
        "told = {}",
        "sampling/test_grid_pipeline.py::test_cameras_change_what_is_sampled_and_a_model_without_them_refuses",
    ),
    Break(
        "conditions/low_res.py",
        "(1 - level) * frames + level * noise",
        "frames + level * noise",
        "conditions/test_low_res.py::test_example_is_the_box_mean_blurred_by_a_level_of_its_own",
    ),
    Break(
        "sampling/cascade.py",
        "seed=seed, stage=number, **options",
        "seed=seed, **options",
        "sampling/test_cascade.py::test_the_first_stage_samples_the_reduced_grid_and_the_next_is_told_it",
    ),
    Break(
        "conditions/hints.py",
        "flag = jnp.take_along_axis(valid[..., None].astype(clip.dtype), at, axis=-4)",
        "pass",
        "conditions/test_hints.py::test_validity_of_a_hint_is_that_of_the_pixels_of_the_frame_it_shows",
    ),
    # grid.py
    Break("grid.py", "(h w) (c p q)", "(h w) (p q c)", GRID + "patches_are_in_the_order_channel_y_x_of_wans_embedding"),
    Break(
        "grid.py",
        "(h w) (p q c)",
        "(h w) (c p q)",
        GRID + "unpatchified_frames_take_patches_in_the_order_y_x_channel_of_wans_head",
    ),
    Break(
        "grid.py",
        "jnp.where(given, 0.0, sigma.astype(jnp.float32))",
        "sigma + 0.0 * given",
        GRID + "sigma_of_an_example_reaches_all_of_its_unknown_cells",
    ),
    # geometry/
    Break(
        "geometry/rays.py",
        "jnp.cross(origins",
        "jnp.cross(-origins",
        RAYS + "every_point_on_a_pixels_ray_has_its_moment",
    ),
    Break(
        "geometry/rays.py",
        "[:height, :width] + 0.5",
        "[:height, :width]",
        RAYS + "every_point_on_a_pixels_ray_has_its_moment",
    ),
    Break(
        "geometry/rays.py",
        "/ focus[..., None, None]",
        "/ 1",
        RAYS + "rays_do_not_depend_on_the_worlds_place_direction_and_unit",
    ),
    # conditions/
    Break(
        "conditions/hints.py",
        "jnp.where(given[..., None, :], distance, frames)",
        "jnp.where(given[..., None, :], distance, 0)",
        HINTS + "nearest_given_frame_is_that_of_a_search_for_every_mask[5]",
    ),
    Break(
        "conditions/hints.py",
        "swap_view_time(_with_borrowed(*turned), times)",
        "_with_borrowed(grid, given, valid)",
        HINTS + "hints_are_the_nearest_given_cells_of_the_own_or_the_nearest_view_and_time",
    ),
    Break(
        "conditions/hints.py",
        "from_given = True",
        "from_given = False",
        CONDITION + "dropping_given_drops_the_hints_whoever_made_them_and_nothing_else",
    ),
    Break(
        "conditions/context.py",
        "return six + self.table[CONTEXTS.index(context)]",
        "return six",
        DIT + "context_is_a_row_added_to_the_table_of_every_block_and_not_to_the_head[0]",
    ),
    Break(
        "conditions/context.py",
        'group: ClassVar[str] = "conditions"',
        'group: ClassVar[str] = "base"',
        STATE + "training_groups_hold_exactly_the_listed_paths[sync_and_conditions]",
    ),
    Break(
        "conditions/given.py",
        "jnp.where(given[..., None, None], self.vector[...], jax.numpy.zeros(()))",
        "self.vector[...]",
        DIT + "given_vector_tells_a_given_frame_from_an_unknown_one_of_sigma_0",
    ),
    Break(
        "conditions/condition.py",
        '(c.from_given and "given" in names)',
        "False",
        CONDITION + "dropping_given_drops_the_hints_whoever_made_them_and_nothing_else",
    ),
    Break(
        "conditions/condition.py",
        "c.filled(told[c.name], known) if",
        "told[c.name] if",
        CONDITION + "null_has_the_structure_of_what_a_caller_gives_so_that_branches_stack[cameras]",
    ),
    Break(
        "conditions/condition.py",
        "value.ndim))), null, value)",
        "value.ndim))), value, null)",
        CAMERAS + "null_and_dropped_cameras_are_not_known_and_keep_their_shapes",
    ),
    Break(
        "conditions/text.py",
        "Prompt(padded(value.negative, value.features.shape[-2]), value.negative)",
        "super().null(value)",
        TEXT + "dropped_text_is_the_negative_with_zeros_after_it_in_training_and_in_guidance",
    ),
    Break(
        "conditions/text.py",
        "if empty is None and self.drop:",
        "if False:",
        TEXT + "an_example_is_dropped_to_the_empty_prompt_which_the_source_must_hold_for_that",
    ),
    Break(
        "text/encoder.py",
        "[*tokens[: TOKENS - 1], tokens[-1]]",
        "list(tokens[:TOKENS])",
        EMBED + "a_long_prompt_is_cut_before_its_end_and_its_line_named",
    ),
    Break(
        "text/command.py",
        "lines.setdefault(prompt, number)",
        "lines[line] = number",
        EMBED + "each_line_is_a_prompt_and_the_empty_and_wan_s_negative_one_are_there_too",
    ),
    Break(
        "sampling/cascade.py",
        'guidance_scale if options["guide"] else 1.0',
        "guidance_scale",
        "sampling/test_cascade.py::test_guidance_by_what_one_stage_takes_guides_that_stage_alone",
    ),
    Break(
        "sampling/pipeline.py",
        "guided_names(guide, self.conditions)",
        "guided_names(None, self.conditions)",
        "sampling/test_grid_pipeline.py::"
        "test_guidance_by_text_alone_goes_away_from_the_negative_prompt_and_keeps_the_given_cells",
    ),
    Break(
        "conditions/cameras.py",
        "known=jnp.zeros(",
        "known=jnp.ones(",
        CAMERAS + "null_and_dropped_cameras_are_not_known_and_keep_their_shapes",
    ),
    Break(
        "conditions/cameras.py",
        "c2w=from_first(value.c2w)",
        "c2w=np.float32(value.c2w)",
        CAMERAS + "callers_cameras_are_checked_against_the_views",
    ),
    # cameras as relative positions
    Break(
        "nn/projective.py",
        "transposed = jnp.swapaxes(self.matrix, -1, -2)",
        "transposed = self.matrix",
        PROJECTIVE + "attention_is_the_formula_of_every_pair_of_tokens[16-xla]",
    ),
    Break(
        "nn/projective.py",
        "q, *(transform(x, self.inverse, -self.angles) for x in (k, v))",
        "q, transform(k, self.inverse, -self.angles), v.astype(q.dtype)",
        PROJECTIVE + "another_world_changes_nothing_and_another_camera_does",
    ),
    Break(
        "models/fusions/fusion.py",
        "pose.arranged(arrange)",
        "pose",
        PROPE + "only_relative_poses_matter_in_every_fusion_and_each_cell_s_does[soft]",
    ),
    Break(
        "models/block.py",
        "out = out + to_out(",
        "out = out + self.out(",
        PROPE + "fresh_model_is_bit_for_bit_the_model_without[soft]",
    ),
    Break(
        "conditions/prope.py",
        "pose, jnp.eye(4))",
        "pose, 2 * jnp.eye(4))",
        PROPE + "cameras_not_told_dropped_and_unknown_are_one[soft]",
    ),
    Break(
        "geometry/rays.py",
        "np.float32([0.5, 0.5, 0])",
        "np.float32([0.5, 0, 0])",
        PROPE + "projection_is_that_of_the_lens_and_pose_in_fp64",
    ),
    # cameras of files
    Break(
        "geometry/rays.py",
        "crossing & ~sure & scattered",
        "crossing & ~sure & ~scattered",
        RAYS + "a_pan_on_a_tripod_that_shakes_is_a_rotation_only",
    ),
    Break(
        "media/lens.py",
        "cv2.fisheye if lens.fisheye else cv2",
        "cv2",
        "media/test_lens.py::test_every_spot_is_where_the_pinhole_sees_it[fisheye]",
    ),
    Break(
        "media/pairing.py",
        "pool[source.index]",
        "pool[source.index - 1]",
        RIG + "frames_of_an_orbit_video_have_cameras_by_index[1:5]",
    ),
    Break(
        "media/pairing.py",
        "natural_order(Path(f",
        "str(Path(f",
        "media/test_transforms.py::test_frames_of_one_label_or_of_one_pose_at_many_times_are_one_camera",
    ),
    Break(
        "media/pairing.py",
        "K = pinhole(camera.lens, K, own)",
        "pass",
        RIG + "eight_cameras_with_lenses_see_every_point_where_they_say[center-nerfstudio_labels]",
    ),
    Break(
        "media/transforms.py",
        "size or picture_size(folder, name)",
        "size",
        "media/test_transforms.py::test_angles_give_focal_lengths_of_the_picture_s_real_size",
    ),
    # nn/
    Break(
        "nn/attention.py",
        "/ (a + b - c)",
        "/ (a + b)",
        ATTENTION + "fused_merge_is_one_masked_softmax_in_values_and_gradients[0.0-xla]",
    ),
    Break(
        "nn/attention.py",
        "(a.astype(jnp.float32) + b - c)",
        "(a.astype(jnp.float32) + b)",
        ATTENTION + "fused_merge_is_one_masked_softmax_in_values_and_gradients[0.0-splash]",
    ),
    Break(
        "nn/attention.py",
        "(checkpoint_name(x, name) for x in kernels.forward(q, k, v, kernel))",
        "kernels.forward(q, k, v, kernel)",
        ATTENTION
        + "flash_kernel_runs_its_forward_again_only_where_its_result_is_not_kept[attention_out-1-clip_attention-1]",
    ),
    Break(
        "nn/kernels/xla.py",
        'hqk", q * q.shape[-1] ** -0.5, k',
        'hqk", q * q.shape[-1] ** -1.0, k',
        ATTENTION + "attend_is_a_dense_softmax",
    ),
    Break(
        "nn/kernels/xla.py",
        "jnp.exp(logits - peak)",
        "jnp.exp(logits)",
        ATTENTION + "attend_is_exact_for_logits_in_the_thousands",
    ),
    Break(
        "nn/kernels/xla.py",
        "(from_values - jnp.swapaxes(product(do, out), -3, -2))",
        "from_values",
        KERNELS + "kernel_is_a_dense_softmax_in_values_and_gradients[xla]",
    ),
    Break(
        "nn/kernels/splash.py",
        "(jnp.arange(filled) >= keys)",
        "(jnp.arange(filled) > keys)",
        KERNELS + "kernel_is_a_dense_softmax_in_values_and_gradients[splash-one-filled-block]",
    ),
    Break(
        "nn/kernels/chunked.py",
        '(matmul("...ke,...qe->...kq", v, do) - from_output)',
        'matmul("...ke,...qe->...kq", v, do)',
        KERNELS + "kernel_is_a_dense_softmax_in_values_and_gradients[chunked]",
    ),
    Break(
        "nn/norms.py",
        "(1 + scale[..., None, :])",
        "scale[..., None, :]",
        "nn/test_norms.py::test_modulation_scales_by_one_plus_scale_then_shifts_per_frame",
    ),
    Break(
        "nn/embedding.py",
        "[jnp.cos(angle), jnp.sin(angle)]",
        "[jnp.sin(angle), jnp.cos(angle)]",
        "nn/test_embedding.py::test_sinusoid_is_cosines_then_sines",
    ),
    Break(
        "nn/rotary.py",
        "space = 2 * (head_size // 6)",
        "space = 2 * (head_size // 8)",
        "nn/test_rotary.py::test_rotary_angles_split_a_head_into_time_y_and_x_as_wan_does[12]",
    ),
    Break(
        "nn/rotary.py",
        "[-second, first]",
        "[second, -first]",
        "nn/test_rotary.py::test_rotation_multiplies_neighbouring_pairs_that_lie_apart_as_complex_numbers",
    ),
    Break(
        "nn/rotary.py",
        '"... (h half pair) ->',
        '"... (h pair half) ->',
        BLOCK + "block_is_the_formula_of_its_module[False]",
    ),
    Break(
        "nn/linear.py", "approximate=True", "approximate=False", BLOCK + "mlp_is_linear_gelu_in_its_tanh_form_linear"
    ),
    # models/
    Break(
        "models/block.py",
        "query_norm(query(x))",
        "query(x)",
        BLOCK + "queries_and_keys_are_normalised_over_all_heads_together",
    ),
    Break(
        "models/video_dit.py",
        "_weighted(weights, [pixels, *offered])",
        "pixels + _weighted(weights[..., 1:], offered)",
        "models/test_video_dit.py::test_copies_are_those_of_the_formula[mix-0.4]",
    ),
    Break(
        "models/video_dit.py",
        "kept * (frames - (1 - level) * mix)",
        "kept * (frames - mix)",
        "models/test_video_dit.py::test_copies_are_those_of_the_formula[mix-0.4]",
    ),
    Break(
        "models/video_dit.py",
        "sinusoid(1000.0 * sigma",
        "sinusoid(sigma",
        "checkpoints/test_wan.py::test_wan_and_video_dit_agree_with_one_sigma_an_example",
    ),
    Break(
        "models/fusions/soft.py",
        "to_view + pull * y_t",
        "to_view - pull * y_t",
        SYNC + "sync_layer_is_its_formula_at_every_token[soft-consensus]",
    ),
    Break(
        "models/fusions/soft.py",
        "own_v, to_time = linear",
        "to_time, own_v = linear",
        SYNC + "sync_layer_is_its_formula_at_every_token[soft-zero]",
    ),
    Break(
        "models/fusions/sync.py",
        "y * (1 + scale)",
        "y * scale",
        SYNC + "sync_layer_is_its_formula_at_every_token[hard-half]",
    ),
    Break(
        "models/fusions/sync.py",
        "self.kernel = nnx.Param(jnp.zeros(",
        "self.kernel = nnx.Param(jnp.ones(",
        SYNC + "fresh_sync_layer_is_its_fixed_mix_even_around_bf16_matmuls[soft-zero]",
    ),
    Break(
        "models/fusions/hard.py",
        "part_v, part_t = w_v * y_v",
        "part_v, part_t = w_t * y_v",
        SYNC + "fresh_sync_layer_is_its_fixed_mix_even_around_bf16_matmuls[hard-time]",
    ),
    Break(
        "models/fusions/two_streams.py",
        'context(run.six, "freeze_time")',
        'context(run.six, "dynamic")',
        GRID_DIT + "soft_sync_at_init_equals_the_base_on_every_video_of_the_readout[view-freeze_time-False]",
    ),
    Break(
        "models/fusions/two_streams.py",
        'context(run.six, "dynamic"), run.cells.times',
        'context(run.six, "dynamic"), run.cells.times * 0',
        GRID_DIT + "soft_sync_at_init_equals_the_base_on_every_video_of_the_readout[time-dynamic-False]",
    ),
    Break(
        "models/fusions/two_streams.py",
        "return streams",
        "return Streams(run.to_view(streams.time), streams.time)",
        GRID_DIT + "unsynchronized_streams_never_cross_whatever_the_depth",
    ),
    Break(
        "models/fusions/fused.py",
        '"(v t) s e -> v t s e"',
        '"(t v) s e -> v t s e"',
        GRID_DIT + "fused_is_the_base_on_the_clip_of_all_cells_seen_through_a_dense_mask[3-None]",
    ),
    Break(
        "models/fusions/fused.py",
        "(self.stride or times) * run",
        "times * run",
        GRID_DIT + "fused_is_the_base_on_the_clip_of_all_cells_seen_through_a_dense_mask[2-3]",
    ),
    Break(
        "models/grid_dit.py",
        "result.decode(sum(heads) / len(heads))",
        "result.decode(sum(heads))",
        GRID_DIT + "unsynchronized_streams_equal_the_base_on_every_video",
    ),
    Break(
        "models/fusions/one_stream.py",
        "linear(VIEW, x,",
        "linear(VIEW, y,",
        GRID_DIT + "matched_control_adds_a_linear_map_of_a_blocks_input_and_output[fused]",
    ),
    Break(
        "models/fusions/sequential.py",
        '"time"), run, TIME)',
        '"time"), run, VIEW)',
        GRID_DIT + "matched_control_adds_a_linear_map_of_a_blocks_input_and_output[sequential]",
    ),
    Break(
        "models/fusions/fusion.py",
        "self.to_view, self.changed(message, stream))",
        "self.to_view, message)",
        SYNC + "every_message_passes_the_probe_and_without_them_a_stream_keeps_its_own_part[soft-zero]",
    ),
    # parallel/
    Break(
        "parallel/layout.py",
        'group = getattr(type(module), "group", group)',
        'group = "base"',
        LAYOUT + "claims_of_stacked_layers_leave_the_layer_axis_whole_and_keep_the_group_of_the_module",
    ),
    Break(
        "parallel/layout.py",
        "Claim(P(None, *spec) if stacked else spec, group)",
        "Claim(spec, group)",
        LAYOUT + "claims_of_stacked_layers_leave_the_layer_axis_whole_and_keep_the_group_of_the_module",
    ),
    # codecs/
    Break(
        "codecs/codec.py",
        "if (group.any(-1) != group.all(-1)).any():",
        "if False:",
        "test_extending.py::test_codec_that_halves_time_takes_masks_of_whole_groups_only",
    ),
    Break(
        "codecs/codec.py",
        "value[:, list(group)].all(1)",
        "value[:, list(group)].any(1)",
        BATCHES + "masks_of_a_codec_that_merges_times_are_over_latents",
    ),
    # checkpoints/
    Break(
        "checkpoints/weights.py",
        "if tensors[name].shape != shape.shape:",
        "if False:",
        WEIGHTS + "misshapen_tensor_is_named_with_both_shapes",
    ),
    Break(
        "checkpoints/weights.py",
        "        if not np.isfinite(part).all():",
        "        if False:",
        WEIGHTS + "a_single_number_that_is_not_finite_is_refused[nan]",
    ),
    Break(
        "checkpoints/upgrade.py",
        '"base.given": "base.given.vector",',
        "",
        "test_commit_9315f0d.py::test_grid_model_computes_what_it_computed",
    ),
    # diffusion/
    Break(
        "diffusion/flow.py",
        "jnp.maximum(per_cell(sigma), SIGMA_FLOOR)",
        "per_cell(sigma)",
        FLOW + "given_cells_and_invalid_pixels_get_no_gradient_and_no_nan_reaches_the_others[x0]",
    ),
    Break(
        "diffusion/flow.py",
        "jnp.where(left_out[..., None, None, None], 0.0, 1.0 if",
        "jnp.where(left_out[..., None, None, None], 1.0, 1.0 if",
        FLOW + "loss_is_the_mean_over_each_examples_own_unknown_valid_pixels[u]",
    ),
    Break(
        "diffusion/flow.py",
        "jnp.minimum(1.0, most * variance)",
        "jnp.minimum(1.0, most * jnp.sqrt(variance))",
        FLOW + "loss_with_a_largest_weight_is_the_weighted_squared_error_of_x0[5.0-u]",
    ),
    Break(
        "diffusion/flow.py",
        "error * variance / huber**2",
        "error / huber**2",
        FLOW + "pseudo_huber_loss_is_its_formula_of_the_error_of_x0[0.1-5.0-x0]",
    ),
    Break(
        "diffusion/flow.py",
        "jax.lax.stop_gradient(size)",
        "size",
        FLOW + "gap_has_no_gradient_through_its_denominator",
    ),
    Break(
        "diffusion/flow.py",
        "jax.random.bernoulli(jax.random.fold_in(key, 1), config.pure)",
        "jax.random.bernoulli(key, config.pure)",
        FLOW + "share_of_pure_noise_is_that_asked_for_and_leaves_the_other_draws_alone",
    ),
    Break("diffusion/flow.py", "shift * sigma / (1.0", "sigma / (1.0", FLOW + "shift_multiplies_the_odds_of_noise"),
    Break(
        "diffusion/guidance.py",
        "known = known._replace(mask=jnp.zeros_like(known.mask))",
        "pass",
        GUIDANCE + "branches_are_one_batch_and_one_without_the_given_cells_sees_them_as_unknown",
    ),
    Break(
        "diffusion/guidance.py",
        "np.array([1 - scale, scale], np.float32)",
        "np.array([-scale, scale], np.float32)",
        GUIDANCE + "usual_scale_extrapolates_from_the_answer_without_given_cells_and_text[u]",
    ),
    Break(
        "diffusion/guidance.py",
        "if scale == 1:",
        "if False:",
        GUIDANCE + "scale_1_is_one_evaluation_and_the_denoiser_itself",
    ),
    Break(
        "diffusion/guidance.py",
        "return jnp.where(mask, known.frames, x0)",
        "return x0",
        STAGE + "given_cells_are_clean_before_every_evaluation_and_at_the_end[euler]",
    ),
    Break(
        "diffusion/guidance.py",
        "sum(weight * part for",
        "sum(part for",
        GUIDANCE + "answer_is_the_weighted_sum_of_separate_calls_with_the_known_frames_put_in[u]",
    ),
    Break(
        "diffusion/samplers/heun.py",
        "(before / after - 1) / 2",
        "(before / after - 1) / 3",
        SAMPLERS + "sampler_converges_to_the_exact_flow_with_its_order[heun-2-1.0-32]",
    ),
    Break(
        "diffusion/samplers/unipc.py",
        "rho = (b1 - b2) / (1 - r)",
        "rho = 0.0",
        SAMPLERS + "euler_and_unipc_give_the_samples_of_diffusers[unipc/3/even/20]",
    ),
    Break(
        "diffusion/samplers/unipc.py",
        'row["correct_new"] * (x0 - state.x0)',
        "0.0",
        SAMPLERS + "euler_and_unipc_give_the_samples_of_diffusers[unipc/3/even/20]",
    ),
    Break(
        "diffusion/samplers/base.py",
        "if levels[-2] < np.float32(floor)",
        "if False",
        SAMPLERS + "last_level_is_the_floor_where_it_would_be_below_it[3.0]",
    ),
    Break(
        "diffusion/noise.py",
        "jax.random.fold_in(jax.random.fold_in(key, v), t)",
        "jax.random.fold_in(key, v * times + t)",
        "diffusion/test_noise.py::test_noise_of_a_cell_does_not_depend_on_the_grids_size",
    ),
    Break(
        "diffusion/denoiser.py",
        "x = jnp.where(put, known.frames, x)",
        "pass",
        DENOISER + "known_frames_are_in_the_input_at_sigma_0_and_in_the_answer_bit_for_bit",
    ),
    Break(
        "diffusion/denoiser.py",
        "sigma = jnp.where(known.exists, sigma, 1.0)",
        "pass",
        DENOISER + "missing_cells_see_sigma_1_and_invalid_pixels_of_given_cells_stay_as_they_are_in_x",
    ),
    Break(
        "diffusion/stage.py", "else weights[row]", "else weights[0]", STAGE + "weights_may_change_with_every_evaluation"
    ),
    # training/
    Break(
        "training/optimizer.py",
        'lambda path, _: path[-1].key == "kernel"',
        "lambda path, _: True",
        OPTIMIZER + "weight_decay_shrinks_kernels_and_nothing_else",
    ),
    Break(
        "training/optimizer.py",
        "jnp.minimum(config.ema, (1.0 + updates) / (10.0 + updates))",
        "config.ema",
        OPTIMIZER + "average_follows_its_formula_at_every_update[1]",
    ),
    Break(
        "training/optimizer.py",
        "moved = (step + 1) % config.accumulate == 0",
        "moved = True",
        OPTIMIZER + "average_follows_its_formula_at_every_update[3]",
    ),
    Break(
        "training/optimizer.py",
        '== "sync", params)',
        '!= "sync", params)',
        OPTIMIZER + "learning_rate_of_the_sync_layers_scales_their_updates_and_no_others[1]",
    ),
    Break(
        "training/step.py",
        " / len(heads.streams)",
        "",
        STEP + "loss_of_the_heads_is_the_mean_of_each_streams_own_beside_that_of_the_readout[5.0]",
    ),
    Break(
        "training/step.py",
        "(jnp.arange(layers) + 1) / layers",
        "jnp.arange(layers) / layers",
        STEP + "loss_of_the_gap_is_the_mean_over_layers_and_cells_with_its_weight[depth]",
    ),
    Break(
        "data/sources/shift_and_roll.py",
        "pixels - depth * shift[:, None]",
        "pixels - shift[:, None]",
        ROLL + "sprites_move_before_a_background_that_stands_still_in_time",
    ),
    Break(
        "data/sources/shift_and_roll.py",
        "own_time + own_view - whole",
        "own_time + own_view - own_time.mean(1, keepdims=True)",
        ROLL + "floors_of_sprites_are_the_means_over_all_shifts_and_rolls",
    ),
    Break(
        "training/state.py",
        '"sync": {"sync"},',
        '"sync": {"sync", "conditions"},',
        STATE + "training_groups_hold_exactly_the_listed_paths[sync]",
    ),
    Break(
        "training/step.py",
        "jnp.isfinite(jnp.stack(list(metrics.values()))).all()",
        "jnp.isfinite(loss)",
        STEP + "step_that_is_not_finite_changes_nothing_but_the_step_number[gradient]",
    ),
    Break(
        "training/step.py",
        "lambda x: x / count, total",
        "lambda x: x, total",
        STEP + "microbatches_make_the_step_of_the_whole_batch_with_less_memory",
    ),
    Break(
        "training/step.py",
        "lambda place: jax.random.fold_in(key, place)",
        "lambda place: key",
        STEP + "noise_differs_between_steps_seeds_examples_and_purposes",
    ),
    Break(
        "training/step.py",
        "known.mask | ~known.exists",
        "known.mask",
        STEP + "missing_cells_are_noise_at_sigma_1_and_invalid_pixels_noise_and_neither_has_a_loss",
    ),
    Break(
        "training/step.py",
        'examples.get("dropped", {})',
        "{}",
        STEP + "cameras_teach_their_map_only_where_they_are_known[dropped]",
    ),
    Break(
        "training/cost.py",
        'repeats = parameters["length"]',
        "repeats = 1",
        "training/test_cost.py::test_body_of_a_scan_counts_as_often_as_it_runs_also_under_jit_and_checkpoint",
    ),
    Break(
        "training/prepare.py",
        " = data_from(done + left_out.offset(done))",
        " = data_from(0)",
        "training/test_loop.py::test_run_stopped_by_a_signal_saves_and_resumes_as_if_never_stopped[15]",
    ),
    Break(
        "training/prepare.py",
        "self.left_out.add(done, bad - done)",
        "self.left_out.add(done, 1)",
        "training/test_bad_steps.py::test_beyond_the_budget_the_run_goes_back_and_takes_the_data_after",
    ),
    Break(
        "parallel/replicas.py",
        "if 2 * counts.max() > len(copies) else None",
        "if 2 * counts.max() >= len(copies) else None",
        "parallel/test_replicas.py::test_one_flipped_bit_names_its_process[2-odd1-bias]",
    ),
    Break(
        "training/orbax.py",
        "found[name] != expected[name]",
        "False",
        CHECKPOINT + "newest_checkpoint_with_a_broken_file_gives_way_to_the_one_before[state/d/*-half-written]",
    ),
    Break(
        "training/orbax.py",
        "arrays[name][2] != int(found[name])",
        "False",
        CHECKPOINT + "arrays_that_read_well_but_not_as_they_were_written_are_noticed",
    ),
    Break(
        "training/orbax.py",
        "(wait or self._saving[1].done())",
        "wait",
        CHECKPOINT + "failed_save_is_raised_by_the_next_check_without_waiting_for_the_next_save",
    ),
    Break(
        "training/local.py",
        "if len(set(listings)) > 1",
        "if False",
        LOCAL + "processes_whose_files_differ_or_of_which_one_is_damaged_all_take_the_runs_folder",
    ),
    Break(
        "training/local.py",
        "found[name] != listed.get(name)",
        "False",
        LOCAL + "one_that_does_not_fit_is_left_for_the_runs_folder[changed]",
    ),
    Break(
        "training/local.py",
        "self._delete(mine if failure else",
        "self._delete(self._names() if failure else",
        LOCAL + "one_that_cannot_be_written_is_said_and_leaves_the_one_before",
    ),
    Break(
        "training/log.py",
        "self._events.tell() > FILE_BYTES",
        "False",
        LOG + "events_go_on_in_a_new_file_where_one_is_large_and_are_the_same_in_all[3]",
    ),
    Break(
        "training/log.py",
        "if step <= start_step), default=0)",
        "if step), default=0)",
        LOG + "resumed_logs_drop_what_came_after_the_checkpoint[3]",
    ),
    Break(
        "training/log.py",
        "or end > len(data):",
        ":",
        LOG + "torn_last_entry_is_written_anew[0-21-tensorboard/events.out.tfevents.run]",
    ),
    Break(
        "serialize.py",
        "        if key not in fields:",
        "        if False:",
        "training/test_config.py::test_unknown_key_is_refused_with_its_path_and_the_nearest_known_one",
    ),
    # host/
    Break(
        "host/processes.py",
        "            self._failed.set()  # what",
        "            pass  # what",
        "host/test_processes.py::test_process_that_tells_of_a_hang_ends_with_its_line_and_code_where_its_main_thread_fails_meanwhile[1]",
    ),
    Break(
        "host/watchdog.py",
        "limit *= 2",
        "limit *= 1",
        "host/test_watchdog.py::test_standstill_is_named_at_doubling_intervals_until_something_moves",
    ),
    Break(
        "host/watchdog.py",
        '"saving": "save"',
        '"saving": "restore"',
        "host/test_watchdog.py::test_each_phase_ends_at_the_limit_of_its_kind_and_0_is_none[saving-save]",
    ),
    Break(
        "host/retry.py",
        "if number not in FAULTS:",
        "if number in FAULTS:",
        "host/test_retry.py::test_read_that_fails_by_a_fault_is_tried_again_after_growing_pauses_with_a_line_each",
    ),
    Break(
        "training/orbax.py",
        "one for one in older if one not in self._aside",
        "one for one in older",
        CHECKPOINT + "checkpoint_that_was_set_aside_stays_until_its_steps_or_later_ones_are_saved",
    ),
    # host/bucket.py, lease.py, training/storage.py
    Break(
        "host/bucket.py",
        "if not below:  # tensorstore",
        "if False:  # tensorstore",
        BUCKET + "bucket_that_refuses_is_no_empty_one[iterdir]",
    ),
    Break(
        "host/lease.py",
        "if self._generation != first:",
        "if False:",
        BUCKET + "folder_in_a_bucket_has_one_writer_at_a_time",
    ),
    Break(
        "host/lease.py",
        'self._lose("another process has taken it over")',
        "pass",
        BUCKET + "process_that_has_lost_its_lease_ends_at_once_with_one_line_for_a_new_start",
    ),
    Break(
        "host/lease.py",
        "found = there[1]",
        "return False",
        BUCKET + "lease_whose_renewal_got_lost_on_the_way_back_is_still_the_holder_s",
    ),
    Break(
        "training/orbax.py",
        "        self.before_seal()\n",
        "",
        "training/test_storage.py::test_files_of_this_host_are_in_the_bucket_before_a_seal_and_only_once",
    ),
    Break(
        "training/storage.py",
        'path.suffix != ".tmp" and self._sent.get(path) != stamp(path)',
        'path.suffix != ".tmp"',
        "training/test_storage.py::test_files_of_this_host_are_in_the_bucket_before_a_seal_and_only_once",
    ),
    # data/
    Break(
        "data/masks.py",
        "return given if (exists & ~given).any() else _scattered(rng, exists)",
        "return given",
        MASKS + "never_is_every_cell_given_at_any_size_and_kind[1]",
    ),
    Break(
        "data/batches.py",
        "+ process * share + place",
        "+ place",
        BATCHES + "parts_of_all_processes_concatenate_to_the_batch_of_one_process[2-grid]",
    ),
    Break(
        "data/batches.py",
        "range(start_step * share,",
        "range(start_step,",
        BATCHES + "batch_of_a_step_is_the_same_wherever_the_run_starts[grid]",
    ),
    Break(
        "data/batches.py",
        "if own <= chosen]",
        "if own & chosen]",
        BATCHES + "share_of_the_units_leaves_the_grids_that_show_no_others",
    ),
    Break(
        "data/batches.py",
        'masks, recorded.get("exists"))',
        "masks)",
        BATCHES + "missing_cells_and_invalid_pixels_reach_the_batch_and_no_missing_cell_is_given",
    ),
    Break(
        "data/records.py",
        "crc = zlib.crc32(record, crc)",
        "crc = 0",
        RECORDS + "the_fingerprint_tells_data_sets_apart_by_their_values",
    ),
    Break(
        "data/sources/records.py",
        "int(a * across + b)",
        "int(a * across)",
        RECORDS + "cuts_of_scenes_in_several_records_are_cuts_of_the_scenes",
    ),
    Break(
        "data/sources/records.py",
        "np.unique(cut.times // wide)",
        "range(stored.tiles[1])",
        RECORDS + "a_cut_reads_only_the_records_that_hold_it",
    ),
    # metrics/
    Break(
        "metrics/pixels.py",
        "(variances + c2)",
        "(variances + c1)",
        "metrics/test_pixels.py::test_ssim_is_that_of_scikit_image",
    ),
    Break(
        "metrics/statistics.py",
        "size=(RESAMPLES, count)",
        "size=(RESAMPLES, 2 * count)",
        "metrics/test_statistics.py::test_interval_is_scipys_percentile_bootstrap",
    ),
    Break(
        "metrics/moved_baselines.py",
        "(frames[w, t], frames[w, s])",
        "(frames[w, t], frames[w, t])",
        "metrics/test_moved_baselines.py::test_where_nothing_moves_the_copy_stays_and_elsewhere_the_mean_of_all",
    ),
    # motion/
    Break(
        "motion/splat.py",
        "targets[target] = pixels[order]",
        "targets[order] = pixels[order]",
        "motion/test_splat.py::test_every_valid_pixel_goes_where_its_motion_points_and_the_highest_rank_stays",
    ),
    Break(
        "motion/moved.py",
        "more = _read(second, first)",
        "more = second.copy()",
        MOVED_PIXELS + "[DIS-rectangles]",
    ),
    Break("motion/moved.py", "+ 128 * (field[..., 2] <= 1)", "+ 0", MOVED_PIXELS + "[DIS-rectangles]"),
    Break(
        "motion/moved.py",
        "(*way.sources[::-1], 1 - way.share)",
        "(*way.sources[::-1], way.share)",
        MOVED_PIXELS + "[analytic-pairs]",
    ),
    Break(
        "motion/moved.py",
        "abs(w - v) / views + abs(s - t) / times",
        "abs(w - v) + abs(s - t)",
        "motion/test_moved.py::test_route_is_that_of_a_search[1]",
    ),
    Break(
        "conditions/hints.py",
        "nearest[..., :1, :, :, :3]",
        "nearest[..., 1:, :, :, :3]",
        "conditions/test_hints.py::test_moved_pictures_stand_beside_the_nearest_and_holes_show_that_of_the_view",
    ),
    # evaluation/
    Break(
        "evaluation/evaluate.py",
        "return np.where(self.given[:, :, None, None, None], self.truth, np.uint8(0))",
        "return self.truth",
        "evaluation/test_evaluate.py::test_no_method_sees_an_unknown_cell",
    ),
    Break(
        "evaluation/evaluate.py",
        'whole = text[: text.rfind("\\n") + 1]',
        "whole = text",
        "evaluation/test_evaluate.py::test_a_killed_evaluation_goes_on_and_ends_as_if_never_stopped",
    ),
    Break(
        "evaluation/ablation/report.py",
        'whole["kept"]) - np.array(whole[change])',
        'whole[change]) - np.array(whole["kept"])',
        ABLATION + "messages_are_worth_what_a_grid_loses_by_another_scenes_at_the_highest_noise",
    ),
    Break(
        "evaluation/ablation/grid_scores.py",
        "cell_noise(index, views",
        "cell_noise(0 * index, views",
        ABLATION + "noise_of_a_test_grid_is_its_own_and_the_same_for_every_arm",
    ),
    # bad input
    Break("serialize.py", "if type(value) is option or", "if True or", BAD_INPUT + "[bool_for_a_depth]"),
    Break(
        "media/npz.py",
        "(needed != stored or needed > MAX_BYTES)",
        "False",
        BAD_INPUT + "[npz_that_claims_10^12_frames]",
    ),
    Break(
        "data/sources/records.py",
        " or not {features",
        " or False and not {features",
        BAD_INPUT + "[data_set_that_names_a_class_of_its_own]",
    ),
    Break(
        "host/folders.py",
        "for leftover in (partial, old):",
        "for leftover in (old,):",
        BAD_INPUT + "[unit_that_is_no_mesh]",
    ),
]


def copy_tree(folder: Path) -> Path:
    """A copy of what the tests need; without compiled files, which could stand in for a broken source."""
    for name in COPIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "assets")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def pytest(tree: Path, *tests: str) -> tuple[int, str]:
    """(exit code, output) of tests of a copy in a process of their own."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload([*LIBRARIES])
    process = forks.Process(target=_pytest, args=(tree, [f"tests/{test}" for test in tests]))
    process.start()
    process.join(600)
    if process.exitcode is None:
        process.kill()
    return process.exitcode, (tree / "output").read_text()


def _pytest(tree: Path, nodes: list[str]) -> None:
    with (tree / "output").open("w") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    compiled = str(tree / "compiled")
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "FOURREAL_TESTS_COMPILED": compiled}
    sys.dont_write_bytecode = True
    import pytest

    sys.exit(pytest.main(["-q", "--durations=0", "-p", "no:cacheprovider", "-p", "no:xdist", *nodes]))


def verdict(tree: Path, one: Break) -> str:
    """`caught`, or what happened instead."""
    path = tree / "fourreal" / one.file
    text = path.read_text()
    if misfit := occurrence(one, text):
        return misfit
    try:
        path.write_text(text.replace(one.old, one.new))
        code, said = pytest(tree, one.test)
    finally:
        path.write_text(text)
    summary = (said.strip().splitlines() or ["it said nothing"])[-1]
    if code == 1 and re.match(r"1 failed\b", summary) and "error" not in summary:
        return "caught"
    return f"not caught: {summary}"


def occurrence(one: Break, text: str) -> str:
    """What is wrong with a fragment in the text of its file; empty where it occurs once and the break changes it."""
    if (count := text.count(one.old)) != 1:
        return f"the fragment occurs {count} times"
    return "the break changes nothing" if one.old == one.new else ""


def check(breaks: list[Break]) -> list[str]:
    """A line for every break whose fragment or test is not there. Pytest collects the tests and runs none."""
    wrong = []
    for one in breaks:
        path = ROOT / "fourreal" / one.file
        misfit = occurrence(one, path.read_text()) if path.is_file() else "there is no such file"
        if misfit:
            wrong.append(f"{one.file}: {misfit}: {one.old!r}")
    named = {f"tests/{one.test}" for one in breaks}
    files = sorted({test.partition("::")[0] for test in named})
    gone = [file for file in files if not (ROOT / file).is_file()]
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider", "-p", "no:xdist"]
    found = subprocess.run([*command, *(set(files) - set(gone))], cwd=ROOT, capture_output=True, text=True)
    lines = set(found.stdout.splitlines())
    if found.returncode != 0:
        wrong.append(f"pytest cannot collect the tests:\n{found.stdout[-3000:]}{found.stderr[-3000:]}")
    return wrong + [f"there is no test {test}" for test in sorted(named - lines)]


def run_all(breaks: list[Break], unbroken_first: bool = True) -> dict[Break, str]:
    """The verdict on every break; `unbroken_first`: raises RuntimeError if a named test fails on unbroken code."""
    with tempfile.TemporaryDirectory() as temporary:
        trees: Queue[Path] = Queue()
        for worker in range(WORKERS):
            trees.put(copy_tree(Path(temporary) / str(worker)))

        def with_tree(work, argument):
            tree = trees.get()
            try:
                return work(tree, argument)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(WORKERS) as pool:
            if unbroken_first:
                halves = [sorted({one.test for one in breaks})[worker::WORKERS] for worker in range(WORKERS)]
                for code, said in pool.map(lambda tests: with_tree(lambda tree, t: pytest(tree, *t), tests), halves):
                    if code != 0:
                        raise RuntimeError(f"named tests fail on unbroken code:\n{said[-3000:]}")
            verdicts = pool.map(lambda one: with_tree(verdict, one), breaks)
            return dict(zip(breaks, verdicts, strict=True))


def main() -> None:
    """Prints a table and exits with 1 if a break went unnoticed; with `--check`, what does not fit the code and the tests."""
    if sys.argv[1:] == ["--check"]:
        wrong = check(BREAKS)
        print(*wrong, f"{len(BREAKS)} breaks, {len(wrong)} do not fit the code and the tests", sep="\n")
        sys.exit(bool(wrong))
    if sys.argv[1:]:
        sys.exit(f"{' '.join(sys.argv[1:])}: expected --check or nothing")
    verdicts = run_all(BREAKS)
    for one, found in verdicts.items():
        print(f"{found:<10} {one.file:<22} {' '.join(one.old.split())}  ->  {one.new or '(nothing)'}")
    caught = sum(found == "caught" for found in verdicts.values())
    print(f"{caught} of {len(verdicts)} breaks caught")
    sys.exit(caught != len(verdicts))


if __name__ == "__main__":
    main()
