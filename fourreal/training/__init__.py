"""Training: config, initial parameters, step, optimizer, loop, checkpoints, log, validation."""
