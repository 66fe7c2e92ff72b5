"""`goldfinch quantize`: a model whose matrices are integers."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from goldfinch.cli.arguments import parse, require_model
from goldfinch.cli.contexts import check_dtype_and_device
from goldfinch.cli.units import size


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Round the matrices of a model to integers: goldfinch quantize runs/quickstart -o models/quickstart-int8

    The model takes a quarter of the memory of float32, or half of bfloat16, and writes that much faster, since a token
    waits for the weights to be read. Every command takes the new folder. It cannot be trained, and contexts that the
    original has read are not its own: read them again.
    """

    model: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="MODEL")]]
    """Model folder, from `goldfinch train` or `goldfinch convert`, or hf:OWNER/NAME, one on the Hub."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
    """Output folder."""
    weights: Literal["int8"] = "int8"
    """int8: embedding, head and the matrices of all layers as integers of 8 bits, with a scale for each row. Norms,
    decays, low-rank parts and what writes and reads compressed keys stay as they are."""
    dtype: Annotated[str, tyro.conf.arg(metavar="auto|DTYPE")] = "auto"
    """Dtype of all else, as for `goldfinch generate`."""
    overwrite: bool = False
    """Overwrite the folder if it exists and holds only a model."""

    def run(self) -> None:
        """Quantize, write, and print what it saved and the next command.

        Raises:
            UserError: the model cannot be loaded or is quantized already, or the output exists.
        """
        check_dtype_and_device(self.dtype, "cpu")
        folder = require_model(self.model)

        from goldfinch.checkpoint.model_folder import WEIGHTS, check_model_output
        from goldfinch.checkpoint.quantize import quantize
        from goldfinch.inference.language_model import load

        check_model_output(self.output, self.overwrite)
        lm = load(folder, self.dtype)
        before = sum(tensor.nbytes for tensor in lm.model.state_dict().values())
        quantize(lm.model, self.weights)
        lm.save(self.output, overwrite=self.overwrite)
        after = (self.output / WEIGHTS).stat().st_size
        print(f"wrote {self.output}: {size(after)} of weights, {after / before:.0%} of {size(before)}")
        print(f'next: goldfinch generate {shlex.quote(str(self.output))} "Once upon a time"')


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Quantize, "quantize", args).run()
