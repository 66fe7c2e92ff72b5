"""Training: settings, recipes, the loop, exact resume, and everything a run writes."""
