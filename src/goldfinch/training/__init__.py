"""Training: the paper's recipe, exact resume, and everything a run writes."""
