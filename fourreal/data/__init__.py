"""Grids to train on: sources of scenes, records, masks of given cells, batches; `render/` makes scenes and renders them."""
