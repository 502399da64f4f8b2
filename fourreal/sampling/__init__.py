"""From a checkpoint and given frames to a grid: inputs, the pipeline, the files that are written, `page/` to look at them."""
