"""Weights & Biases beside the logs, against a stand-in for its package: the calls that a run makes."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorboardX")

from fourreal.errors import UserError
from fourreal.training.log import MetricsWriter
from fourreal.training.wandb import WandbLog


@pytest.fixture
def service(monkeypatch) -> SimpleNamespace:
    """What the stand-in was told."""
    told = SimpleNamespace(inits=[], logged=[], finished=0, refuses=False)
    package = ModuleType("wandb")
    package.errors = SimpleNamespace(Error=type("Error", (Exception,), {}))
    package.Image = lambda picture: ("image", picture.shape)

    class Run:
        def define_metric(self, *names, **options):
            assert (names, options) == (("*",), {"step_metric": "step"})

        def log(self, values):
            told.logged.append(values)

        def finish(self):
            told.finished += 1

    def init(**options):
        if told.refuses:
            raise package.errors.Error("api_key not configured")
        told.inits.append(options)
        return Run()

    package.init = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    return told


def test_the_same_numbers_go_there_as_to_the_log_and_a_resumed_run_is_the_same_one(service, tmp_path):
    for start in (0, 2):
        also = WandbLog("grids", tmp_path, "nano", {"steps": 4})
        writer = MetricsWriter(tmp_path, start, also=also)
        for step in (start + 1, start + 2):
            writer.write(step, {"train/loss": step / 4, "train/lr": np.nan})
        writer.picture(step, "validation", np.zeros((4, 6, 3), np.uint8))
        writer.close()
        also.close()
    first, second = service.inits
    assert first == second and first["project"] == "grids" and first["id"] == (tmp_path / "wandb.txt").read_text()
    assert first["resume"] == "allow" and first["config"] == {"steps": 4} and service.finished == 2
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    numbers = [values for values in service.logged if "validation" not in values]
    assert numbers == [{name: value for name, value in line.items() if value is not None} for line in lines]
    assert {"step": 4, "validation": ("image", (4, 6, 3))} in service.logged


def test_what_keeps_it_from_starting_is_one_line(service, tmp_path, monkeypatch):
    service.refuses = True
    with pytest.raises(UserError, match=r"wandb: api_key not configured: run `wandb login`, .* or leave --wandb out"):
        WandbLog("grids", tmp_path, "nano", {})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ModuleNotFoundError, match="--wandb needs the package wandb: pip install wandb"):
        WandbLog("grids", tmp_path, "nano", {})
