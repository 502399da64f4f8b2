"""The training loop on tiny grids in memory: what a run leaves, and that a stopped run goes on as if it never stopped.

The runs share compiled programs through JAX's compilation cache, see conftest.py: compiling is nearly all of their time.
"""

import contextlib
import dataclasses
import errno
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from scenes_in_memory import Noise, Pooling

from fourreal.checkpoints.specs import ModelSpec, describe_checkpoint
from fourreal.checkpoints.weights import fit_weights, flat_names, read_weights, save_weights
from fourreal.cli import parse
from fourreal.conditions import Cameras, Hints
from fourreal.data.batches import Batches, PipelineConfig
from fourreal.data.masks import CutMix, MaskMix
from fourreal.host.folders import locked
from fourreal.host.signals import StopSignal
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.models.build import fresh_params, model_table, split_model
from fourreal.parallel import layout
from fourreal.parallel.layout import placed_shapes
from fourreal.parallel.mesh import make_mesh
from fourreal.sampling.load import load_pipeline
from fourreal.serialize import to_json
from fourreal.training import initialize
from fourreal.training import orbax as checkpoint
from fourreal.training import prepare as preparing
from fourreal.training import run_folder as run_folder
from fourreal.training.bad_steps import BadStepsConfig
from fourreal.training.config import TrainConfig, read_run
from fourreal.training.initialize import initial_params
from fourreal.training.loop import run
from fourreal.training.optimizer import OptimConfig
from fourreal.training.orbax import Checkpoints
from fourreal.training.run_folder import Start, check_folder, make_folder
from fourreal.training.state import fresh_state
from fourreal.training.storage import Storage

pytestmark = pytest.mark.slow  # runs, killed and resumed: minutes together

VIEWS, TIMES, SIZE, STEPS = 2, 3, 4, 6
BASE = VideoDiTConfig(
    width=12, depth=1, heads=2, mlp_width=16, patch=(1, 2, 2), frequency_width=8, conditions=(Hints(drop=0.3),)
)
# attention: some parameters frozen, some not; two steps an update: stopping after 3 leaves half an update behind
GRID = TrainConfig(
    name="grid",
    model=BASE,
    data=PipelineConfig(source=Noise(), views=VIEWS, times=TIMES, batch_size=2, masks=MaskMix(none=0.0)),
    optim=OptimConfig(lr=0.01, warmup=0, accumulate=2, ema=0.5),
    trains="attention",
    steps=STEPS,
    eval_every=3,
    eval_grids=3,
    save_every=2,
    log_every=1,
)
CLIPS = dataclasses.replace(
    GRID,
    name="clips",
    grid=GridDiTConfig("base"),
    # one grid a batch: then the sheets of fixed-view and freeze-time videos, of different widths, stand below each other
    data=dataclasses.replace(GRID.data, cuts=CutMix(0.0, 0.4, 0.3, 0.3), batch_size=1),
    optim=OptimConfig(lr=0.01, warmup=0),
    trains="all",
    eval_every=0,
)


@pytest.fixture(scope="module")
def from_base(tmp_path_factory) -> Start:
    """A start from the weights of a base."""
    folder = tmp_path_factory.mktemp("base")
    spec = ModelSpec(BASE, CLIPS.grid, VIEWS, TIMES, (SIZE, SIZE))
    save_weights(folder, fresh_params(BASE, CLIPS.grid, GRID.seed), to_json(spec), dtype="float32")
    return Start(init_from=str(folder))


@pytest.fixture(scope="module")
def unbroken(from_base, tmp_path_factory) -> Path:
    """The folder of a run that nobody stopped."""
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    run(GRID, folder, from_base)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    """The folder of a base trained on clips."""
    folder = tmp_path_factory.mktemp("runs") / "clips"
    run(CLIPS, folder)
    return folder


def state_of(folder: Path, config: TrainConfig = GRID) -> dict:
    """The newest checkpoint, flat by path."""
    shapes = jax.eval_shape(lambda: fresh_state(fresh_params(config.model, config.grid, 0), config))
    checkpoints = Checkpoints(folder)
    state = checkpoints.restore(placed_shapes(shapes, model_table(config.model, config.grid)))
    checkpoints.close()
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def lines_of(folder: Path) -> list[str]:
    return (folder / "metrics.jsonl").read_text().splitlines()


