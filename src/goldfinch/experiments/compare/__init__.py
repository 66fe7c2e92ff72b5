"""Comparing models trained on the same data: launching, measuring, and reporting next to the paper's results."""
