"""Requests in the forms of benchmarks: the scheduler's against each read whole, and lm-eval's `--model hf`.

`python benchmarks/evaluate.py`; `--hf 16` measures lm-eval's own model too, on the classes of `goldfinch.huggingface`
with the same weights, in batches of 16.

Tokens are random, lengths are those of the benchmarks: MMLU with five examples, four one-token answers; HellaSwag, four
endings; LAMBADA, a passage and its last word. Seconds are those of the processor, so that other load hardly matters.
Nothing is printed unless both give the same log-probabilities.
"""

import importlib
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from common import arguments, report

import goldfinch as gf
from goldfinch.benchmark.speed import fill_zero_weights
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.evaluation.scheduler import Request, Scheduler, TokenCounts
from goldfinch.inference.language_model import LanguageModel

T = TypeVar("T")

TOLERANCE = 1e-4  # nats a token


def forms(count: int, examples: int, vocab_size: int) -> dict[str, list[Request]]:
    """Requests for `count` questions in each form, with `examples` tokens of examples in MMLU's."""
    draw = random.Random(0)

    def tokens(shortest: int, longest: int) -> tuple[int, ...]:
        return tuple(draw.choices(range(vocab_size), k=draw.randint(shortest, longest)))

    shots = tokens(examples, examples)
    questions = [shots + tokens(40, 120) for _ in range(count)]
    begun = [tokens(30, 110) for _ in range(count)]
    return {
        "MMLU, five examples": [Request(question, (letter,)) for question in questions for letter in range(4)],
        "HellaSwag": [Request(context, tokens(15, 45)) for context in begun for _ in range(4)],
        "LAMBADA": [Request(tokens(50, 110), tokens(1, 3)) for _ in range(count)],
    }


def whole(lm: LanguageModel, requests: list[Request]) -> list[float]:
    """The log-probability of each continuation, each request read whole."""
    result = []
    for request in requests:
        ids = torch.tensor([*request.context, *request.continuation])
        rows = lm.logits(ids[None, :-1])[0, len(request.context) - 1 :].log_softmax(-1)
        result.append(rows.gather(1, ids[len(request.context) :, None]).sum().item())
    return result


def lm_eval_hf(lm: LanguageModel, batch_size: int) -> Any:
    """lm-eval's model for transformers, with the weights of `lm`."""
    huggingface = importlib.import_module("goldfinch.huggingface")
    tokenization = importlib.import_module("goldfinch.huggingface.tokenization")
    model = huggingface.GoldFinchForCausalLM(huggingface.GoldFinchConfig.from_model_config(lm.model.config)).eval()
    model.model.decoder(model.lm_head).load_state_dict(lm.model.state_dict())
    hflm = importlib.import_module("lm_eval.models.huggingface").HFLM
    tokenizer = tokenization.to_huggingface(ByteTokenizer())
    return hflm(pretrained=model.to(lm.model.dtype), tokenizer=tokenizer, batch_size=batch_size, max_length=1 << 20)


def by_lm_eval(model: Any, requests: list[Request]) -> list[float]:
    """The log-probability of each continuation, by lm-eval's `--model hf`."""
    tokens = [(("", ""), list(request.context), list(request.continuation)) for request in requests]
    return [total for total, _ in model._loglikelihood_tokens(tokens, disable_tqdm=True)]


def timed(work: Callable[[], T], repeats: int) -> tuple[float, T]:
    """Seconds of the processor, of the fastest repeat, and the result."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def measure(lm: LanguageModel, hf: Any, name: str, requests: list[Request], repeats: int) -> list[object]:
    """A row of the table; `hf` is lm-eval's model, or None."""
    Scheduler(lm).score(requests[:2])  # kernels are built

    def scheduled() -> tuple[list[float], TokenCounts]:
        engine = Scheduler(lm)
        return [total for total, _ in engine.score(requests)], engine.counts

    ours, (scores, counts) = timed(scheduled, repeats)
    row: list[object] = [name, len(requests), counts.asked, counts.computed, counts.asked / counts.computed, ours]
    for others in (partial(whole, lm), *([partial(by_lm_eval, hf)] if hf else [])):
        theirs, expected = timed(partial(others, requests), repeats)
        for request, one, other in zip(requests, scores, expected, strict=True):
            if abs(one - other) > TOLERANCE * len(request.continuation):
                raise SystemExit(f"{name}: log-probabilities differ, {one} and {other}")
        row += [theirs, theirs / ours]
    return row


def main() -> None:
    """Parse, measure, print."""
    parser = arguments(__doc__, repeats=1)
    parser.add_argument("preset", nargs="?", default="goldfinch-L6-D256")
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--examples", type=int, default=600, help="tokens of the five examples")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--hf", type=int, default=0, metavar="BATCH_SIZE", help="measure lm-eval's --model hf as well")
    options = parser.parse_args()
    torch.set_num_threads(1)  # processor seconds of several threads count their waiting
    lm = gf.build(options.preset, options.dtype, vocab_size=options.vocab_size)
    fill_zero_weights(lm.model)
    cases = forms(options.questions, options.examples, options.vocab_size)
    hf = lm_eval_hf(lm, options.hf) if options.hf else None
    rows = [measure(lm, hf, name, requests, options.repeats) for name, requests in cases.items()]
    columns = [
        "form",
        "requests",
        "tokens asked",
        "computed",
        "times fewer",
        "scheduled, s",
        "whole, s",
        "times faster",
        *(["--model hf, s", "times faster"] if hf else []),
    ]
    report(f"{options.preset}, {options.dtype}, vocabulary {options.vocab_size:,}", columns, rows, options.json)


if __name__ == "__main__":
    main()
