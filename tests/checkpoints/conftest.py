"""A tiny Wan of random weights, its inputs and diffusers' outputs; `tests/fixtures/make_wan_fixture.py` wrote them."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

FIXTURE = Path(__file__).parents[1] / "fixtures" / "wan_tiny.safetensors"


@pytest.fixture(scope="session")
def wan() -> dict[str, np.ndarray]:
    with safe_open(FIXTURE, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


@pytest.fixture(scope="session")
def wan_config() -> dict:
    """The model's sizes, as diffusers names them."""
    with safe_open(FIXTURE, framework="numpy") as file:
        return json.loads(file.metadata()["config"])


@pytest.fixture(scope="session")
def state(wan) -> dict[str, np.ndarray]:
    return {name.removeprefix("weights."): value for name, value in wan.items() if name.startswith("weights.")}
