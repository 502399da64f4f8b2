"""The attention kernels, one file a backend: XLA's own (on CPUs in parts that stay in the cache), cuDNN's flash attention, and
splash attention of Pallas for TPUs. `choice.py` says which of them a run uses, and runs it.

jax's public functions have no backward that takes its output from elsewhere, so that cuDNN's and splash attention's come from
its inner modules, and only here.
"""

from fourreal.nn.kernels.choice import XLA, AttentionConfig, Kernel, backward, forward, plain, resolve_kernel
from fourreal.nn.kernels.splash import SplashBlocks

__all__ = ["XLA", "AttentionConfig", "Kernel", "SplashBlocks", "backward", "forward", "plain", "resolve_kernel"]