def assert_same_run(folder: Path, expected: Path, config: TrainConfig = GRID) -> None:
    """Parameters, average, optimizer and written numbers, bit for bit."""
    assert lines_of(folder) == lines_of(expected)
    found, wanted = state_of(folder, config), state_of(expected, config)
    assert found.keys() == wanted.keys() and int(found["['step']"]) == STEPS
    for path, value in wanted.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    found, wanted = (read_weights(path / "weights") for path in (folder, expected))
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def signalled_at(monkeypatch, place: int, sign: int) -> None:
    """Sends this process a signal when the loop takes its batch number `place`."""
    train = Batches.train

    class Signalling:
        def __init__(self, data, **options):
            self.batches, self.taken = train(data, **options), options["start_step"]

        def __next__(self):
            self.taken += 1
            if self.taken == place:
                os.kill(os.getpid(), sign)
            return next(self.batches)

        def close(self):
            self.batches.close()

    monkeypatch.setattr(Batches, "train", lambda data, **options: Signalling(data, **options))


def test_run_writes_metrics_sheets_weights_and_its_config(unbroken):
    lines = [json.loads(line) for line in lines_of(unbroken)]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    validations = [line for line in lines if "validation/psnr_all" in line]
    assert [line["step"] for line in validations] == [3, 6]
    for line in validations:
        buckets = [line[f"validation/loss_sigma_{sigma}"] for sigma in (0.1, 0.3, 0.5, 0.7, 0.9)]
        buckets += [line[f"validation/loss_mask_{kind}"] for kind in GRID.data.masks.alone()]
        assert np.isfinite([*buckets, line["validation/psnr_all"], line["validation/psnr_moving"]]).all()
    for step in (3, 6):
        assert Image.open(unbroken / "sheets" / f"{step:07d}.png").size[0] > 100
    assert read_run(unbroken) == GRID
    assert list((unbroken / "tensorboard").iterdir())


