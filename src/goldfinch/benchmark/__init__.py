"""How fast a model is and how many bytes it takes, measured on this machine: what `goldfinch bench` prints."""
