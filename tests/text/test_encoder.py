"""The encoder against diffusers' WanPipeline; `tests/fixtures/make_text_fixture.py` wrote a tiny UMT5, prompts and features.

What needs torch and transformers (the extra `text`) is skipped where they are not installed.
"""

import gc
import json
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fourreal.errors import UserError
from fourreal.text.encoder import cut, embed, embed_prompt, open_encoder

FIXTURE = Path(__file__).parents[1] / "fixtures" / "text"


@pytest.fixture
def live():
    for package in ("torch", "transformers", "ftfy"):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    """What diffusers makes of each prompt, without padding."""
    with safe_open(FIXTURE / "expected.safetensors", "numpy") as file:
        prompts = json.loads(file.metadata()["prompts"])
        return {prompt: file.get_tensor(str(i)) for i, prompt in enumerate(prompts)}


def test_features_are_those_of_diffusers_wan_pipeline_cleaned_and_cut_alike(live, expected):
    with open_encoder(FIXTURE) as encoder:
        tokens = encoder.tokens(list(expected))
        assert max(map(len, tokens)) == 601
        found = list(embed(encoder, [cut(each) for each in tokens]))
        assert encoder.width == 8
    for (prompt, features), ours in zip(expected.items(), found, strict=True):
        np.testing.assert_allclose(ours, features, atol=2e-5, err_msg=prompt[:20])  # padded less, and in other batches


def test_features_do_not_depend_on_the_batch_that_they_are_made_in(live, expected):
    with open_encoder(FIXTURE) as encoder:
        tokens = [cut(each) for each in encoder.tokens(list(expected))]
        counts = []
        together = list(embed(encoder, tokens * 2, counts.append))
        assert counts == [8, 8]
        for each, features in zip(tokens, together, strict=False):
            np.testing.assert_allclose(encoder.features([each])[0], features, atol=2e-5)


def test_bfloat16_is_close(live, expected):
    with open_encoder(FIXTURE, "bfloat16") as encoder:
        (found,) = encoder.features(encoder.tokens(["a dog"]))
    assert found.dtype == np.float32 and 0 < np.abs(found - expected["a dog"]).max() < 0.1


def test_the_encoder_is_gone_once_it_is_closed(live):
    import torch

    before = {id(each) for each in gc.get_objects() if isinstance(each, torch.nn.Module)}
    with open_encoder(FIXTURE) as encoder:
        modules = [
            weakref.ref(each)
            for each in gc.get_objects()
            if isinstance(each, torch.nn.Module) and id(each) not in before
        ]
        assert len(modules) > 10 and encoder.width == 8  # which the caller still holds
    assert not [each for each in modules if each() is not None]


def test_one_prompt_comes_with_the_empty_and_the_negative_one(live, expected):
    texts = embed_prompt(" a\tdog ", FIXTURE, negative="色调艳丽，a")
    assert texts.find(None) == "a dog" and texts.negative_prompt == "色调艳丽，a" and len(texts.encoder) == 64
    np.testing.assert_allclose(texts.features["a dog"], expected["a dog"], atol=2e-5)
    np.testing.assert_allclose(texts.negative, expected["色调艳丽，a"], atol=2e-5)
    np.testing.assert_allclose(texts.empty, expected[""], atol=2e-5)


def test_a_prompt_is_cut_before_its_end():
    assert cut(range(513)) == [*range(511), 512] and cut(range(512)) == list(range(512)) and cut([7]) == [7]


@pytest.mark.parametrize("package", ["torch", "transformers", "ftfy"])
def test_a_missing_package_is_one_line_that_says_what_to_install(package, monkeypatch):
    for name in ("torch", "transformers", "ftfy"):
        monkeypatch.setitem(sys.modules, name, type(sys)(name))
    sys.modules["transformers"].AutoTokenizer = sys.modules["transformers"].UMT5EncoderModel = None
    monkeypatch.setitem(sys.modules, package, None)
    with (
        pytest.raises(
            UserError, match=rf"needs the package '{package}': pip install -e '.\[text\]' .* fourreal embed-text"
        ),
        open_encoder(FIXTURE),
    ):
        pass


@pytest.mark.parametrize("part", ["text_encoder/config.json", "tokenizer"])
def test_a_folder_without_encoder_or_tokenizer_is_refused(part, tmp_path):
    folder = shutil.copytree(FIXTURE, tmp_path / "wan")
    shutil.move(folder / part, tmp_path / "away")
    with (
        pytest.raises(UserError, match=f"there is no .*{part}: give the folder of a Wan pipeline"),
        open_encoder(folder),
    ):
        pass


def spoil(folder: Path, how: str) -> None:
    weights, config = folder / "text_encoder/model.safetensors", folder / "text_encoder/config.json"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-5])
    elif how == "no weights":
        weights.unlink()
    elif how == "no vocabulary":
        (folder / "tokenizer/tokenizer.json").unlink()
    elif how == "a tensor less":
        tensors = load_file(weights)
        del tensors["encoder.final_layer_norm.weight"]
        save_file(tensors, weights, {"format": "pt"})
    elif how == "other model":
        config.write_text(config.read_text().replace('"umt5"', '"t5"'))


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("cut", "transformers cannot read the encoder"),
        ("no weights", "transformers cannot read the encoder"),
        ("no vocabulary", "tokenizer knows 4 tokens, the encoder 64: download the folder again"),
        ("a tensor less", "lacks encoder.final_layer_norm.weight"),
        ("other model", "is a t5: expected all weights of a UMT5 encoder|transformers cannot read the encoder"),
    ],
)
def test_a_broken_encoder_is_refused(live, how, line, tmp_path):
    folder = shutil.copytree(FIXTURE, tmp_path / "wan")
    spoil(folder, how)
    with pytest.raises(UserError, match=line), open_encoder(folder):
        pass
