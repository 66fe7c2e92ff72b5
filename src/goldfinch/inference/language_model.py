"""A model with its tokenizer: the object that users hold (`gf.load`, `gf.build`)."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from goldfinch import malloc
from goldfinch.cache.budget import AUTO
from goldfinch.checkpoint.model_folder import load_model, read_tokenizer
from goldfinch.config import ModelConfig, RopeConfig
from goldfinch.data.tokenizers import Tokenizer, WorldTokenizer
from goldfinch.errors import UserError
from goldfinch.inference.context import Context
from goldfinch.inference.context_file.format import open_context
from goldfinch.inference.token_ids import check_token_ids, token_ids
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import WORLD_VOCABULARY, model_config


class LanguageModel:
    """Weights, config and tokenizer."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer | None, folder: Path | None = None) -> None:
        self.model = model
        """The nn.Module."""
        self.tokenizer = tokenizer
        """None: the model takes and gives ids only."""
        self.folder = folder
        """Where it was loaded from."""

    @property
    def config(self) -> ModelConfig:
        """Sizes and the layer plan."""
        return self.model.config

    def encode(self, text: str | Sequence[int] | Tensor) -> Tensor:
        """Text or ids -> checked (T,) int64 ids.

        Raises:
            UserError: no tokens, ids outside the vocabulary, or a text where the model has no tokenizer.
        """
        return token_ids(text, self.tokenizer, self.config.vocab_size)

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """The whole forward without a cache: (B, T) int64 -> (B, T, V) float32.

        Raises:
            UserError: no tokens, or ids outside the vocabulary.
        """
        ids = torch.as_tensor(ids)
        if ids.dim() != 2 or ids.numel() == 0:
            raise UserError(f"token ids must be a (batch, tokens) tensor with tokens in it, not {tuple(ids.shape)}")
        check_token_ids(ids, self.config.vocab_size)
        logits, _ = self.model(ids.to(self.model.device, torch.int64))
        return logits.float()

    def context(self, latents: str | None = None, budget: int | str = AUTO) -> Context:
        """An empty context.

        Args:
            latents: what compressed keys are stored in: "bfloat16", "float32", "int8", "int4"; None for the model's own
                type, which rounds nothing.
            budget: bytes of rebuilt keys and values to keep between steps at most, as a number or as "2GiB"; "auto" is
                half of the memory that is free now.

        Raises:
            UserError: an unknown format, or no amount of memory.
        """
        return Context(self.model, self.tokenizer, latents, budget, self.folder)

    def read(self, text: str | Sequence[int] | Tensor, latents: str | None = None, budget: int | str = AUTO) -> Context:
        """Read a text, or token ids, into a new context: linear pre-fill. `latents`, `budget`: as in `context`.

        Raises:
            UserError: no tokens, ids outside the vocabulary, a text where the model has no tokenizer, or as `context`.
        """
        return self.context(latents, budget).read(text)

    def open(self, path: str | Path, budget: int | str = AUTO) -> Context:
        """A context that `Context.save` has written, memory-mapped: ready at once, whatever its length.

        The header and states are checked now, and so is everything in files up to 64 MiB; in larger ones, each block's
        checksum is compared when the block is first used (`goldfinch cache verify` compares all).

        Args:
            path: the file.
            budget: as in `context`.

        Raises:
            UserError: the file is missing, damaged, of a newer version, of another model or of another tokenizer.
        """
        context = self.context(budget=budget)
        context.documents = open_context(Path(path), context.sequence, self.tokenizer)
        return context


def load(
    path: str | Path, dtype: str | None = None, device: str = "cpu", rope: RopeConfig | None = None
) -> LanguageModel:
    """Load a model that `goldfinch train` or `goldfinch convert` has written.

    Args:
        path: the folder, such as "runs/quickstart".
        dtype: "float32", "bfloat16", ...; None for the one the weights are stored in.
        device: "cpu", "cuda", ...
        rope: positions in place of the model's own, such as RopeConfig(rescale=4) for texts four times as long as it
            was trained on; None for its own. Contexts that were saved before stay valid: GOLD turns keys as it rebuilds
            them.

    Raises:
        UserError: the folder or a file in it is missing or broken, or `rope` is given for a model without positions.
    """
    malloc.tune()
    folder = Path(path)
    model = load_model(folder, _dtype(dtype) if dtype else None, device, rope).eval()
    return LanguageModel(model, read_tokenizer(folder, model.config), folder)


def build(
    preset: str, dtype: str = "float32", seed: int = 0, device: str = "cpu", vocab_size: int = WORLD_VOCABULARY
) -> LanguageModel:
    """A preset with random weights.

    Args:
        preset: KIND-SIZE, such as "goldfinch-L12-D768" (`goldfinch info` lists them).
        dtype: of the parameters.
        seed: of the initialisation.
        device: where the weights go.
        vocab_size: V; with the World tokenizer's 65536 the model gets that tokenizer.

    Raises:
        UserError: an unknown preset or dtype.
    """
    malloc.tune()
    config = model_config(preset, vocab_size)
    model = Decoder.on_meta(config)
    model = model.to(_dtype(dtype)).to_empty(device=device).eval()
    initialize(model, seed)
    return LanguageModel(model, WorldTokenizer() if vocab_size == WORLD_VOCABULARY else None)


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise UserError(f"unknown dtype {name!r}; use float32, bfloat16, float16 or float64")
    return dtype
