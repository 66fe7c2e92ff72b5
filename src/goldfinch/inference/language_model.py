"""A model with its tokenizer: the object that users hold (`gf.load`, `gf.build`)."""

import dataclasses
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, cast, overload

import torch
from torch import Tensor

from goldfinch.argument_checks import boolean, file_path, integer, shortened, string
from goldfinch.cache.budget import AUTO, parse_budget
from goldfinch.checkpoint.model_folder import load_model, read_tokenizer, save_model_folder
from goldfinch.checkpoint.quantize import quantize, weight_kind
from goldfinch.config import ModelConfig, RopeConfig
from goldfinch.data.chat_template import ChatTemplate, Message
from goldfinch.data.tokenizers import Tokenizer, WorldTokenizer
from goldfinch.devices import dtype_name, resolve_device, resolve_dtype, warn_if_slow
from goldfinch.errors import UserError
from goldfinch.files import FileVersion, read_unchanged, resolved
from goldfinch.inference.batch import MAX_BATCH_SIZE, generate_rows
from goldfinch.inference.context import Context
from goldfinch.inference.context_file.description import read_description
from goldfinch.inference.context_file.format import open_context
from goldfinch.inference.generation import DEFAULT_MAX_TOKENS, Generation, GenerationStream
from goldfinch.inference.sampling import MAX_SEED, Sampling, as_stop, sampling_settings
from goldfinch.inference.score import Score
from goldfinch.inference.speculation import DraftPolicy
from goldfinch.inference.token_ids import is_batch, require_tokenizer, token_id_rows, token_ids
from goldfinch.layers.quantized import WeightKind
from goldfinch.model import Decoder
from goldfinch.model.initialization import initialize
from goldfinch.presets import WORLD_VOCABULARY, model_config
from goldfinch.pretrained import find_model

Prompt = str | Sequence[int] | Tensor


