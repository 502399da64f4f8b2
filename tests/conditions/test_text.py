"""Text: what a caller and a source may give, and what stands in for a prompt that is dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fourreal.conditions import Prompt, Text
from fourreal.conditions.condition import axes_of, complete, drop_examples, without
from fourreal.errors import UserError
from fourreal.grid import Known
from fourreal.scene import Scene

KNOWN = Known(jnp.zeros((1, 2, 3, 4, 4, 3)), jnp.zeros((1, 2, 3), bool))
SCENE = Scene(np.zeros((2, 3, 4, 4, 3), np.uint8))
GIVEN = np.zeros((2, 3), bool)
RNG = np.random.default_rng(0)
FEATURES, NEGATIVE = (RNG.normal(size=(tokens, 10)).astype(np.float32) for tokens in (5, 2))
LISTED = (Text(width=10, drop=0.1),)


def with_zeros(features, tokens=512):
    return np.concatenate([features, np.zeros((tokens - len(features), 10), np.float32)])


def test_features_of_another_rank_or_width_or_of_too_many_tokens_are_refused():
    for wrong in (FEATURES[0], FEATURES[None], FEATURES[:, :9], np.zeros((513, 10)), Prompt(FEATURES, FEATURES[:, :9])):
        with pytest.raises(UserError, match=r"expected features \[l, 10\] .* at most 512"):
            Text(width=10).check(wrong, 2, 3)
    with pytest.raises(UserError, match=r"text is \[5, 9\]: expected features \[l, 10\]"):
        Text(width=10).example(SCENE._replace(text=FEATURES[:, :9]), GIVEN, None)


def test_a_prompt_and_its_negative_become_512_tokens_with_zeros_after_them():
    for value, negative in ((FEATURES, None), (Prompt(FEATURES, NEGATIVE), with_zeros(NEGATIVE))):
        told = Text(width=10).check(value, 2, 3)
        np.testing.assert_array_equal(told.features, with_zeros(FEATURES))
        assert told.features.dtype == np.float32
        np.testing.assert_array_equal(told.negative, negative)


def test_model_cannot_do_without_text_nor_train_on_scenes_without():
    with pytest.raises(UserError, match="needs text"):
        complete((Text(),), {}, KNOWN)
    with pytest.raises(UserError, match="hold none"):
        Text().example(SCENE, GIVEN, None)


def test_an_example_is_dropped_to_the_empty_prompt_which_the_source_must_hold_for_that():
    told = LISTED[0].example(SCENE._replace(text=FEATURES, more={"empty_text": NEGATIVE[:1]}), GIVEN, None)
    np.testing.assert_array_equal(told.features, with_zeros(FEATURES))
    np.testing.assert_array_equal(told.negative, NEGATIVE[:1])
    assert jax.tree.map(np.shape, told) == jax.tree.map(np.shape, LISTED[0].shapes(SCENE, GIVEN))
    with pytest.raises(UserError, match="features of the empty prompt: take a source that has them, or drop=0"):
        LISTED[0].example(SCENE._replace(text=FEATURES), GIVEN, None)
    undropped = Text(width=10).example(SCENE._replace(text=FEATURES), GIVEN, None)
    np.testing.assert_array_equal(undropped.negative, np.zeros((1, 10)))


def test_dropped_text_is_the_negative_with_zeros_after_it_in_training_and_in_guidance():
    value = Prompt(np.stack([FEATURES] * 2), np.stack([NEGATIVE] * 2))
    null = np.stack([with_zeros(NEGATIVE, 5)] * 2)
    told = without(LISTED, {"text": value}, frozenset({"text"}))["text"]
    np.testing.assert_array_equal(told.features, null)
    np.testing.assert_array_equal(told.negative, value.negative)
    mixed = jax.jit(lambda value, mask: drop_examples(LISTED, {"text": value}, {"text": mask}))(
        value, jnp.array([0, 1]) > 0
    )
    np.testing.assert_array_equal(mixed["text"].features, np.stack([FEATURES, null[1]]))
    assert without(LISTED, {"text": value}, frozenset({"given"}))["text"] is value
    assert axes_of(LISTED[0], value) == Prompt(1, 1)


def test_features_without_a_negative_cannot_be_dropped_and_in_one_s_own_code_their_null_is_zeros():
    with pytest.raises(UserError, match=r"needs the features of a negative prompt: text=Prompt\(features, negative\)"):
        without(LISTED, {"text": Prompt(FEATURES)}, frozenset({"text"}))
    with pytest.raises(UserError, match="negative features of 5 tokens for a prompt of 2: pad it"):
        LISTED[0].null(Prompt(NEGATIVE, FEATURES))
    assert not np.any(without(LISTED, {"text": FEATURES}, frozenset({"text"}))["text"])


def test_a_model_sees_the_features_of_a_prompt_as_it_sees_bare_ones(tiny):
    config = tiny.config(text_width=10)
    forward, params = tiny.forward(config), tiny.params(config)
    clip, sigma = RNG.normal(size=(1, 2, 8, 8, 3)).astype(np.float32), np.float32([0.5])
    given = np.zeros((1, 2), bool)
    bare, prompt = (
        np.asarray(forward(params, clip, sigma, given, text=text))
        for text in (FEATURES[None], Prompt(FEATURES[None], NEGATIVE[None]))
    )
    np.testing.assert_array_equal(bare, prompt)
