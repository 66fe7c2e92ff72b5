"""Evaluating models: lm-evaluation-harness on our engine, tasks from local files, plain text."""
