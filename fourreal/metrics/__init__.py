"""Arrays in, numbers out: pixel metrics, LPIPS, statistics, and the baselines that a sampled grid must beat."""