def test_run_says_how_fast_it_goes_apart_from_its_metrics(unbroken):
    lines = [json.loads(line) for line in (unbroken / "speed.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(line["speed/step_seconds"] > 0 and line["speed/tokens_per_second"] > 0 for line in lines)
    assert lines[-1]["goodput/validation"] > 0 and lines[-1]["goodput/saving"] > 0 and lines[-1]["goodput/starting"] > 0
    assert list((unbroken / "tensorboard" / "speed").iterdir())


def test_weights_of_a_run_are_its_average_in_the_config_of_their_model(unbroken):
    spec = describe_checkpoint(unbroken)
    assert spec == ModelSpec(BASE, GridDiTConfig(), VIEWS, TIMES, (SIZE, SIZE))
    weights = flat_names(
        fit_weights(read_weights(unbroken / "weights"), split_model(spec.model, spec.grid)[1], "the run")
    )
    state = state_of(unbroken)
    for name, value in weights.items():
        path = "".join(f"['{part}']" for part in name.split("."))
        part = state.get("['ema']" + path, state.get("['frozen']" + path))
        np.testing.assert_allclose(value, part, rtol=2**-8, err_msg=name)  # rounded to bf16


def test_evaluator_given_to_a_run_sees_the_average_at_each_evaluation_and_its_numbers_and_sheet_are_written(
    unbroken, from_base, tmp_path
):
    seen = {}

    def evaluator(params, done):
        seen[done] = flat_names(jax.device_get(params))
        return {"mine/number": done / 2}, np.full((5, 7, 3), 9, np.uint8)

    folder = tmp_path / "run"
    run(GRID, folder, from_base, evaluators=[evaluator])
    assert list(seen) == [3, 6]
    state = state_of(folder)
    for name, value in seen[6].items():
        path = "".join(f"['{part}']" for part in name.split("."))
        np.testing.assert_array_equal(value, state.get("['ema']" + path, state.get("['frozen']" + path)))
    lines = [json.loads(line) for line in lines_of(folder)]
    assert [line["mine/number"] for line in lines if "validation/psnr_all" in line] == [1.5, 3.0]
    sheet, validation = (np.asarray(Image.open(path / "sheets" / "0000006.png")) for path in (folder, unbroken))
    assert (sheet[:5, :7] == 9).all() and sheet[:5, 7:].max() == 0
    np.testing.assert_array_equal(sheet[5:], validation)


def test_frozen_part_of_the_weights_is_written_once_and_a_copy_of_the_folder_samples(unbroken, tmp_path):
    (frozen,) = (unbroken / "weights").glob("frozen-*.safetensors")
    assert frozen.stat().st_mtime_ns < (unbroken / "checkpoints" / "4" / checkpoint.SEAL).stat().st_mtime_ns
    trained, rest = load_file(unbroken / "weights" / "model.safetensors"), load_file(frozen)
    paths = state_of(unbroken).keys()
    for part, tensors in (("ema", trained), ("frozen", rest)):
        assert {f"['{part}']" + "".join(f"['{key}']" for key in name.split(".")) for name in tensors} == {
            path for path in paths if path.startswith(f"['{part}']")
        }
    shutil.copytree(unbroken / "weights", tmp_path / "weights")
    pipes = [load_pipeline(path) for path in (unbroken, tmp_path / "weights")]
    assert pipes[0].weights_hash == pipes[1].weights_hash


def test_run_saves_after_minutes_too(from_base, tmp_path, monkeypatch):
    config = dataclasses.replace(GRID, save_every=100, save_minutes=60, eval_every=0, optim=CLIPS.optim)
    save, overdue, saved = preparing.Run.save, preparing.Run.overdue, []

    def later(run):
        """As if 25 minutes had gone by since the last look."""
        run.saved_at -= 25 * 60
        return overdue(run)

    def noted(run, **options):
        saved.append(run.done)
        save(run, **options)

    monkeypatch.setattr(preparing.Run, "overdue", later)
    monkeypatch.setattr(preparing.Run, "save", noted)
    run(config, tmp_path / "run", from_base)
    assert saved == [3, 6]


def test_frozen_parameters_of_a_run_stay_at_their_initial_values(unbroken):
    initial = flat_names(fresh_params(BASE, GridDiTConfig(), GRID.seed))
    state = state_of(unbroken)
    frozen = [path for path in state if path.startswith("['frozen']")]
    assert frozen
    for path in frozen:
        name = path.removeprefix("['frozen']").replace("']['", ".").strip("[']")
        np.testing.assert_array_equal(state[path], initial[name])


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_run_stopped_by_a_signal_saves_and_resumes_as_if_never_stopped(
    unbroken, from_base, tmp_path, monkeypatch, capsys, sign
):
    with monkeypatch.context() as patch:
        signalled_at(patch, 4, sign)  # taken while step 3 runs: 3 is no multiple of save_every
        with pytest.raises(KeyboardInterrupt) if sign == signal.SIGINT else contextlib.nullcontext():
            run(GRID, tmp_path / "run", from_base)
    assert "3 steps in" in (said := capsys.readouterr().out) and "go on with --resume" in said
    assert re.search(r"stopping after 3 steps: a checkpoint of \d+\.\d MB, the last one took \d+\.\d s\n", said)
    assert [json.loads(line)["step"] for line in lines_of(tmp_path / "run")] == [1, 2, 3, 3]
    weights = tmp_path / "run" / "weights" / "model.safetensors"
    written = weights.stat().st_mtime_ns  # those of 2 steps
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    run(dataclasses.replace(GRID, steps=3), tmp_path / "copy", Start(resume=True))
    assert (tmp_path / "copy" / "weights" / "model.safetensors").stat().st_mtime_ns > written
    assert weights.stat().st_mtime_ns == written < (tmp_path / "run" / "checkpoints" / "3").stat().st_mtime_ns
    capsys.readouterr()
    run(GRID, tmp_path / "run", Start(resume=True))
    assert "resumed after 3 steps" in capsys.readouterr().out
    assert_same_run(tmp_path / "run", unbroken)


def test_sigterm_before_training_leaves_at_once():
    with pytest.raises(SystemExit) as stopped, StopSignal():
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143


KILLED = """
import json, os, sys
import scenes_in_memory  # the config's source
from fourreal.training.config import TrainConfig
from fourreal.serialize import from_json
from fourreal.training.run_folder import Start
from fourreal.training.log import MetricsWriter
from fourreal.training.loop import Path, run
write = MetricsWriter.write
def kill_after_step_5(self, step, values):
    write(self, step, values)
    if step == 5:
        os._exit(9)
MetricsWriter.write = kill_after_step_5
run(from_json(TrainConfig, json.loads(sys.argv[1])), Path(sys.argv[2]), Start(init_from=sys.argv[3]))
"""


def test_run_killed_without_warning_resumes_as_if_never_killed(unbroken, from_base, tmp_path):
    """After step 5 with a checkpoint of 4 or, if that was still being written, of 2: later lines are written anew."""
    folder, tests = tmp_path / "run", Path(__file__).parents[1]
    settings = {  # as in this process
        "PYTHONPATH": f"{tests.parent}:{tests}",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ["FOURREAL_TESTS_COMPILED"],
    }
    done = subprocess.run(
        [sys.executable, "-c", KILLED, json.dumps(to_json(GRID)), str(folder), from_base.init_from],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 9, done.stderr
    assert [json.loads(line)["step"] for line in lines_of(folder)] == [1, 2, 3, 3, 4, 5]
    run(GRID, folder, Start(resume=True))
    assert_same_run(folder, unbroken)


def test_run_with_a_broken_newest_checkpoint_and_a_torn_line_goes_on_from_the_one_before(unbroken, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    (folder / "checkpoints" / "6" / "state" / "manifest.ocdbt").write_bytes(b"")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')
    run(GRID, folder, Start(resume=True))
    said = capsys.readouterr().out
    assert "of 6 steps is broken (state/manifest.ocdbt is damaged): going back to the one of 4" in said
    assert "the log goes to step 6: what came after step 4 is done again" in said
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("left", ["nothing", "a checkpoint without a seal"])
def test_run_killed_in_its_first_save_starts_from_the_beginning_and_the_same_weights(unbroken, tmp_path, capsys, left):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    if left == "nothing":
        shutil.rmtree(folder / "checkpoints")
    else:
        shutil.rmtree(folder / "checkpoints" / "6")
        (folder / "checkpoints" / "4" / checkpoint.SEAL).unlink()
        (folder / "checkpoints" / "4").rename(folder / "checkpoints" / "2")
        (folder / "frozen" / checkpoint.SEAL).unlink()
    cut = [line for line in (folder / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] <= 4]
    (folder / "metrics.jsonl").write_text("\n".join(cut) + "\n")
    run(GRID, folder, Start(resume=True))
    said = capsys.readouterr().out
    assert (
        "there is no checkpoint in" in said and "the log goes to step 4: what came after step 0 is done again" in said
    )
    broken = "the checkpoint of 2 steps is broken (it was not finished): there is none before it"
    assert (broken in said) == (left != "nothing")
    assert_same_run(folder, unbroken)


def test_run_whose_checkpoints_somebody_deleted_is_refused_and_left_alone(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    shutil.rmtree(folder / "checkpoints")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"was trained for 6 steps, but its checkpoints are gone: put a copy back, or"):
        run(GRID, folder, Start(resume=True))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_run_does_not_resume_on_another_data_set(unbroken):
    other = dataclasses.replace(GRID, data=dataclasses.replace(GRID.data, source=Noise(seed=1)))
    with pytest.raises(ValueError, match=r"on another data set than the one in test_noise:seed=1: name that one"):
        run(other, unbroken, Start(resume=True))


def test_run_resumes_where_its_data_set_has_moved_and_says_that_the_schedule_changes(unbroken, capsys):
    moved = dataclasses.replace(
        GRID, steps=8, data=dataclasses.replace(GRID.data, source=Noise(missing=False, scenes=5))
    )
    check_folder(moved, unbroken, Start(resume=True))
    assert "8 steps instead of 6: the learning rate follows the new schedule" in capsys.readouterr().out


def test_run_of_an_earlier_version_is_refused_in_one_line_and_its_weights_start_another(unbroken, tmp_path):
    shutil.copytree(unbroken / "weights", tmp_path / "weights")
    values = json.loads((unbroken / "config.json").read_text())
    assert values.pop("version") == 1
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"an earlier version trained it, so it cannot go on: .*--init-from"):
        run(GRID, tmp_path, Start(resume=True))
    _, said = initial_params(describe_checkpoint(unbroken), 0, tmp_path)
    assert said.endswith(f"tensors from {tmp_path}")


def test_disk_full_during_a_save_stops_the_run_whose_state_before_stays_whole(
    unbroken, from_base, tmp_path, monkeypatch
):
    def full_at_4(folder, *arrays):
        if folder.name == "4":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        seal(folder, *arrays)

    seal = checkpoint.seal
    with (
        monkeypatch.context() as patch,
        pytest.raises(OSError, match=r"of 4 steps .*No space left.* goes on after 2 steps"),
    ):
        patch.setattr(checkpoint, "seal", full_at_4)
        run(GRID, tmp_path / "run", from_base)
    run(GRID, tmp_path / "run", Start(resume=True))
    assert_same_run(tmp_path / "run", unbroken)


def test_folder_has_one_process_at_a_time(tmp_path):
    with locked(tmp_path / "run"):
        for start in (Start(), Start(resume=True), Start(overwrite=True)):
            with pytest.raises(ValueError, match=r"another process is training in .*run: wait for it"):
                run(CLIPS, tmp_path / "run", start)
    assert not (tmp_path / "run").exists()  # it was never filled


def test_overwrite_killed_halfway_leaves_a_folder_that_can_be_overwritten(unbroken, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.json, "dumps", lambda *_, **__: 1 / 0)  # after all is deleted
        with pytest.raises(ZeroDivisionError):
            make_folder(GRID, folder, True, None, "")
    assert os.listdir(folder) == ["config.json"]
    check_folder(CLIPS, folder, Start(overwrite=True))


def test_resuming_a_finished_run_by_its_folder_alone_changes_nothing(unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    parse("train", [str(folder), "--resume"]).run()
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"model": dataclasses.replace(BASE, width=24)}, "trained with model.width 12, not 24"),
        ({"optim": dataclasses.replace(GRID.optim, lr=0.5)}, "trained with optim.lr 0.01, not 0.5"),
        ({"data": dataclasses.replace(GRID.data, batch_size=4)}, "trained with data.batch_size 2, not 4"),
    ],
)
def test_run_does_not_resume_with_a_setting_that_changes_its_steps(unbroken, changed, text):
    before = (unbroken / "config.json").read_text()
    with pytest.raises(ValueError, match=text):
        run(dataclasses.replace(GRID, **changed), unbroken, Start(resume=True))
    assert (unbroken / "config.json").read_text() == before


