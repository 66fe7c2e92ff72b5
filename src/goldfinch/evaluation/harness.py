"""lm-evaluation-harness on GoldFinch's own engine: `--model goldfinch`, or an object for `lm_eval.simple_evaluate`."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from goldfinch.data.chat_template import Message
from goldfinch.devices import dtype_name
from goldfinch.errors import UserError
from goldfinch.evaluation.scheduler import Request, Scheduler, TokenCounts
from goldfinch.inference.batch import MAX_BATCH_SIZE, generate_together
from goldfinch.inference.generation import GenerationState
from goldfinch.inference.language_model import LanguageModel, load
from goldfinch.inference.sampling import Sampling
from goldfinch.inference.token_ids import require_tokenizer
from goldfinch.training.parallel.processes import SINGLE_PROCESS, Processes

DEFAULT_MAX_TOKENS = 256
"""To generate, where a task does not say."""


@register_model("goldfinch")
class GoldFinchLM(TemplateLM):
    """A GoldFinch model as lm-eval sees it.

    Requests are sorted by what they have in common; shared prefixes, such as few-shot examples, and contexts with
    several continuations are read once (`goldfinch.evaluation.scheduler`). The context has no maximum length.

    Args:
        pretrained: the model, or its folder.
        dtype, device: of a model that is loaded from a folder, as in `goldfinch.load`.
        batch_size: maximum number of texts in a batch; "auto" for as many as is fast. Results do not depend on it.
        max_length: cut contexts to this many tokens, and texts for rolling likelihoods into windows, as for models of
            limited context; None reads everything.
        latents: how compressed keys are stored, as in `LanguageModel.context`: "int8" shows what rounding costs.
        processes: this process among those that share the requests.

    Raises:
        UserError: as `goldfinch.load`, a number is out of range, or the model has no tokenizer.
    """

    def __init__(
        self,
        pretrained: LanguageModel | str,
        dtype: str = "auto",
        device: str | None = None,
        batch_size: int | str | None = "auto",
        max_batch_size: int | None = None,
        max_length: int | None = None,
        latents: str | None = None,
        processes: Processes = SINGLE_PROCESS,
    ) -> None:
        super().__init__()
        self.language_model = load(pretrained, dtype, device or "auto") if isinstance(pretrained, str) else pretrained
        self._tokenizer = require_tokenizer(self.language_model.tokenizer)
        self.max_length = None if max_length is None else int(max_length)
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"max_length must be at least 1, not {max_length}")
        rows = max_batch_size if batch_size in ("auto", None) else int(batch_size)
        if rows is not None and rows < 1:
            raise UserError(f"batch_size must be at least 1, not {batch_size}")
        self._max_rows = rows
        self._scheduler = Scheduler(self.language_model, latents=latents, batch_size=rows)
        self._processes = processes
        self._rank, self._world_size = processes.rank, processes.world_size
        self._device = self.language_model.model.device
        self._special_tokens = False  # until requests come from a chat template
        self._encode = functools.lru_cache(maxsize=64)(self._encode_text)  # choices of one question share its context

    @property
    def counts(self) -> TokenCounts:
        """Tokens asked and computed so far, in this process."""
        return self._scheduler.counts

    @property
    def eot_token_id(self) -> int:
        """What separates documents."""
        return self._tokenizer.end_of_text

    @property
    def tokenizer_name(self) -> str:
        """Tells vocabularies apart in lm-eval's cache of requests."""
        return f"{self._tokenizer.name}-{self._tokenizer.hash[:16]}"

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results."""
        lm = self.language_model
        return {
            "model_num_parameters": sum(parameter.numel() for parameter in lm.model.parameters()),
            "model_dtype": dtype_name(lm.model.dtype),
            "model_folder": None if lm.folder is None else str(lm.folder),
            "max_length": self.max_length,
        }

    def _encode_text(self, text: str, special_tokens: bool) -> list[int]:
        return self._tokenizer.encode(text, special_tokens=special_tokens)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Text -> ids; the names of special tokens stand for these tokens in what a chat template has written."""
        return self._encode(string, self._special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The Jinja source that lm-eval writes into its results; None if no template is asked for."""
        return self.language_model.chat_template.source if chat_template else None

    def apply_chat_template(self, chat_history: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """Write a conversation as the model's template does.

        Args:
            chat_history: messages.
            add_generation_prompt: False if the last message is the beginning of the answer.
        """
        self._special_tokens = True
        template = self.language_model.chat_template
        text = template.render(chat_history, add_generation_prompt)
        return text if add_generation_prompt else text.removesuffix(template.turn_end())

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, in nats, and whether greedy decoding gives it."""
        prepared = [self._request(texts, context, continuation) for texts, context, continuation in requests]
        with self._progress("loglikelihood", len(prepared), disable_tqdm) as bar:

            def answered(number: int, logprob: float, is_greedy: bool) -> None:
                texts = requests[number][0]
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, (logprob, is_greedy))
                bar.update()

            return self._scheduler.score(prepared, answered)

    def _request(self, texts: tuple[str, str] | None, context: list[int], continuation: list[int]) -> Request:
        if not continuation:
            raise UserError(
                f"the tokenizer leaves no token for {texts[1]!r} after this context: it joins the two" if texts
                else "a continuation has no tokens"
            )  # fmt: skip
        if self.max_length is not None:
            if len(continuation) > self.max_length:
                raise UserError(f"a continuation has {len(continuation)} tokens, more than max_length")
            context = context[-(self.max_length + 1 - len(continuation)) :]
        return Request(tuple(context), tuple(continuation))

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in nats, all of it in one context, or in windows of `max_length`."""
        texts = [instance.args[0] for instance in requests]
        windows = [(number, window) for number, text in enumerate(texts) for window in self._windows(text)]
        requests_ = [(None, context, predicted) for _, (context, predicted) in windows]
        totals = [0.0] * len(texts)
        for (number, _), (logprob, _) in zip(windows, self._loglikelihood_tokens(requests_, disable_tqdm), strict=True):
            totals[number] += logprob
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """(context, tokens to be predicted) for each window of a text."""
        ids = self.tok_encode(text)
        length = self.max_length or len(ids)
        if not ids:
            return []
        return list(map(make_disjoint_window, get_rolling_token_windows(ids, self.prefix_token_id, length, 1)))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate after each context, up to one of its stop strings."""
        options = [self._generation_options(instance.args[1]) for instance in requests]
        contexts = [self._generation_context(instance.args[0], options[n][1]) for n, instance in enumerate(requests)]
        numbers = dict[GenerationState, int]()
        texts = [""] * len(requests)

        def generations() -> Iterator[GenerationState]:
            for number, context in self._scheduler.read(contexts):
                sampling, max_tokens = options[number]
                state = context.generation_state(sampling.with_row_seed(number), max_tokens)
                numbers[state] = number
                yield state

        with self._progress("generate_until", len(requests), disable_tqdm) as bar:
            for state in generate_together(generations(), self._max_rows or MAX_BATCH_SIZE):
                number = numbers.pop(state)
                texts[number] = state.result().text
                self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                bar.update()
        return texts

    def _generation_options(self, given: dict[str, Any]) -> tuple[Sampling, int]:
        """lm-eval's settings as ours, and the maximum number of tokens."""
        settings = normalize_gen_kwargs(given, DEFAULT_MAX_TOKENS)
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        sampling = {name: value for name, value in settings.items() if name in names and value is not None}
        if not settings["do_sample"]:
            sampling["temperature"] = 0.0
        stop = tuple(text for text in settings["until"] if text)
        return Sampling(**sampling, stop=stop, seed=0), settings["max_gen_toks"]

    def _generation_context(self, text: str, max_tokens: int) -> list[int]:
        ids = self.tok_encode(text) or [self.prefix_token_id]
        return ids if self.max_length is None else ids[-max(self.max_length - max_tokens, 1) :]

    def _progress(self, name: str, total: int, disabled: bool) -> "tqdm[Any]":
        return tqdm(total=total, desc=f"Running {name} requests", disable=disabled or self.rank != 0)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Tensors of all processes, one after the other, in each of them."""
        if self.world_size == 1:
            return tensor
        flat = tensor.reshape(-1) if tensor.ndim == 0 else tensor
        parts = [torch.empty_like(flat) for _ in range(self.world_size)]
        dist.all_gather(parts, flat)
        return torch.cat(parts)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Objects of all processes, in process `dst`; None in the others."""
        if self.world_size == 1:
            return [obj]
        gathered = [None] * self.world_size if self.rank == dst else None
        dist.gather_object(obj, gathered, dst)
        return gathered

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()
