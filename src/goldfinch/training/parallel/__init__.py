"""Who computes what: the processes of a run, and what is put on a model's blocks from outside."""