def test_part_of_a_model_does_not_train_on_a_random_base(tmp_path):
    with pytest.raises(ValueError, match="name the base that stays frozen with --init-from"):
        run(GRID, tmp_path / "run")


def test_existing_folder_is_refused_and_left_alone(unbroken):
    before = lines_of(unbroken)
    with pytest.raises(ValueError, match=r"--resume to go on, --overwrite to delete it"):
        run(GRID, unbroken)
    assert lines_of(unbroken) == before


def test_overwrite_starts_from_nothing(unbroken, from_base, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    (folder / "old").touch()
    run(GRID, folder, dataclasses.replace(from_base, overwrite=True))
    assert not (folder / "old").exists()
    assert_same_run(folder, unbroken)


@pytest.mark.parametrize("config", [None, "{}", '{"model_type": "other"}'])
def test_overwrite_leaves_a_folder_that_is_no_run(tmp_path, config):
    (tmp_path / "photo.png").touch()
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="is no run's folder"):
        run(GRID, tmp_path, Start(overwrite=True))
    assert (tmp_path / "photo.png").exists()


@pytest.mark.parametrize(
    ("start", "error", "text"),
    [
        (Start(resume=True), FileNotFoundError, "no run in"),
        (Start(resume=True, overwrite=True), ValueError, "contradict"),
        (Start(init_from="nowhere"), FileNotFoundError, "no checkpoint 'nowhere'"),
    ],
)
def test_start_that_cannot_be_is_refused_without_leaving_a_folder(tmp_path, start, error, text):
    with pytest.raises(error, match=text):
        run(GRID, tmp_path / "run", start)
    assert not (tmp_path / "run").exists()


