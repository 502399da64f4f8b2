"""The file of prompts and their features: what is read is what was written, and what is none is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from fourreal.errors import UserError
from fourreal.text.file import FORMAT, read_texts, write_texts

PROMPTS = ("a dog", "two dogs on a hill", "ein Hügel, 一座山")
LENGTHS = (1, 4, 3, 6, 9)


def made(seed: int = 0) -> list[np.ndarray]:
    """Features of the empty prompt, the negative one and the prompts, in bfloat16's numbers."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(length, 8)).astype(ml_dtypes.bfloat16).astype(np.float32) for length in LENGTHS]


@pytest.fixture
def path(tmp_path):
    write_texts(tmp_path / "text.safetensors", PROMPTS, "blurred", LENGTHS, 8, iter(made()), "abc")
    return tmp_path / "text.safetensors"


def test_what_is_read_is_what_was_written_in_float32(path):
    texts = read_texts(path)
    assert (texts.prompts, texts.negative_prompt, texts.encoder, texts.width) == (PROMPTS, "blurred", "abc", 8)
    empty, negative, *features = made()
    np.testing.assert_array_equal(texts.empty, empty)
    np.testing.assert_array_equal(texts.negative, negative)
    assert list(texts.features) == list(PROMPTS)
    for prompt, expected in zip(PROMPTS, features, strict=True):
        np.testing.assert_array_equal(texts.features[prompt], expected)
        assert texts.features[prompt].dtype == np.float32


def test_numbers_take_two_bytes_and_no_padding(path):
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size == 8 + header + 2 * 8 * sum(LENGTHS)


def test_a_prompt_is_found_whatever_its_white_space_and_an_unknown_one_names_the_nearest(path):
    texts = read_texts(path)
    assert texts.find("  two dogs\ton a  hill\n") == PROMPTS[1]
    with pytest.raises(
        UserError, match='no prompt "two dogs on a mill"; the nearest of its 3: "two dogs on a hill", "'
    ):
        texts.find("two dogs on a mill")
    with pytest.raises(
        UserError, match='holds 3 prompts, "a dog", "two dogs on a hill", "ein Hügel, 一座山": name one'
    ):
        texts.find(None)


def test_the_only_prompt_needs_no_name(tmp_path):
    write_texts(tmp_path / "one", ["a dog"], "", LENGTHS[:3], 8, iter(made()))
    assert read_texts(tmp_path / "one").find(None) == "a dog"


def test_numbers_that_are_not_finite_are_refused_and_leave_no_file(tmp_path):
    broken = made()
    broken[3][0, 0] = np.inf
    with pytest.raises(UserError, match="not finite"):
        write_texts(tmp_path / "text", PROMPTS, "", LENGTHS, 8, broken)
    assert list(tmp_path.iterdir()) == []


def spoil(path, how):
    tensors = {"empty": np.zeros((1, 8), np.float32), "negative": np.zeros((1, 8), np.float32)}
    header = {"format": FORMAT, "prompts": json.dumps(["a dog"])}
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-3])
    elif how == "missing":
        path.unlink()
    elif how == "other":
        save_file(tensors, path)
    elif how == "lacks":
        save_file(tensors, path, header)
    elif how == "width":
        save_file(tensors | {"prompt.0": np.zeros((1, 9), np.float32)}, path, header)
    elif how == "empty":
        save_file(tensors, path, header | {"prompts": "[]"})
    elif how == "prompts":
        save_file(tensors, path, header | {"prompts": "[a"})


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("missing", "there is no file .*text.safetensors: fourreal embed-text writes one"),
        ("cut", "text.safetensors is broken .*: copy the file again"),
        ("other", "holds no prompts with their features: take a file of fourreal embed-text"),
        ("lacks", r"lacks prompts or their features .*prompt\.0"),
        ("prompts", "lacks prompts or their features"),
        ("empty", r"lacks prompts or their features \(none is named\)"),
        ("width", r"has features that are not \[l, 8\]"),
    ],
)
def test_a_file_that_is_none_is_refused(path, how, line):
    spoil(path, how)
    with pytest.raises(UserError, match=line):
        read_texts(path)


def test_features_too_many_for_a_header_are_refused_before_any_is_made(tmp_path, monkeypatch):
    from fourreal.host import streamed

    monkeypatch.setattr(streamed, "MOST_HEADER", 100)
    source = iter(made())
    with pytest.raises(UserError, match=r"5 tensors need a header .* write several files"):
        write_texts(tmp_path / "text", PROMPTS, "", LENGTHS, 8, source)
    assert len(list(source)) == 5
