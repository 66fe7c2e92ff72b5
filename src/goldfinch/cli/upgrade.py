"""`goldfinch upgrade`: add GOLD layers to a pre-trained Finch."""

import dataclasses
import itertools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from goldfinch.cli.arguments import parse, require_source
from goldfinch.cli.rope import rope_on_one_line
from goldfinch.config import RopeConfig
from goldfinch.errors import UserError

if TYPE_CHECKING:
    from goldfinch.data.tokenizers import Tokenizer
    from goldfinch.model import Decoder

CHECKED_TOKENS = 512
OLD_MULTIPLIER = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upgrade:
    """Turn a pre-trained Finch into a GoldFinch: goldfinch upgrade rwkv-6.pth --gold append:4 -o models/upgraded

    The layers below GOLD stay bit-identical. New parts start as the identity: with append the new model predicts the
    same as the base; with replace it lacks the time mixes that GOLD replaces until it is trained. The losses of both
    models on the start of a text are printed.
    """

    finch: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FOLDER|PTH")]]
    """The base model: a folder with a Finch or Finch-C2 from `goldfinch train` or `goldfinch convert`, or the .pth file
    of an RWKV-6 World model."""
    gold: Annotated[str, tyro.conf.arg(metavar="append:N|replace:1/N")]
    """append:4 adds four GOLD layers at the top, before the head; replace:1/3 replaces the time mixes of the last third
    of the layers and keeps their channel mixes."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")]
    """Output folder."""
    latent_ratio: int = 16
    """Width of the model divided by the width of a latent (compressed key)."""
    rope: RopeConfig | None = None
    """Rotary positions in the GOLD layers."""
    seed: int = 0
    """Random seed of the new weights."""
    text: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Text to compare the losses on. Default: Moby-Dick."""
    overwrite: bool = False
    """Overwrite the folder if it exists and holds only a model."""

    def run(self) -> None:
        """Upgrade, compare, write, and print the next command.

        Raises:
            UserError: the base is not a Finch, the output exists, or the text cannot be read; then nothing is written.
        """
        finch = require_source(self.finch)

        from goldfinch.checkpoint.model_folder import check_model_output, save_model_folder
        from goldfinch.checkpoint.upgrade import old_weights_slowly, read_finch, upgrade, upgraded_config

        check_model_output(self.output, self.overwrite)
        base, tokenizer, chat_template = read_finch(finch)
        config = upgraded_config(base.config, self.gold, self.latent_ratio, self.rope)
        text = self._text(tokenizer)
        model = upgrade(base, config, self.seed)
        for title, one in (("base", base), ("upgraded", model)):
            print(f"{title + ':':<10} {_describe(one)}")
        if text is not None and tokenizer is not None:
            self._compare(base, model, tokenizer.encode(text))
        else:
            print("loss:      not compared: there is no tokenizer")
        save_model_folder(self.output, config, model.state_dict(), tokenizer, chat_template, overwrite=self.overwrite)
        kind = f"with the {tokenizer.name} tokenizer" if tokenizer is not None else "without a tokenizer"
        print(f"wrote {self.output} {kind}")
        multipliers = shlex.join(old_weights_slowly(base.config, config, OLD_MULTIPLIER))
        folder = shlex.quote(str(self.output))
        print(
            f"next: goldfinch train --initial {folder} --data DATA -o RUN "
            f"--optimizer.learning-rate-multipliers {multipliers}"
        )

    def _text(self, tokenizer: "Tokenizer | None") -> str | None:
        """The text to compare the losses on; None without a tokenizer."""
        if tokenizer is None:
            if self.text is not None:
                raise UserError(
                    f"{self.finch} has no tokenizer for {self.text}: convert it first with "
                    "`goldfinch convert --tokenizer`, or leave out --text"
                )
            return None
        if self.text is None:
            from goldfinch.data.moby_dick import moby_dick

            return moby_dick()[: 16 * CHECKED_TOKENS]
        try:
            # No token needs more characters than this.
            with self.text.open(encoding="utf-8") as file:
                content = file.read(1024 * CHECKED_TOKENS)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise UserError(f"cannot read {self.text}: {reason}") from error
        if len(tokenizer.encode(content)) < 2:
            raise UserError(f"{self.text} is too short to compare losses: give a text of at least two tokens")
        return content

    def _compare(self, base: "Decoder", model: "Decoder", ids: list[int]) -> None:
        """Print the losses of both on the first tokens."""
        import torch

        from goldfinch.training.loss import next_token_loss

        windows = torch.tensor([ids[: CHECKED_TOKENS + 1]])
        count = windows.shape[1] - 1
        with torch.inference_mode():
            before, after = (float(next_token_loss(one, windows)) / count for one in (base, model))
        verdict = "bit-identical" if after == before else f"{after - before:+.4f}"
        print(
            f"loss:      {before:.4f} nats per token before, {after:.4f} after ({verdict}), "
            f"on the first {count} tokens of {self.text or 'Moby-Dick'}"
        )


def _describe(model: "Decoder") -> str:
    config = model.config
    plan = ", then ".join(f"{len(list(run))} {kind}" for kind, run in itertools.groupby(config.time_mixes))
    count = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{plan}; width {config.width}, vocabulary {config.vocab_size}; {count:,} parameters in {dtype}"


def main(args: list[str]) -> None:
    """Parse `args` and run."""
    parse(Upgrade, "upgrade", args, registry=rope_on_one_line()).run()