def test_base_trains_on_clips_of_every_context(clips):
    lines = [json.loads(line) for line in lines_of(clips)]
    assert np.isfinite([line["train/loss"] for line in lines if "train/loss" in line]).all()
    assert describe_checkpoint(clips) == ModelSpec(BASE, GridDiTConfig("base"), 1, TIMES, (SIZE, SIZE))
    fit_weights(read_weights(clips / "weights"), split_model(BASE, CLIPS.grid)[1], "the base")


def test_grid_model_starts_from_a_base_with_fresh_sync_layers(clips, tmp_path, capsys):
    folder = tmp_path / "run"
    config = dataclasses.replace(GRID, trains="sync", optim=CLIPS.optim)
    run(config, folder, Start(init_from=str(clips)))
    assert "fresh: sigma_projection, sync" in capsys.readouterr().out
    base = read_weights(clips / "weights")
    frozen = {path: value for path, value in state_of(folder, config).items() if path.startswith("['frozen']")}
    for path, value in frozen.items():
        np.testing.assert_array_equal(value, base[path.removeprefix("['frozen']").replace("']['", ".").strip("[']")])
    assert len(frozen) > 10


def test_start_up_holds_the_state_and_one_tensor_more_with_frozen_matrices_in_the_type_of_their_matmuls(
    tmp_path, monkeypatch
):
    """The model is large enough that a batch and what is told of steps count for less than half a percent."""
    large = dataclasses.replace(BASE, width=96, depth=4, mlp_width=384, dtype="bfloat16")
    config = dataclasses.replace(GRID, model=large, trains="sync", optim=CLIPS.optim)
    spec = ModelSpec(large, CLIPS.grid, VIEWS, TIMES, (SIZE, SIZE))
    base = flat_names(jax.device_get(fresh_params(large, CLIPS.grid, 1)))
    save_weights(tmp_path / "base", fresh_params(large, CLIPS.grid, 1), to_json(spec), dtype="float32")
    (tmp_path / "run").mkdir()
    seen, before = [], live_bytes()

    def noted(function):
        def call(*arguments, **options):
            result = function(*arguments, **options)
            seen.append(live_bytes() - before)
            return result

        return call

    monkeypatch.setattr(initialize, "read_placed", noted(initialize.read_placed))
    monkeypatch.setattr(
        layout, "jit_placed", lambda *given, make=layout.jit_placed, **more: noted(make(*given, **more))
    )
    monkeypatch.setattr(preparing, "describe_cost", lambda *_: "")  # which compiles
    with jax.set_mesh(make_mesh(config.mesh)):
        prepared = preparing.prepare(config, Storage(tmp_path / "run"), Start(init_from=str(tmp_path / "base")))
    state = prepared.state
    prepared.close()
    frozen = flat_names(state["frozen"])
    assert len(seen) > len(base) and max(seen) <= 1.005 * sum(x.nbytes for x in jax.tree.leaves(state))
    assert (
        frozen["base.blocks.mlp.in_.kernel"].dtype == frozen["base.conditions.hints.embed.bias"].dtype == jnp.bfloat16
    )
    assert frozen["base.blocks.modulation"].dtype == frozen["base.time_embed.in_.kernel"].dtype == jnp.float32
    for name, value in frozen.items():
        np.testing.assert_array_equal(value, base[name].astype(value.dtype), err_msg=name)


