"""The verb `embed-text`, with a stand-in for the encoder: what is written, what is said, what is refused."""

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest

from fourreal import cli
from fourreal.errors import UserError
from fourreal.text import command, encoder
from fourreal.text.encoder import BATCH, NEGATIVE
from fourreal.text.file import read_texts

FIXTURE = Path(__file__).parents[1] / "fixtures" / "text"


class StandIn:
    """A token a word, its length, and the end, 1; a token's features are its number."""

    width, config_hash = 4, "abc"

    def __init__(self):
        self.batches, self.open = [], False

    def tokens(self, prompts):
        return [[*(len(word) + 1 for word in prompt.split()), 1] for prompt in prompts]

    def features(self, tokens):
        assert self.open
        self.batches.append(len(tokens))
        return [np.tile(np.float32(each)[:, None], self.width) for each in tokens]


@pytest.fixture
def stand_in(monkeypatch) -> StandIn:
    made = StandIn()

    @contextlib.contextmanager
    def opened(folder, dtype="float32"):
        made.opened, made.open = (folder, dtype), True
        yield made
        made.open = False

    for module in (command, encoder):
        monkeypatch.setattr(module, "open_encoder", opened)
    return made


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("a dog\n\n  two dogs\ton  a hill \r\na dog\n色调 hill\n", encoding="utf-8")
    return tmp_path


def run(*words) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["embed-text", *map(str, words)])
        raise SystemExit(0)
    return ended.value.code


def line(capsys, *words) -> str:
    """The one line of a refusal."""
    before = sorted(Path().iterdir())
    assert run(*words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("fourreal embed-text: error: ") and sorted(Path().iterdir()) == before
    return said[0]


def test_each_line_is_a_prompt_and_the_empty_and_wan_s_negative_one_are_there_too(stand_in, capsys):
    assert run("prompts.txt", "--encoder", "wan", "--out", "new/text.safetensors") == 0
    assert stand_in.opened == ("wan", "float32")
    texts = read_texts("new/text.safetensors")
    assert texts.prompts == ("a dog", "two dogs on a hill", "色调 hill")
    assert (texts.negative_prompt, texts.encoder, texts.width) == (NEGATIVE, "abc", 4)
    assert (
        NEGATIVE.startswith("色调艳丽，过曝，静态，细节模糊不清，字幕，")
        and NEGATIVE.endswith("，倒着走")
        and NEGATIVE.count("，") == 27
    )
    np.testing.assert_array_equal(texts.empty, np.ones((1, 4)))
    np.testing.assert_array_equal(texts.features["two dogs on a hill"][:, 0], [4, 5, 3, 2, 5, 1])
    assert "3 prompts of 12 tokens, 4 numbers a token\nnew/text.safetensors" in capsys.readouterr().out
    assert os.listdir("new") == ["text.safetensors"]


def test_a_negative_prompt_of_one_s_own_and_bfloat16(stand_in):
    assert (
        run("prompts.txt", "--encoder", "wan", "--out", "t", "--negative", "very  blurred", "--dtype", "bfloat16") == 0
    )
    assert stand_in.opened[1] == "bfloat16"
    assert read_texts("t").negative_prompt == "very blurred"
    np.testing.assert_array_equal(read_texts("t").negative[:, 0], [5, 8, 1])


def test_prompts_are_embedded_a_batch_at_a_time(stand_in):
    Path("many.txt").write_text("\n".join(f"prompt {i:05}" for i in range(3 * BATCH)))
    assert run("many.txt", "--encoder", "wan", "--out", "t") == 0
    assert stand_in.batches == [BATCH] * 3 + [2]


def test_a_long_prompt_is_cut_before_its_end_and_its_line_named(stand_in, capsys):
    Path("long.txt").write_text("\na dog\n" + "dog " * 600)
    assert run("long.txt", "--encoder", "wan", "--out", "t") == 0
    assert "warning: line 3 has 601 tokens: cut to 512" in capsys.readouterr().err
    texts = read_texts("t")
    np.testing.assert_array_equal(texts.features[texts.prompts[1]][:, 0], [4] * 511 + [1])


def test_a_file_is_replaced_only_if_that_is_said_and_only_one_of_this_verb(stand_in, capsys):
    words = ("prompts.txt", "--encoder", "wan")
    assert run(*words, "--out", "t", "--negative", "a") == 0
    capsys.readouterr()
    assert "--out t exists; add --overwrite to replace it" in line(capsys, *words, "--out", "t")
    assert run(*words, "--out", "t", "--overwrite", "--negative", "b") == 0 and read_texts("t").negative_prompt == "b"
    capsys.readouterr()
    Path("folder").mkdir()
    for other in ("prompts.txt", "folder"):
        assert "is no file of embed-text and is not replaced" in line(capsys, *words, "--out", other, "--overwrite")


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "there is no file p.txt"), (b" \n\n", "p.txt holds no prompt"), (b"caf\xe9", "p.txt is not UTF-8")],
)
def test_prompts_that_are_none_are_refused(stand_in, capsys, content, said):
    if content is not None:
        Path("p.txt").write_bytes(content)
    assert said in line(capsys, "p.txt", "--encoder", "wan", "--out", "t")


def test_numbers_that_are_not_finite_leave_nothing(stand_in, capsys, monkeypatch):
    monkeypatch.setattr(StandIn, "features", lambda self, tokens: [np.full((len(t), 4), np.nan) for t in tokens])
    assert run("prompts.txt", "--encoder", "wan", "--out", "t") == 2
    assert "numbers that are not finite" in capsys.readouterr().err and os.listdir() == ["prompts.txt"]


def test_a_missing_folder_and_a_missing_package_are_one_line(capsys, monkeypatch):
    assert "text_encoder/config.json: give the folder of a Wan" in line(
        capsys, "prompts.txt", "--encoder", "w", "--out", "t"
    )
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    assert "pip install -e '.[text]'" in line(capsys, "prompts.txt", "--encoder", FIXTURE, "--out", "t")


def test_the_encoder_is_closed_before_one_prompt_s_features_are_returned(stand_in):
    texts = encoder.embed_prompt("two  dogs", "wan", negative="a")
    assert not stand_in.open and texts.prompts == ("two dogs",)
    np.testing.assert_array_equal(texts.features["two dogs"][:, 0], [4, 5, 1])
    with pytest.raises(UserError, match="no prompt"):
        texts.find("another")


def test_the_tiny_encoder_s_features_are_stored(capsys):
    for package in ("torch", "transformers", "ftfy"):
        pytest.importorskip(package)
    assert run("prompts.txt", "--encoder", FIXTURE, "--out", "t") == 0
    texts, direct = read_texts("t"), encoder.embed_prompt("two dogs on a hill", FIXTURE)
    np.testing.assert_allclose(
        texts.features["two dogs on a hill"], direct.features["two dogs on a hill"], rtol=2**-7, atol=1e-5
    )
    assert texts.encoder == direct.encoder
