"""Pinhole cameras, named trajectories, rays: NumPy and JAX."""
