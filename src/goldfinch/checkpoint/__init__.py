"""Weights on disk: our own folder format, and the published `.pth` names in both directions."""
