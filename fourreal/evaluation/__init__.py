"""Checkpoints and baselines scored on the same grids, with tables and a report; `ablation/` compares fusions."""
