"""Runs whose data make some steps not finite: skipped, undone and left out, or stopped, always as the budget says."""

import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scenes_in_memory import Noise

from fourreal.checkpoints.weights import read_weights
from fourreal.data.batches import Batches, PipelineConfig
from fourreal.errors import LossNotFinite, UserError
from fourreal.models import GridDiTConfig, VideoDiTConfig
from fourreal.training import prepare as preparing
from fourreal.training.bad_steps import BadStepsConfig, LeftOut
from fourreal.training.config import TrainConfig
from fourreal.training.local import LocalCheckpoints
from fourreal.training.loop import run
from fourreal.training.optimizer import OptimConfig
from fourreal.training.run_folder import Start

CONFIG = TrainConfig(
    name="bad",
    model=VideoDiTConfig(width=12, depth=1, heads=2, mlp_width=16, patch=(1, 2, 2), frequency_width=8),
    grid=GridDiTConfig("none"),
    data=PipelineConfig(source=Noise(scenes=30), views=2, times=2, batch_size=1),
    optim=OptimConfig(lr=0.01, warmup=0, final_lr=1.0),
    steps=8,
    eval_every=0,
    eval_grids=1,
    save_every=3,
    log_every=1,
)


class Spoiled:
    """Batches of a run, of which those at some positions are white."""

    def __init__(self, batches, position: int, white):
        self.batches, self.position, self.white = batches, position, white
        self.close = batches.close

    def __next__(self):
        batch = next(self.batches)
        if self.position in self.white:
            batch |= {"frames": np.full_like(batch["frames"], 255)}
        self.position += 1
        return batch


@pytest.fixture
def spoil(monkeypatch):
    """`spoil(positions)`: the loss of a step on the batch at any of these positions is not a number."""
    make, train = preparing.make_train_step, Batches.train

    def make_spoiled(denoiser, config):
        def step(state, batch):
            white = (batch["frames"] == 255).all()
            spoiled = jax.tree.map(lambda x: x + jnp.where(white, jnp.nan, 0.0), state["params"])
            new, metrics = make(denoiser, config)(state | {"params": spoiled}, batch)
            kept = jax.tree.map(lambda n, o: jnp.where(white, o, n), new["params"], state["params"])
            return new | {"params": kept}, metrics

        return step

    def spoil(positions):
        def spoiled(data, **options):
            return Spoiled(train(data, **options), options["start_step"], positions)

        monkeypatch.setattr(Batches, "train", spoiled)

    monkeypatch.setattr(preparing, "make_train_step", make_spoiled)
    return spoil


def lines(folder: Path) -> list[dict]:
    return [
        line for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "train/loss" in line
    ]


def allowing(skip: int, back: int, **more) -> TrainConfig:
    return dataclasses.replace(CONFIG, bad_steps=BadStepsConfig(skip, back), **more)


def assert_same(folder: Path, expected: Path) -> None:
    assert lines(folder) == lines(expected)
    found, wanted = read_weights(folder / "weights"), read_weights(expected / "weights")
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_bad_steps_within_the_budget_are_skipped_and_said(spoil, tmp_path, capsys):
    spoil([1, 4, 5])
    run(allowing(2, 0), tmp_path / "run")  # one before the checkpoint of 3 steps, two before that of 6
    assert [line["train/loss"] is None for line in lines(tmp_path / "run")] == [n in (1, 4, 5) for n in range(8)]
    assert all(np.isfinite(value).all() for value in read_weights(tmp_path / "run" / "weights").values())
    assert "skipped, 2 of 2 before the next checkpoint" in capsys.readouterr().out


@pytest.mark.slow
def test_beyond_the_budget_the_run_goes_back_and_takes_the_data_after(spoil, tmp_path, capsys):
    """Step 5, on the data of position 4, is bad: from step 4 on, data come from position 5, as if 3 and 4 were not there."""
    spoil([4])
    run(allowing(0, 1), tmp_path / "run")
    assert "back to the checkpoint of 3 steps, without the data of the 2 behind it" in capsys.readouterr().out
    spoil([])
    run(allowing(0, 1, steps=3), tmp_path / "other")
    (tmp_path / "other" / "left_out.json").write_text("[[3, 2]]")
    run(allowing(0, 1), tmp_path / "other", Start(resume=True))
    assert_same(tmp_path / "run", tmp_path / "other")
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 9))
    run(allowing(0, 1), tmp_path / "plain")
    assert lines(tmp_path / "plain")[:3] == lines(tmp_path / "run")[:3]
    assert lines(tmp_path / "plain")[3:] != lines(tmp_path / "run")[3:]


