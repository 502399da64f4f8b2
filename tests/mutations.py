"""Breaks the code one line at a time and shows that the test named beside each break fails.

python tests/mutations.py

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
GRID, ATTENTION, LAYERS = "test_grid.py::test_", "models/test_attention.py::test_", "models/test_layers.py::test_"
DIT, SYNC, GRID_DIT = "models/test_video_dit.py::test_", "models/test_sync.py::test_", "models/test_grid_dit.py::test_"
CAMERAS, KERNELS = "models/test_cameras.py::test_", "models/test_kernels.py::test_"
WEIGHTS, FLOW = "models/test_weights.py::test_", "diffusion/test_flow.py::test_"
GUIDANCE, SAMPLERS = "diffusion/test_guidance.py::test_", "diffusion/test_samplers.py::test_"
OPTIMIZER, STATE, STEP = (f"training/test_{name}.py::test_" for name in ("optimizer", "state", "step"))
ABLATION = "evaluation/test_ablation.py::test_"
CHECKPOINT, METRICS = (f"training/test_{name}.py::test_" for name in ("checkpoint", "metrics"))
MASKS, PIPELINE = "data/test_masks.py::test_", "data/test_pipeline.py::test_"

BREAKS = [
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
        "jnp.where(given[..., None, :], distance, frames)",
        "jnp.where(given[..., None, :], distance, 0)",
        GRID + "nearest_given_frame_is_that_of_a_search_for_every_mask[5]",
    ),
    Break(
        "grid.py",
        "own_time = swap_view_time(_with_borrowed(swap_view_time(grid), swap_view_time(given)))",
        "own_time = _with_borrowed(grid, given)",
        GRID + "hints_are_the_nearest_given_cells_of_the_own_or_the_nearest_view_and_time",
    ),
    Break(
        "grid.py",
        "jnp.where(given, 0.0, sigma.astype(jnp.float32))",
        "sigma + 0.0 * given",
        GRID + "sigma_of_an_example_reaches_all_of_its_unknown_cells",
    ),
    # models/cameras.py
    Break(
        "models/cameras.py",
        "jnp.cross(origins",
        "jnp.cross(-origins",
        CAMERAS + "every_point_on_a_pixels_ray_has_its_moment",
    ),
    Break(
        "models/cameras.py",
        "[:height, :width] + 0.5",
        "[:height, :width]",
        CAMERAS + "every_point_on_a_pixels_ray_has_its_moment",
    ),
    Break(
        "models/cameras.py",
        "/ focus[..., None, None]",
        "/ 1",
        CAMERAS + "rays_do_not_depend_on_the_worlds_place_direction_and_unit",
    ),
    # models/attention.py
    Break(
        "models/attention.py",
        "/ (a + b - c)",
        "/ (a + b)",
        ATTENTION + "fused_merge_is_one_masked_softmax_in_values_and_gradients[0.0-xla]",
    ),
    Break(
        "models/attention.py",
        "(a.astype(jnp.float32) + b - c)",
        "(a.astype(jnp.float32) + b)",
        ATTENTION + "fused_merge_is_one_masked_softmax_in_values_and_gradients[0.0-splash]",
    ),
    Break(
        "models/attention.py",
        "(checkpoint_name(x, name) for x in kernels.forward(q, k, v, kernel))",
        "kernels.forward(q, k, v, kernel)",
        ATTENTION
        + "flash_kernel_runs_its_forward_again_only_where_its_result_is_not_kept[attention_out-1-clip_attention-1]",
    ),
    # models/kernels.py
    Break(
        "models/kernels.py",
        'hqk", q * q.shape[-1] ** -0.5, k',
        'hqk", q * q.shape[-1] ** -1.0, k',
        ATTENTION + "attend_is_a_dense_softmax",
    ),
    Break(
        "models/kernels.py",
        "jnp.exp(logits - peak)",
        "jnp.exp(logits)",
        ATTENTION + "attend_is_exact_for_logits_in_the_thousands",
    ),
    Break(
        "models/kernels.py",
        "(jnp.arange(filled) >= keys)",
        "(jnp.arange(filled) > keys)",
        KERNELS + "kernel_is_a_dense_softmax_in_values_and_gradients[splash-one-filled-block]",
    ),
    Break(
        "models/kernels.py",
        "(from_values - jnp.swapaxes(_product(do, out), -3, -2))",
        "from_values",
        KERNELS + "kernel_is_a_dense_softmax_in_values_and_gradients[xla]",
    ),
    # models/layers.py
    Break(
        "models/kernels.py",
        '(_matmul("...ke,...qe->...kq", v, do) - product)',
        '_matmul("...ke,...qe->...kq", v, do)',
        KERNELS + "kernel_is_a_dense_softmax_in_values_and_gradients[chunked]",
    ),
    Break(
        "models/layers.py",
        "(1 + scale[..., None, :])",
        "scale[..., None, :]",
        LAYERS + "modulation_scales_by_one_plus_scale_then_shifts_per_frame",
    ),
    Break(
        "models/layers.py",
        "[jnp.cos(angle), jnp.sin(angle)]",
        "[jnp.sin(angle), jnp.cos(angle)]",
        LAYERS + "sinusoid_is_cosines_then_sines",
    ),
    Break(
        "models/layers.py",
        "space = 2 * (head_size // 6)",
        "space = 2 * (head_size // 8)",
        LAYERS + "rotary_angles_split_a_head_into_time_y_and_x_as_wan_does[12]",
    ),
    Break(
        "models/layers.py",
        "[-second, first]",
        "[second, -first]",
        LAYERS + "rotation_multiplies_neighbouring_pairs_that_lie_apart_as_complex_numbers",
    ),
    Break(
        "models/layers.py",
        '"... (h half pair) ->',
        '"... (h pair half) ->',
        LAYERS + "block_is_the_formula_of_its_module[False]",
    ),
    Break(
        "models/layers.py",
        "query_norm(query(x))",
        "query(x)",
        LAYERS + "queries_and_keys_are_normalised_over_all_heads_together",
    ),
    Break(
        "models/layers.py",
        "approximate=True",
        "approximate=False",
        LAYERS + "mlp_is_linear_gelu_in_its_tanh_form_linear",
    ),
    # models/video_dit.py
    Break(
        "models/video_dit.py",
        "sinusoid(1000.0 * sigma",
        "sinusoid(sigma",
        "models/test_wan_parity.py::test_wan_and_video_dit_agree_with_one_sigma_an_example",
    ),
    Break(
        "models/video_dit.py",
        "return six + self.context[CONTEXTS.index(context)]",
        "return six",
        DIT + "context_is_a_row_added_to_the_table_of_every_block_and_not_to_the_head[0]",
    ),
    Break(
        "models/video_dit.py",
        "jnp.where(given[..., None, None], self.given[...], 0)",
        "self.given[...]",
        DIT + "given_vector_tells_a_given_frame_from_an_unknown_one_of_sigma_0",
    ),
    # models/sync.py
    Break(
        "models/sync.py",
        "to_view + self.pull * y_t",
        "to_view - self.pull * y_t",
        SYNC + "sync_layer_is_its_formula_at_every_token[soft-consensus]",
    ),
    Break(
        "models/sync.py",
        "own_v, to_time = self",
        "to_time, own_v = self",
        SYNC + "sync_layer_is_its_formula_at_every_token[soft-zero]",
    ),
    Break(
        "models/sync.py",
        "y * (1 + scale)",
        "y * scale",
        SYNC + "sync_layer_is_its_formula_at_every_token[hard-half]",
    ),
    Break(
        "models/sync.py",
        "self.weights[VIEW] * y_v",
        "self.weights[TIME] * y_v",
        SYNC + "fresh_sync_layer_is_its_fixed_mix_even_around_bf16_matmuls[hard-time]",
    ),
    Break(
        "models/sync.py",
        "self.kernel = nnx.Param(jnp.zeros(",
        "self.kernel = nnx.Param(jnp.ones(",
        SYNC + "fresh_sync_layer_is_its_fixed_mix_even_around_bf16_matmuls[soft-zero]",
    ),
    # models/grid_dit.py
    Break(
        "models/grid_dit.py",
        'base.add_context(six, "freeze_time")',
        'base.add_context(six, "dynamic")',
        GRID_DIT + "soft_sync_at_init_equals_the_base_on_every_video_of_the_readout[view-freeze_time-False]",
    ),
    Break(
        "models/grid_dit.py",
        "base.angles(np.arange(times), size)",
        "base.angles(np.arange(times) * 0, size)",
        GRID_DIT + "soft_sync_at_init_equals_the_base_on_every_video_of_the_readout[time-dynamic-False]",
    ),
    Break(
        "models/grid_dit.py",
        '"(v t) s e -> v t s e"',
        '"(t v) s e -> v t s e"',
        GRID_DIT + "fused_is_the_base_on_the_clip_of_all_cells_seen_through_a_dense_mask",
    ),
    Break(
        "models/grid_dit.py",
        "if synced else (y_v, y_t)",
        "if synced else (swap_view_time(y_t), y_t)",
        GRID_DIT + "unsynchronized_streams_never_cross_whatever_the_depth",
    ),
    Break(
        "models/grid_dit.py",
        "return sum(heads) / len(heads)",
        "return sum(heads)",
        GRID_DIT + "unsynchronized_streams_equal_the_base_on_every_video",
    ),
    Break(
        "models/grid_dit.py",
        "mod_linear(sync.VIEW, x,",
        "mod_linear(sync.VIEW, y,",
        GRID_DIT + "matched_control_adds_a_linear_map_of_a_blocks_input_and_output[fused]",
    ),
    Break(
        "models/grid_dit.py",
        "over_times(block, x), sync.TIME)",
        "over_times(block, x), sync.VIEW)",
        GRID_DIT + "matched_control_adds_a_linear_map_of_a_blocks_input_and_output[sequential]",
    ),
    # models/weights.py
    Break(
        "models/weights.py",
        "if tensors[name].shape != shape.shape:",
        "if False:",
        WEIGHTS + "misshapen_tensor_is_named_with_both_shapes",
    ),
    Break(
        "models/weights.py",
        "        if not np.isfinite(part).all():",
        "        if False:",
        WEIGHTS + "a_single_number_that_is_not_finite_is_refused[nan]",
    ),
    # diffusion
    Break(
        "diffusion/flow.py",
        "jnp.maximum(per_cell(sigma), SIGMA_FLOOR)",
        "per_cell(sigma)",
        FLOW + "given_cells_and_invalid_pixels_get_no_gradient_and_no_nan_reaches_the_others[x0]",
    ),
    Break(
        "diffusion/flow.py",
        "jnp.where(given[..., None, None, None], 0.0, 1.0 if valid is None else valid)",
        "jnp.where(given[..., None, None, None], 1.0, 1.0 if valid is None else valid)",
        FLOW + "loss_is_the_mean_over_each_examples_own_unknown_valid_pixels[u]",
    ),
    Break(
        "diffusion/flow.py",
        "shift * sigma / (1.0",
        "sigma / (1.0",
        FLOW + "shift_multiplies_the_odds_of_noise",
    ),
    Break(
        "diffusion/guidance.py",
        "jnp.where(given[..., None, None, None], noised, x)",
        "x",
        GUIDANCE + "guidance_over_given_cells_extrapolates_from_the_unconditional_answer[x0]",
    ),
    Break(
        "diffusion/guidance.py",
        "(w_given - w_text, True, False)",
        "(w_given, True, False)",
        GUIDANCE + "guidance_over_given_cells_and_text_is_the_formula_of_three_calls[u]",
    ),
    Break(
        "diffusion/guidance.py",
        "if branch[0] != 0.0",
        "if True",
        GUIDANCE + "weight_1_is_one_evaluation_without_guidance[x0]",
    ),
    Break(
        "diffusion/samplers.py",
        "return reset(x + (after - sigma) * u), None",
        "return x + (after - sigma) * u, None",
        SAMPLERS + "given_cells_are_clean_before_every_evaluation_and_at_the_end[euler-4]",
    ),
    Break(
        "diffusion/samplers.py",
        "velocity(reset(x + (after - sigma) * u), after)",
        "velocity(reset(x), after)",
        SAMPLERS + "sampler_converges_to_the_exact_flow_with_its_order[heun-2-1.0]",
    ),
    Break(
        "diffusion/samplers.py",
        "jax.random.fold_in(jax.random.fold_in(key, v), t)",
        "jax.random.fold_in(key, v * times + t)",
        SAMPLERS + "noise_of_a_cell_does_not_depend_on_the_grids_size",
    ),
    # training
    Break(
        "training/optimizer.py",
        'path[-1].key == "kernel"',
        "True",
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
        "training/state.py",
        '    ("base", "context"),\n',
        "",
        STATE + "sync_trains_the_sync_layers_the_given_vector_the_hints_and_the_contexts",
    ),
    Break(
        "training/step.py",
        "jnp.isfinite(loss) & jnp.isfinite(norm)",
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
        "training/cost.py",
        'repeats = parameters["length"]',
        "repeats = 1",
        "training/test_cost.py::test_body_of_a_scan_counts_as_often_as_it_runs_also_under_jit_and_checkpoint",
    ),
    Break(
        "training/loop.py",
        "grid_batches(config.data, start_step=done,",
        "grid_batches(config.data, start_step=0,",
        "training/test_loop.py::test_run_stopped_by_a_signal_saves_and_resumes_as_if_never_stopped[15]",
    ),
    Break(
        "training/checkpoint.py",
        "if found.get(name) != sealed[name]",
        "if name not in found",
        CHECKPOINT + "newest_checkpoint_with_a_broken_file_gives_way_to_the_one_before[state/d/*-one bit]",
    ),
    Break(
        "training/checkpoint.py",
        "(wait or self._saving[1].done())",
        "wait",
        CHECKPOINT + "failed_save_is_raised_by_the_next_check_without_waiting_for_the_next_save",
    ),
    Break(
        "training/watchdog.py",
        "limit *= 2",
        "limit *= 1",
        "training/test_watchdog.py::test_standstill_is_named_at_doubling_intervals_until_something_moves",
    ),
    Break(
        "training/metrics.py",
        "if step <= start_step), default=0)",
        "if step), default=0)",
        METRICS + "resumed_logs_drop_what_came_after_the_checkpoint[3]",
    ),
    Break(
        "training/metrics.py",
        "or end > len(data):",
        ":",
        METRICS + "torn_last_entry_is_written_anew[0-21-tensorboard/events.out.tfevents.run]",
    ),
    Break(
        "serialize.py",
        "        if key not in fields:",
        "        if False:",
        "training/test_config.py::test_unknown_key_is_refused_with_its_path_and_the_nearest_known_one",
    ),
    # evaluation
    Break(
        "evaluation/metrics.py",
        "(variances + c2)",
        "(variances + c1)",
        "evaluation/test_metrics.py::test_ssim_is_that_of_scikit_image",
    ),
    Break(
        "evaluation/statistics.py",
        "size=(RESAMPLES, count)",
        "size=(RESAMPLES, 2 * count)",
        "evaluation/test_statistics.py::test_interval_is_scipys_percentile_bootstrap",
    ),
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
        "evaluation/optical_flow.py",
        "flow(frames[w, t], frames[w, s])",
        "flow(frames[w, s], frames[w, t])",
        "evaluation/test_optical_flow.py::test_transport_moves_the_views_frame_as_the_given_video_moves",
    ),
    # bad input
    Break(
        "serialize.py",
        "if type(value) is option or",
        "if True or",
        BAD_INPUT + "[bool_for_a_depth]",
    ),
    Break(
        "sampling/media.py",
        "(needed != stored or needed > MOST_BYTES)",
        "False",
        BAD_INPUT + "[npz_that_claims_10^12_frames]",
    ),
    Break(
        "data/builders/grids.py",
        " or not {features",
        " or False and not {features",
        BAD_INPUT + "[data_set_that_names_a_class_of_its_own]",
    ),
    Break(
        "destination.py",
        "for leftover in (partial, old):",
        "for leftover in (old,):",
        BAD_INPUT + "[unit_that_is_no_mesh]",
    ),
    # data
    Break(
        "data/masks.py",
        "return _scattered(rng, (views, times)) if given.all() else given",
        "return given",
        MASKS + "never_is_every_cell_given_at_any_size_and_kind[1]",
    ),
    Break(
        "data/pipeline.py",
        "+ process * share + place",
        "+ place",
        PIPELINE + "parts_of_all_processes_concatenate_to_the_batch_of_one_process[2-grid]",
    ),
    Break(
        "data/pipeline.py",
        "range(start_step * share,",
        "range(start_step,",
        PIPELINE + "batch_of_a_step_is_the_same_wherever_the_run_starts[grid]",
    ),
    Break(
        "data/pipeline.py",
        "if own <= chosen]",
        "if own & chosen]",
        PIPELINE + "share_of_the_units_leaves_the_grids_that_show_no_others",
    ),
    # evaluation
    Break(
        "evaluation/ablation_report.py",
        "budget = min(",
        "budget = max(",
        ABLATION + "equal_flops_are_those_of_the_cheapest_run_and_scores_are_read_between_evaluations",
    ),
    Break(
        "evaluation/ablation.py",
        "cell_noise(seed, *frames",
        "cell_noise(0 * seed, *frames",
        ABLATION + "noise_of_a_test_grid_is_its_own_and_the_same_for_every_arm",
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
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    import jax
    import pytest

    jax.config.update("jax_compilation_cache_dir", str(tree / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    sys.exit(pytest.main(["-q", "--durations=0", "-p", "no:cacheprovider", "-p", "no:xdist", *nodes]))


def verdict(tree: Path, one: Break) -> str:
    """`caught`, or what happened instead."""
    path = tree / "fourreal" / one.file
    text = path.read_text()
    if text.count(one.old) != 1:
        return f"the fragment occurs {text.count(one.old)} times"
    try:
        path.write_text(text.replace(one.old, one.new))
        code, said = pytest(tree, one.test)
    finally:
        path.write_text(text)
    summary = (said.strip().splitlines() or ["it said nothing"])[-1]
    if code == 1 and re.match(r"1 failed\b", summary) and "error" not in summary:
        return "caught"
    return f"not caught: {summary}"


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
    """Prints a table and exits with 1 if a break went unnoticed."""
    verdicts = run_all(BREAKS)
    for one, found in verdicts.items():
        print(f"{found:<10} {one.file:<22} {' '.join(one.old.split())}  ->  {one.new or '(nothing)'}")
    caught = sum(found == "caught" for found in verdicts.values())
    print(f"{caught} of {len(verdicts)} breaks caught")
    sys.exit(caught != len(verdicts))


if __name__ == "__main__":
    main()
