"""The soft-sync two-stream model of `fourreal.models`, its training step and its sampler in PyTorch, to be timed against ours.

The same arithmetic with what PyTorch has for it: `scaled_dot_product_attention`, fused layer norm, RMS norm, GELU and AdamW,
one matmul where several share an input; autocast where our matmuls are bfloat16, checkpointed layers where ours are. Pixels,
x0-prediction, hints (some frame of every view and time is given), no text and the mean readout, as in `configs/nano.py`,
`tiny.py` and `large.py`. `against_torch.py` loads our parameters into it and shows outputs and gradients to be equal first.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fourreal.nn.rotary import rotary_angles
from fourreal.training.config import TrainConfig

EPSILON, SIGMA_FLOOR = 1e-6, 0.05
DYNAMIC, FREEZE_TIME = 0, 1  # rows of the context table


def swap(x: Tensor) -> Tensor:
    """Between the layouts of the two streams; a view, not a copy."""
    return x.transpose(1, 2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm of [b, n, f, s, d] with a shift and scale [b, n, f, d] per frame."""
    return torch.addcmul(shift[..., None, :], F.layer_norm(x, x.shape[-1:], eps=EPSILON), 1 + scale[..., None, :])


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_width: int):
        super().__init__()
        self.heads = heads
        self.modulation = nn.Parameter(torch.empty(6, width))
        self.qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query_norm, self.key_norm = nn.RMSNorm(width, eps=EPSILON), nn.RMSNorm(width, eps=EPSILON)
        self.mlp_in, self.mlp_out = nn.Linear(width, mlp_width), nn.Linear(mlp_width, width)

    def attend(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q, k = rotate(self.query_norm(q.float()), cos, sin), rotate(self.key_norm(k.float()), cos, sin)
        q, k, v = (rearrange(part, "b n f s (h e) -> (b n) h (f s) e", h=self.heads) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        return rearrange(out, "(b n) h (f s) e -> b n f s (h e)", n=x.shape[1], f=x.shape[2])

    def forward(self, x: Tensor, six: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (six + self.modulation).unbind(-2)
        seen = self.attention_out(self.attend(modulate(x, shift_1, scale_1), cos, sin))
        x = torch.addcmul(x, gate_1[..., None, :], seen)
        hidden = F.gelu(self.mlp_in(modulate(x, shift_2, scale_2)), approximate="tanh")
        return torch.addcmul(x, gate_2[..., None, :], self.mlp_out(hidden))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the neighbouring pairs of [b, n, f, s, d] by angles [f, s, d/2]."""
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class SoftSync(nn.Module):
    """The correction of both streams from both, as one matmul in the time stream's layout; initial mix `zero`."""

    def __init__(self, width: int):
        super().__init__()
        self.modulation = nn.Parameter(torch.empty(2, 2, width))
        self.linear = nn.Linear(2 * width, 2 * width)

    def forward(self, y_v: Tensor, y_t: Tensor, shift_scale: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = (shift_scale + self.modulation).flatten(-2).unbind(-2)
        z = torch.cat([swap(y_v), y_t], dim=-1)
        d_v, d_t = self.linear(torch.addcmul(shift[..., None, :], z, 1 + scale[..., None, :])).chunk(2, dim=-1)
        return y_v + swap(d_v), y_t + d_t


class TwoStream(nn.Module):
    """`TwoStream(config, size)(grid, sigma, given)`: the raw output for a noised grid [b, v, t, *size, 3]."""

    def __init__(self, config: TrainConfig, size: tuple[int, int]):
        super().__init__()
        model, width = config.model, config.model.width
        self.config, self.patch = config, model.patch[1]
        area = self.patch**2
        self.patch_embed, self.hint_embed = nn.Linear(3 * area, width), nn.Linear(2 * 4 * area, width)
        self.time_in, self.time_out = nn.Linear(model.frequency_width, width), nn.Linear(width, width)
        self.time_projection, self.sync_projection = nn.Linear(width, 6 * width), nn.Linear(width, 4 * width)
        self.context, self.given = nn.Parameter(torch.empty(3, 6, width)), nn.Parameter(torch.empty(width))
        self.blocks = nn.ModuleList(Block(width, model.heads, model.mlp_width) for _ in range(model.depth))
        self.syncs = nn.ModuleList(SoftSync(width) for _ in range(model.depth))
        self.head_modulation = nn.Parameter(torch.empty(2, width))
        self.head = nn.Linear(width, 6 * area)  # pixels and copy gates
        for stream, frames in (("v", config.data.views), ("t", config.data.times)):
            patches = (side // self.patch for side in size)
            angles = rotary_angles(np.arange(frames), *patches, width // model.heads)
            angles = torch.tensor(angles).repeat(1, 1, model.heads)
            self.register_buffer(f"cos_{stream}", angles.cos())
            self.register_buffer(f"sin_{stream}", angles.sin())

    def forward(self, grid: Tensor, sigma: Tensor, given: Tensor) -> Tensor:
        precision = getattr(torch, self.config.model.dtype)
        with torch.autocast(grid.device.type, precision, enabled=precision != torch.float32):
            return self._forward(grid, sigma, given).float()

    def _layer(self, x_v: Tensor, x_t: Tensor, six_v: Tensor, six_t: Tensor, shift_scale: Tensor, block, sync):
        y_v, y_t = block(x_v, six_v, self.cos_v, self.sin_v), block(x_t, six_t, self.cos_t, self.sin_t)
        return sync(y_v, y_t, shift_scale)

    def _forward(self, grid: Tensor, sigma: Tensor, given: Tensor) -> Tensor:
        p, height = self.patch, grid.shape[3]
        hints = grid_hints(grid, given)
        x = self.patch_embed(rearrange(grid, "b v t (h p) (w q) c -> b v t (h w) (c p q)", p=p, q=p))
        x = x + self.hint_embed(rearrange(hints, "b v t n (h p) (w q) c -> b v t (h w) (n c p q)", p=p, q=p))
        x = x + given[..., None, None] * self.given
        half = self.time_in.in_features // 2
        angle = 1000 * sigma[..., None] * torch.exp(torch.arange(half) * (-math.log(1e4) / half))
        temb = self.time_out(F.silu(self.time_in(torch.cat([angle.cos(), angle.sin()], dim=-1))))
        six = self.time_projection(F.silu(temb)).unflatten(-1, (6, -1))
        shift_scale = self.sync_projection(F.silu(temb)).unflatten(-1, (2, 2, -1))
        six_v, six_t = swap(six + self.context[FREEZE_TIME]), six + self.context[DYNAMIC]
        x_v, x_t = swap(x), x
        layer = self._layer
        if torch.is_grad_enabled() and self.config.model.remat == "full":
            layer = functools.partial(checkpoint, layer, use_reentrant=False)
        for block, sync in zip(self.blocks, self.syncs, strict=True):
            x_v, x_t = layer(x_v, x_t, six_v, six_t, shift_scale, block, sync)
        out = (swap(self._decode(x_v, swap(temb))) + self._decode(x_t, temb)) / 2
        out = rearrange(out, "b v t (h w) (p q k) -> b v t (h p) (w q) k", h=height // p, p=p, q=p)
        pixels, gates = out.split(3, dim=-1)
        pictures = torch.stack([grid, *hints[..., :3].unbind(3)], dim=-2)
        return pixels + (gates[..., None] * pictures).sum(-2)

    def _decode(self, x: Tensor, temb: Tensor) -> Tensor:
        shift, scale = (temb[..., None, :] + self.head_modulation).unbind(-2)
        return self.head(modulate(x, shift, scale))


def nearest_given(grid: Tensor, given: Tensor, over: int) -> Tensor:
    """For each cell the nearest given frame along axis `over` (1: views, 2: times), with a validity channel."""
    count = given.shape[over]
    distance = (torch.arange(count)[:, None] - torch.arange(count)).abs()
    seen = given.movedim(over, -1)[..., None, :]  # b, other, 1, count
    index = torch.where(seen, distance, count).argmin(-1)
    frames = torch.take_along_dim(grid.movedim(over, 2), index[..., None, None, None], dim=2)
    flagged = torch.cat([frames, torch.ones_like(frames[..., :1])], dim=-1)
    return (flagged * seen.any(-1)[..., None, None, None]).movedim(2, over)


def grid_hints(grid: Tensor, given: Tensor) -> Tensor:
    """[b, v, t, 2, h, w, 4]: the nearest given frames of each cell's own view and of its own time."""
    return torch.stack([nearest_given(grid, given, 2), nearest_given(grid, given, 1)], dim=3)


def load_ours(model: TwoStream, ours: dict[str, np.ndarray]) -> None:
    """Copies our parameters, by their dotted names, into the model."""
    with torch.no_grad():
        for name, value in in_torch(ours).items():
            model.get_parameter(name).copy_(torch.from_numpy(np.ascontiguousarray(value)))


def in_torch(ours: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our parameters, or their gradients, under this model's names and in its layout."""

    def linear(*names: str, layer: int | tuple = ()) -> dict[str, np.ndarray]:
        kernels, biases = ([ours[f"{name}.{kind}"][layer] for name in names] for kind in ("kernel", "bias"))
        return {"weight": np.concatenate(kernels, axis=-1).T, "bias": np.concatenate(biases)}

    area = len(ours["base.head.out.bias"]) // 3
    head = {  # a pixel's channels beside its copy gates
        kind: rearrange(
            [ours[f"base.head.{part}.{name}"] for part in ("out", "copy_gate")], f"two {axes} -> {to}", a=area
        )
        for kind, name, axes, to in (
            ("weight", "kernel", "d (a k)", "(a two k) d"),
            ("bias", "bias", "(a k)", "(a two k)"),
        )
    }
    parts = {
        "patch_embed": linear("base.patch_embed"),
        "hint_embed": linear("base.conditions.hints.embed"),
        "time_in": linear("base.time_embed.in_"),
        "time_out": linear("base.time_embed.out"),
        "time_projection": linear("base.time_projection"),
        "sync_projection": linear("sigma_projection.linear"),
        "head": head,
    }
    tensors = {
        "context": ours["base.context.table"],
        "given": ours["base.given.vector"],
        "head_modulation": ours["base.head.modulation"],
    }
    block, sync = "base.blocks", "sync.mod_linear"
    for layer in range(len(ours[f"{block}.modulation"])):
        names = [f"{block}.attention.{name}" for name in ("query", "key", "value")]
        parts[f"blocks.{layer}.qkv"] = linear(*names, layer=layer)
        parts[f"blocks.{layer}.attention_out"] = linear(f"{block}.attention.out", layer=layer)
        parts[f"blocks.{layer}.mlp_in"] = linear(f"{block}.mlp.in_", layer=layer)
        parts[f"blocks.{layer}.mlp_out"] = linear(f"{block}.mlp.out", layer=layer)
        parts[f"syncs.{layer}.linear"] = {
            "weight": rearrange(ours[f"{sync}.kernel"][layer], "source d target e -> (target e) (source d)"),
            "bias": ours[f"{sync}.bias"][layer].reshape(-1),
        }
        for name in ("query_norm", "key_norm"):
            tensors[f"blocks.{layer}.{name}.weight"] = ours[f"{block}.attention.{name}.scale"][layer]
        tensors[f"blocks.{layer}.modulation"] = ours[f"{block}.modulation"][layer]
        tensors[f"syncs.{layer}.modulation"] = ours[f"{sync}.modulation"][layer]
    return tensors | {f"{part}.{kind}": value for part, pair in parts.items() for kind, value in pair.items()}


def to_unit(frames: Tensor) -> Tensor:
    return frames.float() / 127.5 - 1.0


class Trainer:
    """The training step: draws noise, loss and gradient, clipped AdamW with a schedule, average of the parameters."""

    def __init__(self, model: TwoStream, compiled: bool):
        self.model, self.optim = model, model.config.optim
        self.average = copy.deepcopy(model).requires_grad_(False)
        self.loss = torch.compile(self._loss) if compiled else self._loss
        parameters = dict(model.named_parameters())
        matrices = [p for name, p in parameters.items() if p.dim() == 2 and name.endswith("weight")]
        others = [p for p in parameters.values() if all(p is not matrix for matrix in matrices)]
        groups = [
            {"params": matrices, "weight_decay": self.optim.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        betas = (self.optim.beta1, self.optim.beta2)
        self.adamw = torch.optim.AdamW(groups, lr=self.optim.lr, betas=betas, fused=True)
        self.updates = 0

    def _loss(self, frames: Tensor, given: Tensor, sigma: Tensor, eps: Tensor) -> Tensor:
        x0 = to_unit(frames)
        sigma = torch.where(given, 0.0, sigma[:, None, None])
        level = sigma[..., None, None, None]
        x = (1 - level) * x0 + level * eps
        error = (x - self.model(x, sigma, given)) / level.clamp(min=SIGMA_FLOOR) - (eps - x0)
        unknown = (~given).float()
        per_cell = error.square().mean((-3, -2, -1))
        return ((per_cell * unknown).sum((1, 2)) / unknown.sum((1, 2)).clamp(min=1)).mean()

    def draw(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """(sigma, eps) of a batch."""
        config = self.model.config.sigma
        sigma = torch.sigmoid(config.mean + config.std * torch.randn(len(frames)))
        sigma = config.shift * sigma / (1 + (config.shift - 1) * sigma)
        return sigma.clamp(min=SIGMA_FLOOR), torch.randn(frames.shape)

    def learning_rate(self) -> float:
        """Linear warm-up to the peak, then cosine."""
        peak, last, n = self.optim.lr, self.model.config.steps, self.updates
        if n < self.optim.warmup:
            start = peak / (self.optim.warmup + 1)
            return start + (peak - start) * n / self.optim.warmup
        cosine = (1 + math.cos(math.pi * (n - self.optim.warmup) / (last - self.optim.warmup))) / 2
        return peak * (self.optim.final_lr + (1 - self.optim.final_lr) * cosine)

    def step(self, frames: Tensor, given: Tensor, drawn: tuple[Tensor, ...] = ()) -> float:
        """One training step; returns the loss. A loss or gradient that is not finite changes nothing."""
        loss = self.loss(frames, given, *(drawn or self.draw(frames)))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.optim.clip)
        if torch.isfinite(loss) and torch.isfinite(norm):
            for group in self.adamw.param_groups:
                group["lr"] = self.learning_rate()
            self.adamw.step()
            decay = min(self.optim.ema, (2 + self.updates) / (11 + self.updates))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - decay)
            self.updates += 1
        self.adamw.zero_grad()
        return loss.item()


class Sampler:
    """Euler sampling of the unknown cells of one grid, as `GridPipeline` does it."""

    def __init__(self, model: TwoStream, compiled: bool):
        self.model = model
        self.step: Callable[..., Tensor] = torch.compile(self._step) if compiled else self._step

    def _step(self, x: Tensor, frames: Tensor, given: Tensor, sigma: Tensor, after: Tensor) -> Tensor:
        clean = self.model(x, torch.where(given, 0.0, sigma), given)
        x = x + (after - sigma) * (x - clean) / sigma
        return torch.where(given[..., None, None, None], frames, x)

    @torch.inference_mode()
    def __call__(self, frames: Tensor, given: Tensor, noise: Tensor | None = None, *, levels: Tensor) -> Tensor:
        """uint8 frames [v, t, h, w, 3] with the unknown cells sampled."""
        known, seen = to_unit(frames)[None], given[None]
        x = torch.randn(known.shape) if noise is None else noise
        x = torch.where(seen[..., None, None, None], known, x)
        for sigma, after in itertools.pairwise(levels):
            x = self.step(x, known, seen, sigma, after)
        sampled = ((x[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        return torch.where(given[..., None, None, None], frames, sampled)
