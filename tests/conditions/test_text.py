"""Text: what a caller and a source may give."""

import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.conditions import Text
from fourreal.conditions.condition import complete, without
from fourreal.errors import UserError
from fourreal.grid import Known
from fourreal.scene import Scene

KNOWN = Known(jnp.zeros((1, 2, 3, 4, 4, 3)), jnp.zeros((1, 2, 3), bool))
SCENE = Scene(np.zeros((2, 3, 4, 4, 3), np.uint8))


def test_features_of_another_rank_or_width_are_refused():
    features = np.ones((5, 10))
    assert Text(width=10).check(features, 2, 3).dtype == np.float32
    for wrong in (features[0], features[None], features[:, :9]):
        with pytest.raises(UserError, match=r"expected features \[l, 10\]"):
            Text(width=10).check(wrong, 2, 3)


def test_model_cannot_do_without_text_nor_train_on_scenes_without():
    with pytest.raises(UserError, match="needs text"):
        complete((Text(),), {}, KNOWN)
    with pytest.raises(UserError, match="hold none"):
        Text().example(SCENE, np.zeros((2, 3), bool), None)


def test_null_text_is_zeros_of_the_same_length_and_does_not_go_with_the_given_cells():
    text = np.ones((1, 5, 10), np.float32)
    np.testing.assert_array_equal(without((Text(),), {"text": text}, frozenset({"text"}))["text"], np.zeros_like(text))
    np.testing.assert_array_equal(without((Text(),), {"text": text}, frozenset({"given"}))["text"], text)
