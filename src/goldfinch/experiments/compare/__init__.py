"""Several models trained on the same data: launching, measuring, and the report beside the paper's figures."""
