"""`python -m goldfinch`: the command line, as `torchrun -m goldfinch` starts it in each process."""

from goldfinch.cli.main import main

main()
