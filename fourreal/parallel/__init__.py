"""Many devices: the mesh, where parameters and activations live on it, processes, and plans for hardware that is not there."""
