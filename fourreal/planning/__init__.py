"""What a training step needs on accelerators that are not there: memory, collectives, time."""
