"""UMT5, the text encoder of Wan, run by transformers: the only module that knows torch, which the extra `text` brings.

As Wan does it: a prompt is mended (ftfy), its HTML entities and white space are resolved; it becomes at most 512 tokens, the
last of them the end; padding is masked in the encoder, and its features are dropped.
"""

import contextlib
import gc
import hashlib
import html
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from fourreal.errors import MissingFile, UserError
from fourreal.text.file import TOKENS, Texts, one_line

TEXT_ENCODER, TOKENIZER, CONFIG = "text_encoder", "tokenizer", "config.json"
BATCH = 8  # prompts that the encoder sees at once
Precision = Literal["float32", "bfloat16"]
# Wan's own `sample_neg_prompt`: garish, overexposed, static, blurred details, subtitles, ..., walking backwards
NEGATIVE = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，"
    "残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，"
    "三条腿，背景人很多，倒着走"
)


class Encoder:
    """An encoder in memory, with its tokenizer."""

    def __init__(self, tokenizer: Any, model: Any, config_hash: str):
        self._tokenizer, self._model = tokenizer, model
        self.width: int = model.config.d_model
        self.config_hash = config_hash

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt, all of them and the end."""
        import ftfy

        clean = [one_line(html.unescape(html.unescape(ftfy.fix_text(prompt)))) for prompt in prompts]
        return self._tokenizer(clean, add_special_tokens=True, verbose=False)["input_ids"]

    def features(self, tokens: Sequence[Sequence[int]]) -> list[Float[np.ndarray, "l k"]]:
        """The features of some prompts' tokens, float32, one for each token."""
        import torch

        lengths = [len(each) for each in tokens]
        ids = torch.full((len(tokens), max(lengths)), self._tokenizer.pad_token_id)
        for row, each in zip(ids, tokens, strict=True):
            row[: len(each)] = torch.tensor(each)
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        with torch.inference_mode():
            device = self._model.device
            hidden = self._model(ids.to(device), attention_mask=mask.long().to(device)).last_hidden_state
        return [of_one[:length].float().cpu().numpy() for of_one, length in zip(hidden, lengths, strict=True)]

    def close(self) -> None:
        """Lets the weights go."""
        self._model = None


@contextlib.contextmanager
def open_encoder(folder: str | Path, dtype: Precision = "float32") -> Iterator[Encoder]:
    """The encoder of a Wan pipeline's folder in diffusers' layout, on a GPU where there is one; its memory is free after.

    Nothing is downloaded. Raises MissingFile for a folder without `text_encoder` or `tokenizer`, UserError for another encoder,
    for one whose weights are not all there, and where torch or transformers are not installed.
    """
    folder = Path(folder).expanduser()
    config = folder / TEXT_ENCODER / CONFIG
    for path in (config, folder / TOKENIZER):
        if not path.exists():
            raise MissingFile(
                f"there is no {path}: give the folder of a Wan pipeline, with {TEXT_ENCODER} and {TOKENIZER}"
            )
    try:
        import ftfy  # noqa: F401
        import torch
        from transformers import AutoTokenizer, UMT5EncoderModel
    except ModuleNotFoundError as error:
        raise UserError(
            f"the text encoder needs the package '{error.name}': pip install -e '.[text]' brings it, here or where you run "
            f"fourreal embed-text PROMPTS.txt --encoder {folder} --out text.safetensors"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / TOKENIZER, local_files_only=True)
        model, report = UMT5EncoderModel.from_pretrained(
            folder / TEXT_ENCODER,
            local_files_only=True,
            use_safetensors=True,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, as the file is
        raise UserError(
            f"{folder}: transformers cannot read the encoder ({error}): download the folder again"
        ) from error
    absent = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if absent or model.config.model_type != "umt5":
        found = f"lacks {absent[0]}" if absent else f"is a {model.config.model_type}"
        raise UserError(
            f"{folder / TEXT_ENCODER} {found}: expected all weights of a UMT5 encoder, download the folder again"
        )
    known, size = len(tokenizer), model.config.vocab_size
    if not size / 2 < known <= size:  # transformers makes up a small one where the files are not there
        raise UserError(f"{folder / TOKENIZER} knows {known} tokens, the encoder {size}: download the folder again")
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Encoder(tokenizer, model, hashlib.sha256(config.read_bytes()).hexdigest())
    del model
    try:
        yield encoder
    finally:
        encoder.close()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def cut(tokens: Sequence[int]) -> list[int]:
    """At most 512 tokens, the last of them the end, as Wan's tokenizer cuts."""
    return [*tokens[: TOKENS - 1], tokens[-1]] if len(tokens) > TOKENS else list(tokens)


def embed(
    encoder: Encoder, tokens: Sequence[Sequence[int]], progress: Callable[[int], Any] = lambda count: None
) -> Iterator[Float[np.ndarray, "l k"]]:
    """The features of prompts one by one, made a batch at a time; `progress` is told how many of each batch."""
    for start in range(0, len(tokens), BATCH):
        batch = encoder.features(tokens[start : start + BATCH])
        progress(len(batch))
        yield from batch


def embed_prompt(prompt: str, folder: str | Path, negative: str = NEGATIVE) -> Texts:
    """One prompt with its features, by an encoder that is gone after; see `open_encoder`."""
    with open_encoder(folder) as encoder:
        tokens = [cut(each) for each in encoder.tokens(["", negative, prompt])]
        empty, against, features = embed(encoder, tokens)
        prompt = one_line(prompt)
        return Texts((prompt,), {prompt: features}, empty, against, negative, encoder.config_hash)
