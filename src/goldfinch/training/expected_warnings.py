"""PyTorch's warnings about what a run does on purpose."""

import contextlib
import warnings
from collections.abc import Iterator

_EXPECTED = (
    # Checkpoints of one process need no process group.
    "torch.distributed is disabled",
    # Blocks return states too, some of them views. Nothing changes them in place.
    "FSDP2-wrapped module .* returned a view tensor",
)


@contextlib.contextmanager
def ignore_expected_warnings() -> Iterator[None]:
    """Ignore them while the block runs, in all threads: checkpoints are written in one of their own."""
    with warnings.catch_warnings():
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message, UserWarning)
        yield