def live_bytes() -> int:
    """Of all arrays on devices."""
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


def test_sync_layers_of_another_fusion_with_equal_shapes_stay_fresh(tmp_path):
    sequential, fused = (GridDiTConfig(fusion, matched=True) for fusion in ("sequential", "fused"))
    theirs = fresh_params(BASE, sequential, 1)
    assert flat_names(theirs).keys() == flat_names(fresh_params(BASE, fused, 1)).keys()
    size = (SIZE, SIZE)
    save_weights(tmp_path, theirs, to_json(ModelSpec(BASE, sequential, VIEWS, TIMES, size)), dtype="float32")
    for grid, line in (
        (sequential, ""),
        (fused, "; fresh: sigma_projection, sync"),
        (CLIPS.grid, "; not taken: sigma_projection, sync"),
    ):
        _, said = initial_params(ModelSpec(BASE, grid, VIEWS, TIMES, size), 0, tmp_path)
        assert f"tensors from {tmp_path}{line}" in said and bool(line) == (";" in said)


def test_base_starts_from_a_grid_model_and_a_model_that_is_told_more_from_one_that_is_told_less(unbroken):
    weights, size = read_weights(unbroken / "weights"), (SIZE, SIZE)
    params, _ = initial_params(ModelSpec(BASE, CLIPS.grid, VIEWS, TIMES, size), 0, unbroken)
    base = {name: value for name, value in weights.items() if name.startswith("base.")}
    jax.tree.map(np.testing.assert_array_equal, flat_names(jax.device_get(params)), base)
    more = dataclasses.replace(BASE, conditions=(Hints(), Cameras()))
    params, said = initial_params(ModelSpec(more, GridDiTConfig(), VIEWS, TIMES, size), 0, unbroken)
    assert said.endswith("; fresh: base.conditions.cameras")
    found = flat_names(jax.device_get(params))
    assert found.keys() - weights.keys() == {f"base.conditions.cameras.embed.{kind}" for kind in ("kernel", "bias")}
    for name, value in weights.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


