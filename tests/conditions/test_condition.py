"""Dicts of conditions: completed, dropped by name, by example and with the given cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.conditions import Cameras, Hints, Text
from fourreal.conditions.condition import axes_of, check_conditions, complete, drop_examples, without
from fourreal.conditions.hints import grid_hints
from fourreal.errors import UserError
from fourreal.grid import Known
from fourreal.models import GridDiTConfig
from fourreal.scene import Cameras as CameraValue

LISTED = (Hints(), Cameras(), Text(width=5))
RNG = np.random.default_rng(0)
VALUES = {
    "hints": RNG.normal(size=(2, 2, 3, 2, 4, 4, 4)).astype(np.float32),
    "cameras": CameraValue(
        np.tile(np.float32([[4, 0, 2], [0, 5, 2], [0, 0, 1]]), (2, 2, 1, 1)),
        np.stack([[np.eye(4), np.diag([1, -1, -1, 1]) + np.float32(np.eye(4, k=3))]] * 2).astype(np.float32),
    ),
    "text": RNG.normal(size=(2, 7, 5)).astype(np.float32),
}


def test_conditions_that_are_left_out_take_their_defaults_or_stay_away(tiny):
    data = tiny.grid(2, 3)
    known = Known(jnp.asarray(data["x"]), jnp.asarray(data["given"]))
    told = complete(LISTED, {"text": VALUES["text"], "cameras": None}, known)
    assert set(told) == {"hints", "text"}
    np.testing.assert_array_equal(told["hints"], grid_hints(known.frames, known.mask))
    assert complete(LISTED, VALUES, known)["hints"] is VALUES["hints"]
    with pytest.raises(UserError, match="takes no camera: it takes hints, cameras, text"):
        complete(LISTED, {"camera": 1}, known)
    with pytest.raises(UserError, match="it takes none"):
        complete((), {"text": 1}, known)


def test_dropping_given_drops_the_hints_whoever_made_them_and_nothing_else():
    told = without(LISTED, VALUES, frozenset({"given"}))
    assert not np.any(told["hints"]) and told["hints"].shape == VALUES["hints"].shape
    assert told["cameras"] is VALUES["cameras"] and told["text"] is VALUES["text"]


@pytest.mark.parametrize("condition", LISTED, ids=lambda condition: condition.name)
def test_null_has_the_structure_of_what_a_caller_gives_so_that_branches_stack(condition):
    known = Known(jnp.zeros((2, 2, 3, 4, 4, 3)), jnp.zeros((2, 2, 3), bool))
    value = complete(LISTED, VALUES, known)[condition.name]
    null = condition.null(value)
    assert jax.tree.structure(null) == jax.tree.structure(value)
    assert jax.tree.map(np.shape, null) == jax.tree.map(np.shape, value)


@pytest.mark.parametrize("name", VALUES)
def test_dropping_a_name_drops_that_condition_alone(name):
    told = without(LISTED, VALUES, frozenset({name}))
    assert all((told[other] is VALUES[other]) == (other != name) for other in VALUES)


def test_dropped_examples_equal_those_that_are_not_told_and_the_others_are_told(tiny):
    """Nothing is given, so a model without hints of a caller's makes empty ones; no text is a text of zeros."""
    base, grid = tiny.config(depth=1, conditions=LISTED), GridDiTConfig("none")
    params, forward = tiny.params(base, grid), tiny.forward(base, grid)
    data = tiny.grid(2, 3)

    def out(**conditions):
        return np.asarray(forward(params, data["x"], data["sigma"], np.zeros_like(data["given"]), **conditions))

    told, silent = out(**VALUES), out(text=np.zeros_like(VALUES["text"]))
    first = {name: jnp.array([True, False]) for name in VALUES}
    values = complete(LISTED, VALUES, Known(jnp.asarray(data["x"]), jnp.asarray(data["given"])))
    mixed = out(**drop_examples(LISTED, values, first))
    # numbers near 1; another program sums in another order
    np.testing.assert_allclose(mixed[0], silent[0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], told[1], atol=1e-5)
    assert np.abs(told[0] - silent[0]).max() > 0.01
    for name in VALUES:
        one = out(**drop_examples(LISTED, values, {name: first[name]}))
        assert np.abs(one[0] - told[0]).max() > 0.001 and np.abs(one[0] - silent[0]).max() > 0.001
        np.testing.assert_allclose(one[1], told[1], atol=1e-5)


def test_axes_say_what_a_mesh_may_cut():
    assert axes_of(Hints(), VALUES["hints"]) == 3 and axes_of(Text(), VALUES["text"]) == 1
    whole = VALUES["cameras"]._replace(known=np.ones(2, bool), reference=np.zeros(2, np.int32), focus=np.ones(2))
    assert axes_of(Cameras(), whole) == CameraValue(K=2, c2w=2, focus=1, known=1, reference=1)


def test_two_conditions_of_one_name_and_shares_that_are_none_are_refused():
    with pytest.raises(UserError, match="'text' twice"):
        check_conditions((Text(width=1), Text(width=2)))
    for drop in (-0.1, 1.5, np.nan):
        with pytest.raises(UserError, match="give a probability"):
            Cameras(drop=drop)
