"""Many devices: the mesh, the layout of parameters on it, and the one move of activations between streams."""
