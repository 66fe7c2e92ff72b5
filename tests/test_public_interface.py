"""`import goldfinch as gf`: what it offers, its examples, and its use from threads."""

import doctest
import inspect
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import goldfinch as gf
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.language_model import LanguageModel

PROMISED = {
    *(
        "load",
        "build",
        "LanguageModel",
        "Context",
        "Sampling",
        "Grammar",
        "Generation",
        "Score",
        "ChatTemplate",
        "CacheLevel",
    ),
    *(
        "QuantizationReport",
        "ModelConfig",
        "RopeConfig",
        "Trainer",
        "TrainConfig",
        "OptimizerConfig",
        "UserError",
        "__version__",
    ),
}


@pytest.fixture(scope="module")
def lm(small_config, small_model):
    config = small_config("finch_c2", "finch_c2", "gold", vocab_size=257)
    return LanguageModel(small_model(config, torch.float32), ByteTokenizer())


def test_it_offers_what_was_promised_and_lists_nothing_else():
    assert set(gf.__all__) == PROMISED
    assert set(dir(gf)) == set(gf.__all__)
    for name in PROMISED:
        assert getattr(gf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = gf.lode


def test_importing_it_loads_no_torch():
    code = "import sys, goldfinch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def public_objects():
    """Each public class and function, and the methods of the classes."""
    for name in gf.__all__:
        value = getattr(gf, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            yield name, value


def test_every_public_thing_has_a_docstring():
    for name, value in public_objects():
        assert (value.__doc__ or "").strip(), name
        if inspect.isclass(value):
            for method, function in vars(value).items():
                if not method.startswith("_") and inspect.isfunction(function):
                    assert (function.__doc__ or "").strip(), f"{name}.{method}"


@pytest.mark.parametrize(
    "name",
    [
        "load",
        "build",
        "LanguageModel",
        "Context",
        "Sampling",
        "Grammar",
        "Generation",
        "Score",
        "ChatTemplate",
        "Trainer",
    ],
)
def test_its_examples_run(name, lm, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm.save("runs/quickstart")
    shutil.copytree(data, "data/books")
    value = getattr(gf, name)
    examples = doctest.DocTestFinder(recurse=True).find(value, name, globs={"gf": gf, "lm": lm} | vars(gf))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    count = 0
    for example in examples:
        example.globs |= {part: getattr(gf, part) for part in gf.__all__}
        count += len(example.examples)
        runner.run(example)
    assert count > 0
    assert runner.failures == 0


def test_reprs_say_what_one_wants_to_know(lm):
    assert "3 layers (1 GOLD), width 64" in repr(lm)
    assert "tokenizer bytes" in repr(lm)
    context = lm.read("Call me Ishmael.")
    assert "16 tokens" in repr(context)
    assert "keys_values" in repr(context)


def test_a_model_may_be_used_from_several_threads_on_contexts_of_their_own(lm):
    prompts = [f"Chapter {number}. The whale" for number in range(12)]
    expected = [lm.generate(prompt, max_tokens=16, seed=7).token_ids for prompt in prompts]

    def generate(prompt):
        return lm.read(prompt).generate(max_tokens=16, seed=7).token_ids

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(generate, prompts)) == expected


def test_memory_usage_is_a_breakdown_of_nbytes_and_runs_no_layer(lm, monkeypatch):
    context = lm.read("Call me Ishmael.")

    def forbidden(*_):
        raise AssertionError("a layer ran")

    monkeypatch.setattr("goldfinch.inference.sequence.read_lower", forbidden)
    monkeypatch.setattr("goldfinch.inference.sequence.read_upper", forbidden)
    usage = context.memory_usage()
    assert isinstance(context.nbytes, int)
    assert context.nbytes == usage.total == sum(vars(usage).values())
    assert usage.key_cache > 0
