"""How weights are moved: parameter groups, AdamW, Muon, the learning rate over a run, the size of the updates."""
