"""Rectified flow on grids: loss, guidance, samplers."""