LATENTS = dataclasses.replace(
    CLIPS,
    name="latents",
    grid=GridDiTConfig("fused"),
    codec=Pooling(),
    data=PipelineConfig(source=Noise(size=(8, 12), missing=True), views=3, times=4, batch_size=2),
    steps=4,
)


def test_run_on_latents_of_grids_with_missing_cells_resumes_as_if_never_stopped(tmp_path, capsys):
    """The codec merges two times and 2 x 2 pixels; its parameters are its own, not the checkpoint's."""
    folder = tmp_path / "run"
    run(LATENTS, folder)
    shutil.copytree(folder, tmp_path / "whole")
    spec = describe_checkpoint(folder)
    assert (spec.codec, spec.size, spec.times, spec.grid.stride) == (Pooling(), (8, 12), 4, 2)
    assert not any("codec" in path for path in read_weights(folder / "weights"))
    last = json.loads(lines_of(folder)[-1])
    assert np.isfinite([value for name, value in last.items() if "loss" in name or name.endswith("psnr_all")]).all()
    assert "; 72 tokens and" in capsys.readouterr().out  # 2 examples of 3 x 2 latents of 4 x 6 in patches of 2 x 2
    shutil.rmtree(folder / "checkpoints" / "4")
    run(LATENTS, folder, Start(resume=True))
    assert "resumed after 2 steps" in capsys.readouterr().out
    for name in ("metrics.jsonl", "weights/model.safetensors", "sheets/0000004.png"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_model_of_other_channels_than_its_codec_is_refused_before_anything_is_made(tmp_path):
    config = dataclasses.replace(CLIPS, model=dataclasses.replace(BASE, channels=4))
    with pytest.raises(ValueError, match=r"model.channels is 4: the codec 'pixels' has 3"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_of_another_base_are_refused(clips, tmp_path):
    other = dataclasses.replace(GRID, model=dataclasses.replace(BASE, mlp_width=24))
    with pytest.raises(ValueError, match=r"--init-from .*: its mlp_width is 16, this config has 24"):
        run(other, tmp_path / "run", Start(init_from=str(clips)))


def test_loss_that_is_not_finite_saves_the_last_good_parameters_and_stops(from_base, tmp_path, monkeypatch):
    step = preparing.make_train_step

    def broken_at_3(denoiser, config):
        good = step(denoiser, config)

        def train_step(state, batch):
            bad = jax.numpy.where(state["step"] == 2, jax.numpy.nan, 0.0)
            spoiled = state | {"params": jax.tree.map(lambda p: p + bad, state["params"])}
            new, metrics = good(spoiled, batch)
            kept = {
                k: jax.tree.map(lambda n, o: jax.numpy.where(bad == 0, n, o), new[k], state[k]) for k in ("params",)
            }
            return new | kept, metrics

        return train_step

    monkeypatch.setattr(preparing, "make_train_step", broken_at_3)
    config = dataclasses.replace(GRID, optim=CLIPS.optim, save_every=100, eval_every=0, bad_steps=BadStepsConfig(0, 0))
    with pytest.raises(FloatingPointError, match=r"step 3: loss nan.*last good parameters are saved"):
        run(config, tmp_path / "run", from_base)
    saved = state_of(tmp_path / "run", config)
    assert all(np.isfinite(value).all() for value in saved.values())
