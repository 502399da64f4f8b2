"""Weights folders: what is written comes back, and every broken one is refused in one clear line."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from unreadable import break_file, mend_file

from fourreal.checkpoints.specs import ModelSpec
from fourreal.checkpoints.upgrade import upgraded_spec
from fourreal.checkpoints.weights import (
    WEIGHTS,
    fit_weights,
    flat_names,
    read_config,
    read_weights,
    save_weights,
    weights_hash,
    write_tensors,
    write_weights,
)
from fourreal.host import retry
from fourreal.models import GridDiTConfig
from fourreal.models.build import split_model
from fourreal.serialize import from_json, to_json

GRID = GridDiTConfig("soft")
NAME = "base.blocks.attention.query.kernel"


@pytest.fixture
def folder(tiny, tmp_path):
    spec = ModelSpec(tiny.config(hints=True), GRID, views=2, times=3, size=(4, 4))
    save_weights(tmp_path, tiny.params(spec.model, GRID), to_json(spec), dtype="float32")
    return tmp_path


@pytest.mark.parametrize(("name", "read"), [("config.json", read_config), (WEIGHTS, weights_hash)])
def test_file_that_cannot_be_read_for_a_moment_is_read_again(folder, monkeypatch, name, read):
    expected = read(folder)
    break_file(folder / name)
    monkeypatch.setattr(retry.time, "sleep", lambda _: mend_file(folder / name))
    assert read(folder) == expected


def load(tiny, folder):
    shapes = split_model(tiny.config(hints=True), GRID)[1]
    return fit_weights(read_weights(folder), shapes, str(folder))


def change(folder, edit) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


def one_line(error) -> bool:
    return "\n" not in str(error.value)


def test_fp32_weights_come_back_bit_for_bit_under_their_paths(tiny, folder):
    saved = flat_names(tiny.params(tiny.config(hints=True), GRID))
    loaded = flat_names(load(tiny, folder))
    assert loaded.keys() == saved.keys() == load_file(folder / WEIGHTS).keys()
    for name, value in saved.items():
        np.testing.assert_array_equal(loaded[name], value, err_msg=name)


def test_bf16_weights_are_the_nearest_bf16_numbers_and_read_as_fp32(tiny, folder):
    params = tiny.params(tiny.config(hints=True), GRID)
    save_weights(folder, params, {})
    assert {str(tensor.dtype) for tensor in load_file(folder / WEIGHTS).values()} == {"bfloat16"}
    for name, value in read_weights(folder).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, flat_names(params)[name].astype(ml_dtypes.bfloat16).astype(np.float32))


def test_config_comes_back_as_the_same_dataclasses(tiny, folder):
    expected = ModelSpec(tiny.config(hints=True), GRID, views=2, times=3, size=(4, 4))
    assert from_json(ModelSpec, upgraded_spec(read_config(folder))) == expected


def test_nothing_but_the_two_files_is_left_behind(folder):
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_hash_is_that_of_the_weights_alone(tiny, folder):
    before = weights_hash(folder)
    (folder / "config.json").write_text("{}")
    assert weights_hash(folder) == before
    change(folder, lambda tensors: tensors.update({NAME: tensors[NAME] + 1}))
    assert weights_hash(folder) != before


@pytest.fixture
def split(tiny, folder):
    """The folder with its tensors in two files; the dtype is the tensors' own."""
    tensors = load_file(folder / WEIGHTS)
    rest = {name: tensors.pop(name) for name in list(tensors) if name.startswith("base.blocks")}
    write_tensors(folder / "frozen-0a.safetensors", rest)
    write_weights(folder, tensors, read_config(folder), beside="frozen-0a.safetensors")
    return folder


def test_tensors_in_two_files_are_those_of_one(tiny, tmp_path, split):
    spec = ModelSpec(tiny.config(hints=True), GRID, views=2, times=3, size=(4, 4))
    save_weights(tmp_path / "whole", tiny.params(spec.model, GRID), to_json(spec), dtype="float32")
    found, wanted = read_weights(split), read_weights(tmp_path / "whole")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)
    assert len(load_file(split / WEIGHTS)) < len(wanted)


def test_either_of_two_files_changes_the_hash_and_a_missing_one_is_named(split):
    before, path = weights_hash(split), split / "frozen-0a.safetensors"
    write_tensors(path, {name: value + 1 for name, value in load_file(path).items()})
    assert weights_hash(split) != before
    path.unlink()
    for read in (read_weights, weights_hash):
        with pytest.raises(
            FileNotFoundError, match=r"lacks frozen-0a.safetensors, the rest of .*: copy the folder as a"
        ):
            read(split)


def test_missing_tensor_is_named(tiny, folder):
    change(folder, lambda tensors: tensors.pop(NAME))
    with pytest.raises(ValueError, match=f"lacks the tensor {NAME}") as error:
        load(tiny, folder)
    assert one_line(error)


def test_extra_tensor_is_named(tiny, folder):
    change(folder, lambda tensors: tensors.update({"base.other": np.zeros(2, np.float32)}))
    with pytest.raises(ValueError, match=r"base\.other") as error:
        load(tiny, folder)
    assert one_line(error)


def test_misshapen_tensor_is_named_with_both_shapes(tiny, folder):
    change(folder, lambda tensors: tensors.update({NAME: tensors[NAME][:, :20].copy()}))
    with pytest.raises(ValueError, match=rf"{NAME} is \(2, 20, 24\), expected \(2, 24, 24\)") as error:
        load(tiny, folder)
    assert one_line(error)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_single_number_that_is_not_finite_is_refused(tiny, folder, value):
    def poison(tensors):
        tensors[NAME][1, 2, 3] = value

    change(folder, poison)
    with pytest.raises(ValueError, match=f"{NAME} holds values that are not finite") as error:
        load(tiny, folder)
    assert one_line(error)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_file_is_refused(tiny, folder, share):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="is broken") as error:
        load(tiny, folder)
    assert one_line(error)


def test_missing_files_and_broken_json_are_told_apart(folder, tmp_path):
    (folder / "config.json").write_text(json.dumps({"model": 1})[:-3])
    with pytest.raises(ValueError, match="is no JSON"):
        read_config(folder)
    for reader, file in ((read_config, "config.json"), (read_weights, WEIGHTS)):
        (folder / file).unlink()
        with pytest.raises(FileNotFoundError, match=f"holds no {file}"):
            reader(folder)
