"""Rectified flow on grids: noising and loss, guidance, samplers."""