class LanguageModel:
    """Weights, config, tokenizer and chat template.

    It may be used from several threads at once, each with contexts of its own; a context belongs to one thread.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None,
        folder: Path | None = None,
        chat_template: ChatTemplate | None = None,
        *,
        dtype_is_auto: bool = False,
    ) -> None:
        if not isinstance(model, Decoder):
            raise UserError(f"model must be a Decoder, not {shortened(model)}; gf.load and gf.build make one")
        if not isinstance(tokenizer, Tokenizer | None):
            raise UserError(f"tokenizer must be a Tokenizer or None, not {shortened(tokenizer)}")
        self.model = model
        """The nn.Module."""
        self.tokenizer = tokenizer
        """None: the model takes and gives token ids only."""
        self.folder = folder
        """Where it was loaded from."""
        self.chat_template = chat_template or ChatTemplate()
        """How `chat` writes messages: the model folder's own template, or that of RWKV's chat models."""
        self._dtype_is_auto = dtype_is_auto  # then files of another dtype are opened in theirs
        self._in_other_dtypes: dict[str, LanguageModel] = {}

    def __repr__(self) -> str:
        config = self.config
        gold = f" ({config.num_gold_layers} GOLD)" if config.num_gold_layers else ""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        tokenizer = self.tokenizer.name if self.tokenizer is not None else "none"
        folder = f" from {self.folder}" if self.folder is not None else ""
        return (
            f"<LanguageModel{folder}: {config.num_layers} layers{gold}, width {config.width}, {parameters:,} "
            f"parameters in {dtype_name(self.model.dtype)} on {self.model.device}, tokenizer {tokenizer}>"
        )

    @property
    def config(self) -> ModelConfig:
        """Sizes and the layer plan."""
        return self.model.config

    def encode(self, text: Prompt) -> Tensor:
        """Text or ids -> checked (T,) int64 ids.

        >>> lm.encode("Call me").dtype
        torch.int64

        Raises:
            UserError: no tokens, ids outside the vocabulary, or a text where the model has no tokenizer.
        """
        return token_ids(text, self.tokenizer, self.config.vocab_size)

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Token ids -> text, the inverse of `encode`; bytes that are not UTF-8 become U+FFFD.

        >>> lm.decode(lm.encode("Call me"))
        'Call me'

        Raises:
            UserError: ids outside the vocabulary, or a model without a tokenizer.
        """
        tokenizer = require_tokenizer(self.tokenizer)
        if isinstance(ids, str) or not isinstance(ids, Sized):
            raise UserError(f"token ids are needed, not {shortened(ids)}")
        return tokenizer.decode(token_ids(ids, tokenizer, tokenizer.vocab_size).tolist()) if len(ids) else ""

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """The whole forward without a cache: (B, T) int64 -> (B, T, V) float32.

        >>> lm.logits(lm.encode("Call me")[None]).shape[0]
        1

        Raises:
            UserError: no tokens, ids outside the vocabulary, or of another shape.
        """
        logits, _ = self.model(token_id_rows(ids, self.config.vocab_size).to(self.model.device))
        return logits.float()

    def context(self, latents: str | None = None, budget: int | str = AUTO) -> Context:
        """An empty context.

        Args:
            latents: how compressed keys are stored: "bfloat16", "float32", "int8", "int4"; None for the model's own
                dtype, which rounds nothing.
            budget: maximum bytes of expanded keys and values to keep between steps, as a number or as "2GiB"; "auto"
                is half of the free memory.

        Raises:
            UserError: an unknown latent format, or an invalid size.
        """
        return Context(self.model, self.tokenizer, latents, budget, self.folder)

    def read(self, text: Prompt, latents: str | None = None, budget: int | str = AUTO) -> Context:
        """Read a text, or token ids, into a new context: linear prefill.

        >>> context = lm.read("Call me Ishmael.")
        >>> context.truncate(3)          # back to the first tokens; how many were read again
        3

        Args:
            text: what to read.
            latents: as in `context`.
            budget: as in `context`.

        Raises:
            UserError: no tokens, ids outside the vocabulary, a text where the model has no tokenizer, or as `context`.
        """
        return self.context(latents, budget).read(text)

    def open(self, path: str | Path, budget: int | str = AUTO) -> Context:
        """Open a context that `Context.save` has written, memory-mapped: at once, whatever its length.

        Header and states are checked now, and all of a file up to 64 MiB; in larger ones, the checksum of each block is
        compared when the block is first used (`goldfinch cache verify` compares all).

        A file depends on the dtype that it was written in. A model that was loaded with dtype="auto" is loaded again in
        that dtype if it has another, once for all files.

        Args:
            path: the file.
            budget: as in `context`.

        Raises:
            UserError: the file is missing, corrupt, of another version, of another model or of another tokenizer.
        """
        path = file_path("path", path)

        def read() -> Context:
            context = self._in_dtype_of(path).context(budget=budget)
            context.opened = resolved(path), FileVersion.of(path)  # before it is read
            context.documents = open_context(path, context.sequence, self.tokenizer)
            return context

        return read_unchanged(path, read)

    def _in_dtype_of(self, path: Path) -> "LanguageModel":
        """This model in the dtype of a context file, if it may be chosen."""
        if not self._dtype_is_auto or self.folder is None:
            return self
        dtype = read_description(path).dtype
        if dtype == dtype_name(self.model.dtype):
            return self
        if dtype not in self._in_other_dtypes:
            self._in_other_dtypes[dtype] = load(
                self.folder, dtype, self.model.device, self.config.rope, weight_kind(self.model)
            )
        return self._in_other_dtypes[dtype]

    @overload
    def generate(self, prompt: str | Tensor, **options: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Sequence[int], **options: Any) -> Generation: ...
    @overload
    def generate(self, prompt: Sequence[str] | Sequence[Sequence[int]], **options: Any) -> list[Generation]: ...

    def generate(self, prompt: Any, **options: Any) -> Generation | list[Generation]:
        """Generate text after a prompt, or after each of several: one pass over the weights per step for all.

        >>> lm.generate("Call me", max_tokens=5, temperature=0.8, seed=0).finish_reason
        'length'
        >>> len(lm.generate(["Call me", "The whale"], max_tokens=5, seed=0))
        2

        Args:
            prompt: a text or token ids; or a list of such, of any lengths, whose rows give the same text as one by one,
                row i with seed + i.
            **options: of `Context.stream`: max_tokens, sampling, logprobs, and fields of `Sampling`, such as
                temperature, top_p, seed, stop, grammar; for a single prompt also max_draft_tokens.

        Raises:
            UserError: as `read`, or a setting is out of range.
        """
        if not is_batch(prompt):
            return self.read(prompt).generate(**options)
        return self._generate_batch(list(prompt), **options)

    def _generate_batch(
        self,
        prompts: list[Prompt],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        sampling: Sampling | None = None,
        logprobs: int | None = None,
        **options: Any,
    ) -> list[Generation]:
        DraftPolicy(options.pop("max_draft_tokens", 0))  # checked, but together there is little to gain from drafts
        sampling = sampling_settings(sampling, options)
        ids = [self.encode(prompt) for prompt in prompts]  # all are checked before work begins
        budget = parse_budget(AUTO, self.model.device) // max(min(len(ids), MAX_BATCH_SIZE), 1)
        contexts = (self.read(row, budget=budget) for row in ids)
        return generate_rows(contexts, sampling, max_tokens, logprobs)

    def stream(self, prompt: Prompt, **options: Any) -> GenerationStream:
        """Generate text after a prompt, piece by piece; arguments as in `Context.stream`.

        >>> stream = lm.stream("Call me", max_tokens=5, seed=0)
        >>> "".join(stream) == stream.generation.text
        True

        Raises:
            UserError: as `read`, or a setting is out of range.
        """
        return self.read(prompt).stream(**options)

    @overload
    def score(self, text: Prompt) -> Score: ...
    @overload
    def score(self, *, prefix: Prompt, continuations: Sequence[Prompt]) -> list[Score]: ...

    def score(
        self,
        text: Prompt | None = None,
        *,
        prefix: Prompt | None = None,
        continuations: Sequence[Prompt] | None = None,
    ) -> Score | list[Score]:
        """Log-probabilities of a text, or of several continuations of one prefix, which is read once.

        A text is scored after an end of text, as documents are in training, so that its first token counts too. Token
        ids of a model without a tokenizer are scored from the second on.

        >>> lm.score("Call me Ishmael.").bits_per_byte > 0
        True
        >>> [paris, rome] = lm.score(prefix="The capital of France is", continuations=[" Paris", " Rome"])
        >>> paris.total < 0
        True

        Raises:
            UserError: as `read`; `text` together with a prefix, or a prefix without continuations; a single token id.
        """
        if text is not None:
            if prefix is not None or continuations is not None:
                raise UserError("score takes a text, or a prefix with continuations, not both")
            return self._score_text(text)
        if prefix is None or isinstance(continuations, str) or not isinstance(continuations, Sequence):
            raise UserError("score takes a text, or prefix= with continuations=[...], a list of texts")
        context = self.read(prefix)
        return [context.score(continuation) for continuation in continuations]

    def _score_text(self, text: Prompt) -> Score:
        if self.tokenizer is not None:
            return self.read([self.tokenizer.end_of_text]).score(text)
        ids = self.encode(text)
        if len(ids) < 2:
            raise UserError("a single token id has nothing before it to be scored after: give at least two")
        return self.read(ids[:1]).score(ids[1:])

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """Answer a conversation, written as `chat_template` says.

        >>> lm.chat([{"role": "user", "content": "Who is Ahab?"}], max_tokens=5, seed=0).finish_reason
        'length'

        Args:
            messages: such as {"role": "user", "content": "..."}; roles are "system", "user", "assistant".
            **options: of `Context.stream`.

        Raises:
            UserError: as `stream`, or the template refuses the conversation.
        """
        context = self.context()
        context.read(self.chat_template.render(messages), special_tokens=True)
        stop = (*self.chat_template.stop(self.tokenizer), *as_stop(options.pop("stop", ())))
        generation = context.generate(stop=stop, **options)
        # The space after a name belongs to the template.
        text = generation.text if self.chat_template.is_plain else generation.text.removeprefix(" ")
        return dataclasses.replace(generation, text=text)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write the model folder that `gf.load` and every command take, atomically, in the dtype that the model has.

        Args:
            folder: config.json, model.safetensors, the tokenizer and the chat template.
            overwrite: replace it if it is such a folder.

        Raises:
            UserError: it exists, holds other files, or cannot be written.
        """
        weights = cast(dict[str, Tensor], self.model.state_dict())
        folder = file_path("folder", folder)
        boolean("overwrite", overwrite)
        save_model_folder(folder, self.config, weights, self.tokenizer, self.chat_template, overwrite=overwrite)


def load(
    path: str | Path,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    rope: RopeConfig | None = None,
    weights: WeightKind | None = None,
) -> LanguageModel:
    """Load a model folder, such as `goldfinch train`, `goldfinch convert` and `LanguageModel.save` write.

    >>> lm = gf.load("runs/quickstart")
    >>> lm.config.num_gold_layers
    1

    Args:
        path: the folder; or "hf:OWNER/NAME", with "@REVISION" if need be, for a model on the Hugging Face Hub.
        dtype: of the weights, whatever they are stored in: "float32", "bfloat16", ...; "auto" for bfloat16 where the
            processor or GPU multiplies it natively, else float32.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU if there is one.
        rope: rotary positions in place of the model's own, such as RopeConfig(rescale=4) for texts four times as long
            as it was trained on; None for its own. Saved contexts stay valid: GOLD rotates keys when it expands them.
        weights: "int8" rounds the matrices to integers of 8 bits; None leaves them as they are stored.

    Raises:
        UserError: the folder or a file in it is missing or corrupt, the Hub has no such model, the dtype, device or
            weights are unknown, or `rope` is given for a model without positions.
    """
    folder, where = find_model(file_path("path", path)), resolve_device(device)
    resolved_dtype = resolve_dtype(dtype, where)
    model = load_model(folder, resolved_dtype, where, rope).eval()
    if weights is not None and weight_kind(model) != weights:
        quantize(model, weights)
    warn_if_slow(resolved_dtype, where)
    tokenizer, chat_template = read_tokenizer(folder, model.config), ChatTemplate.load(folder)
    return LanguageModel(model, tokenizer, folder, chat_template, dtype_is_auto=dtype == "auto")


def build(
    preset: str,
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    device: str | torch.device = "cpu",
    vocab_size: int = WORLD_VOCABULARY,
) -> LanguageModel:
    """Build a preset with random weights.

    >>> gf.build("goldfinch-L3-D128", vocab_size=257).config.num_layers
    3

    Args:
        preset: KIND-SIZE, such as "goldfinch-L12-D768" (`goldfinch info` lists them).
        dtype: of the weights; "auto" as in `load`.
        seed: of the initialisation.
        device: where the weights go.
        vocab_size: V; with the World tokenizer's 65536 the model gets that tokenizer.

    Raises:
        UserError: an unknown preset, dtype or device.
    """
    config = model_config(string("preset", preset), integer("vocab_size", vocab_size, minimum=1))
    seed = integer("seed", seed, maximum=MAX_SEED)
    where = resolve_device(device)
    resolved_dtype = resolve_dtype(dtype, where)
    model = Decoder.on_meta(config).to(resolved_dtype).to_empty(device=where).eval()
    initialize(model, seed)
    warn_if_slow(resolved_dtype, where)
    return LanguageModel(model, WorldTokenizer() if vocab_size == WORLD_VOCABULARY else None)
