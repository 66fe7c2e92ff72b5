"""`python -m goldfinch.evaluation ...`: lm-eval's own command line, which then knows `--model goldfinch`."""

from lm_eval.__main__ import cli_evaluate

import goldfinch.evaluation.harness

__all__ = ["goldfinch"]  # imported for what it registers

if __name__ == "__main__":
    cli_evaluate()
