"""Text: an embedded prompt, one for a grid. Every block's tokens look at it in a cross-attention of their own, as in Wan.

A prompt comes with features that stand in for it where it is dropped: in training those of the empty prompt, in the branch of
guidance without text those of a negative one. Features are zeros beyond the prompt's end, up to 512 tokens, and these zeros
take part, as Wan was trained.
"""

import dataclasses
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from fourreal.conditions.condition import Condition, Embedded
from fourreal.errors import UserError
from fourreal.grid import Cells, Known
from fourreal.nn.linear import MLP
from fourreal.parallel.layout import FSDP
from fourreal.scene import Scene
from fourreal.text.file import TOKENS, read_texts

PATH = tyro.conf.arg(metavar="PATH")
EMPTY = "empty_text"  # in `Scene.more`: features [n k] of the empty prompt


class Prompt(NamedTuple):
    """The value: features of a prompt, and of what stands in for it where it is dropped."""

    features: Float[Array, "*b l k"]
    negative: Float[Array, "*b n k"] | None = None
    """of the empty or a negative prompt, n at most l; None: the prompt cannot be dropped"""


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """What the text says."""

    text: Annotated[str | None, PATH] = None
    """file of fourreal embed-text, for a checkpoint with text; its negative prompt is what guidance goes away from"""
    prompt: str | None = None
    """which of the file's prompts; none: its only one"""
    encoder: Annotated[str | None, PATH] = None
    """instead of a file, a Wan pipeline's folder whose encoder embeds the prompt now; needs pip install -e '.[text]'"""


class TextTokens(nnx.Module):
    """The text's tokens: an MLP from the features' width to the model's."""

    layout: ClassVar[dict[str, P]] = {
        "embed.in_.kernel": P(None, FSDP),
        "embed.in_.bias": P(),
        "embed.out.kernel": P(FSDP, None),
        "embed.out.bias": P(),
    }

    def __init__(self, features: int, base: Any, *, rngs: nnx.Rngs):
        self.embed = MLP(features, base.width, base.width, dtype=jnp.dtype(base.dtype), rngs=rngs)

    def __call__(self, text: Prompt | Float[Array, "b l k"], cells: Cells, size: tuple[int, int]) -> Embedded:
        return Embedded(cross=self.embed(text.features if isinstance(text, Prompt) else text))


@dataclasses.dataclass(frozen=True)
class Text(Condition):
    """An embedded prompt, which the model cannot do without. Its value is a `Prompt`, or its features alone."""

    width: int = 4096
    """width of the features"""

    kind = "text"
    axes = {"": "b", "features": "b", "negative": "b"}  # noqa: RUF012
    cross = True
    Options = TextOptions

    def module(self, base: Any, rngs: nnx.Rngs) -> nnx.Module:
        return TextTokens(self.width, base, rngs=rngs)

    def default(self, known: Known) -> Any:
        raise UserError("this model needs text: give the features of a prompt, text=[l, k]")

    def null(self, value: Prompt | Float[Array, "b l k"]) -> Prompt | Float[Array, "b l k"]:
        """The negative features in place of the prompt's, with zeros after them; zeros, of features alone."""
        if not isinstance(value, Prompt):
            return super().null(value)
        if value.negative is None:
            raise UserError("guidance by text needs the features of a negative prompt: text=Prompt(features, negative)")
        return Prompt(padded(value.negative, value.features.shape[-2]), value.negative)

    def example(self, scene: Scene, given: Bool[np.ndarray, "v t"], rng: np.random.Generator | None) -> Prompt:
        if scene.text is None:
            raise UserError("the model takes text and the source's scenes hold none: take a source with text features")
        empty = scene.more.get(EMPTY)
        if empty is None and self.drop:
            raise UserError(
                f"text is dropped for a share of the examples (drop={self.drop:g}), and the source's scenes hold no features "
                "of the empty prompt: take a source that has them, or drop=0"
            )
        empty = np.zeros((1, self.width), np.float32) if empty is None else self._features(empty)
        return Prompt(padded(self._features(scene.text)), empty)

    def shapes(self, scene: Scene, given: Bool[np.ndarray, "v t"]) -> Prompt:
        return Prompt(*(jax.ShapeDtypeStruct((tokens, self.width), np.float32) for tokens in (TOKENS, 1)))

    def check(self, value: Any, views: int, times: int) -> Prompt:
        """As `Condition.check`; of features alone, too: a prompt that cannot be dropped, so without guidance by text."""
        parts = value if isinstance(value, Prompt) else Prompt(value)
        return Prompt(*(None if part is None else padded(self._features(part)) for part in parts))

    @classmethod
    def check_options(cls, options: TextOptions) -> str:
        if options.text is not None and options.encoder is not None:
            raise UserError("--text and --encoder both give the prompt's features: give one")
        said = {"--text": options.text, "--encoder": options.encoder, "--prompt": options.prompt}
        return next((name for name, value in said.items() if value is not None), "")

    def from_options(self, options: TextOptions, inputs: Any) -> tuple[Prompt, str]:
        if options.encoder is not None and options.prompt is not None:
            from fourreal.text.encoder import embed_prompt

            texts = embed_prompt(options.prompt, options.encoder)
        elif options.text is not None:
            texts = read_texts(options.text)
        else:
            raise UserError(
                "the checkpoint takes text: give --text FILE, which fourreal embed-text PROMPTS.txt --encoder FOLDER --out FILE"
                " writes, or --prompt and --encoder"
            )
        prompt = texts.find(options.prompt)
        if texts.width != self.width:
            raise UserError(
                f"the text's features are {texts.width} wide, the checkpoint takes {self.width}: embed the prompts with the "
                "encoder of its base"
            )
        return self.check(Prompt(texts.features[prompt], texts.negative), 0, 0), f", prompt: {prompt}"

    def _features(self, value: Any) -> Float[np.ndarray, "l k"]:
        value = np.asarray(value, np.float32)
        if value.ndim != 2 or value.shape[1] != self.width or len(value) > TOKENS:
            raise UserError(
                f"text is {list(value.shape)}: expected features [l, {self.width}] of one prompt, l at most {TOKENS}"
            )
        return value


def padded(features: Float[Array, "*b n k"], tokens: int = TOKENS) -> Float[Array, "*b l k"]:
    """Features with zeros after them, up to so many tokens. Raises UserError for features of more."""
    free = tokens - features.shape[-2]
    if free < 0:
        raise UserError(f"negative features of {features.shape[-2]} tokens for a prompt of {tokens}: pad it with zeros")
    pad = np.pad if isinstance(features, np.ndarray) else jnp.pad
    return pad(features, [(0, 0)] * (features.ndim - 2) + [(0, free), (0, 0)])