@pytest.mark.slow
def test_a_run_that_went_back_goes_on_the_same_after_it_was_stopped(spoil, tmp_path):
    spoil([4])
    run(allowing(0, 1), tmp_path / "run")
    run(allowing(0, 1, steps=6), tmp_path / "stopped")
    run(allowing(0, 1), tmp_path / "stopped", Start(resume=True))
    assert_same(tmp_path / "stopped", tmp_path / "run")


@pytest.mark.slow
def test_a_run_that_went_back_does_not_go_on_from_what_it_undid_on_the_hosts_disks(
    spoil, tmp_path, capsys, monkeypatch
):
    """That of 4 steps, when step 5 was bad."""
    spoil([4])
    run(allowing(0, 1, eval_every=1), tmp_path / "run")
    local, seen = allowing(0, 1, eval_every=1, local_every=2, local_folder=str(tmp_path / "disk")), []
    drop, dropped = LocalCheckpoints.drop, []

    def noting(self):
        self.wait()
        dropped.append([path.stem for path in (tmp_path / "disk").rglob("*.safetensors")])
        drop(self)

    monkeypatch.setattr(LocalCheckpoints, "drop", noting)

    def dying(params, done):
        if done == 4 and not seen.count(4):
            time.sleep(3)  # until the checkpoint of 3 steps is sealed
        seen.append(done)
        if seen.count(4) == 2:
            raise RuntimeError("as if it were killed")
        return {}, None

    with pytest.raises(RuntimeError):
        run(local, tmp_path / "killed", evaluators=(dying,))
    assert dropped == [[], ["4"]]  # at the start, and when it went back
    capsys.readouterr()
    run(local, tmp_path / "killed", Start(resume=True))
    assert "resumed after 3 steps;" in capsys.readouterr().out
    assert_same(tmp_path / "killed", tmp_path / "run")


@pytest.mark.slow
def test_local_checkpoints_do_not_renew_the_budget_of_bad_steps_and_keep_what_is_spent(spoil, tmp_path):
    """Two bad steps, of which one is allowed, with a local checkpoint between them, and a new start after it."""
    spoil([3, 4])
    local = dict(local_every=1, local_folder=str(tmp_path / "disk"), eval_every=1)

    def dying(params, done):
        time.sleep(2 * (done == 4))
        if done == 5:
            raise RuntimeError("as if it were killed")
        return {}, None

    with pytest.raises(LossNotFinite):
        run(allowing(1, 0, **local), tmp_path / "whole", evaluators=(lambda *_: (time.sleep(0.5), ({}, None))[1],))
    spoil([3])
    with pytest.raises(RuntimeError):
        run(allowing(1, 0, **local), tmp_path / "killed", evaluators=(dying,))
    spoil([4])
    with pytest.raises(LossNotFinite):
        run(allowing(1, 0, **local), tmp_path / "killed", Start(resume=True))


@pytest.mark.slow
def test_what_going_back_does_not_mend_stops_the_run(spoil, tmp_path):
    spoil(range(4, 20))
    with pytest.raises(
        LossNotFinite, match=r"step 5: loss nan.*going back to step 3 did not help; the last good parameters"
    ):
        run(allowing(1, 2), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "left_out.json").read_text()) == [[3, 3], [3, 2]]
    spoil([0])
    with pytest.raises(LossNotFinite, match=r"step 1: loss nan.*there is no checkpoint to go back to"):
        run(allowing(0, 1), tmp_path / "first")


def test_what_is_left_out_counts_from_its_checkpoint_on(tmp_path):
    left_out = LeftOut(tmp_path, resume=False)
    for entry in ((10, 3), (20, 5), (20, 2)):
        left_out.add(*entry)
    for again in (left_out, LeftOut(tmp_path, resume=True)):
        assert [again.offset(step) for step in (9, 10, 19, 20, 30)] == [0, 3, 3, 10, 10]
        assert [again.times(step) for step in (9, 10, 20)] == [0, 1, 2]
    assert LeftOut(tmp_path, resume=False).offset(30) == 0


@pytest.mark.parametrize("name", ["skip", "back"])
def test_negative_budgets_are_refused(name):
    with pytest.raises(UserError, match=f"bad_steps.{name} is -1: give 0 or more"):
        BadStepsConfig(**{name: -1})
