"""The files of a run: its folder, data, checkpoints, metrics."""
