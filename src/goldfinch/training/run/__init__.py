"""What a run reads and writes: its folder, data, checkpoints, metrics."""
