"""The parts of a transformer: linear maps, norms, rotary embedding, attention and its kernels."""
