"""Scenes of animated assets, drawn at random and rendered to grids by panda3d."""
