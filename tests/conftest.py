"""Small models whose every part works, and a tiny corpus: the shared ground of the tests."""

import dataclasses
import math
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from plans import PLANS
from torch import Tensor, nn

from goldfinch import devices
from goldfinch.config import ModelConfig
from goldfinch.cpu import autotune, build
from goldfinch.data.prepare import prepare
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.inference.cpu_decode import decoder
from goldfinch.mixers import gold_cpu
from goldfinch.mixers.finch import Decay
from goldfinch.model import Decoder
from goldfinch.ops import attention
from goldfinch.ops.wkv6 import cpu

# Examples are the same in every run, so that a failure can be repeated; no time limit per example on shared cores.
settings.register_profile("goldfinch", deadline=None, derandomize=True, database=None, max_examples=3)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "goldfinch"))
# Tests run side by side; threads that share the cores with them only wait for each other.
torch.set_num_threads(1)
# Built before tests look at what is printed.
cpu.library()
build.compiled(attention.SOURCE, "attention")
build.compiled(gold_cpu.SOURCE, "GOLD")
build.compiled(decoder.SOURCE, decoder.NAME)


# Numbers and messages are those of a processor without bfloat16 instructions, whatever the tests run on.
NOT_NATIVE = ("avx2",)


def pytest_collection_modifyitems(items):
    """Slow tests first: at the end, all other workers would wait for the last of them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


class AlwaysFaster(dict):
    """A record of measurements by which every kernel is faster than PyTorch."""

    def get(self, name, default=None):
        return {str(threads): [0.0, 1.0] for threads in range(1, 1 + max(64, torch.get_num_threads()))}


@pytest.fixture(scope="session", autouse=True)
def _same_on_every_processor():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "instruction_sets", lambda: list(NOT_NATIVE))
        patch.setattr(devices, "_reported_slow", {"bfloat16", "float16"})
        # Kernels are used wherever they are compiled, and measured only where a test is about that.
        patch.setattr(autotune, "_read", lambda record: AlwaysFaster())
        yield


@pytest.fixture
def instructions(monkeypatch):
    """instructions(*names): this is the whole instruction set of the processor, as far as dtypes depend on it."""

    def have(*names: str) -> None:
        monkeypatch.setattr(devices, "instruction_sets", lambda: list(names))
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)

    return have


def pytest_addoption(parser):
    parser.addoption("--fuzz", type=int, default=200, help="damaged files per format in tests/fuzz")


@pytest.fixture(scope="session")
def small_config():
    """small_config(*plan, **fields) -> ModelConfig with 4 heads of 16 and 41 token ids."""

    def make(*plan: str, **fields) -> ModelConfig:
        channel_mix = "swiglu" if plan[0] == "llama" else "rwkv"
        defaults = {"vocab_size": 41, "width": 64, "head_size": 16, "channel_mix": channel_mix}
        return ModelConfig(time_mixes=plan, **defaults | fields)

    return make


@pytest.fixture(scope="session")
def randomized():
    """randomized(module) fills every parameter, those that start at zero too, and returns the module, without grads.

    Nothing stays neutral: mixing vectors are about a half, norms about 1, decays reach from slow to fast. Matrices are
    of PyTorch's default size: with larger ones six layers make more of a rounding error than fp32 tests allow.
    """

    @torch.no_grad()
    def fill(module: nn.Module, dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Module:
        module.to(dtype)
        generator = torch.Generator().manual_seed(seed)

        def noise(like: Tensor) -> Tensor:
            return torch.rand(like.shape, generator=generator, dtype=torch.float64) * 2 - 1

        for name, parameter in module.named_parameters():
            last = name.rpartition(".")[2]
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * noise(parameter))
            elif last in ("bias", "bonus"):
                parameter.copy_(0.3 * noise(parameter))
            elif parameter.ndim == 1 or last == "mu":
                parameter.copy_(0.5 + 0.5 * noise(parameter))
            elif last in ("a", "b"):  # (in, out), (outputs, in, out)
                parameter.copy_(math.sqrt(1 / parameter.shape[-2]) * noise(parameter))
            else:  # a Linear's (out, in), or the embedding
                parameter.copy_(math.sqrt(1 / parameter.shape[-1]) * noise(parameter))
        for part in module.modules():
            if isinstance(part, Decay):
                part.base.copy_(torch.linspace(-6, 1, part.base.numel()))
        return module.requires_grad_(False)

    return fill


@pytest.fixture(scope="session")
def small_model(randomized):
    """small_model(config, dtype=float64) -> a Decoder, randomized."""

    def make(config: ModelConfig, dtype: torch.dtype = torch.float64, seed: int = 0) -> Decoder:
        return randomized(Decoder(config), dtype, seed)

    return make


@pytest.fixture(scope="session")
def tensors_of():
    """tensors_of(state) -> {path: tensor} of every tensor in nested dataclasses, lists and tuples."""

    def collect(value, path="state") -> dict[str, Tensor]:
        if isinstance(value, Tensor):
            return {path: value}
        if isinstance(value, (list, tuple)):
            parts = {f"{path}[{index}]": part for index, part in enumerate(value)}
        elif dataclasses.is_dataclass(value):
            parts = {f"{path}.{field.name}": getattr(value, field.name) for field in dataclasses.fields(value)}
        else:
            assert value is None, f"{path} is a {type(value).__name__}: states hold tensors only"
            parts = {}
        return {name: tensor for part, inner in parts.items() for name, tensor in collect(inner, part).items()}

    return collect


@pytest.fixture(scope="session")
def assert_same(tensors_of):
    """assert_same(actual, expected, tolerance): the same tensors in the same places, to an absolute tolerance."""

    def check(actual, expected, tolerance: float) -> None:
        actual, expected = tensors_of(actual), tensors_of(expected)
        assert actual.keys() == expected.keys()
        for path, tensor in expected.items():
            torch.testing.assert_close(
                actual[path], tensor, rtol=0, atol=tolerance, msg=lambda text, path=path: f"{path}: {text}"
            )

    return check


@pytest.fixture
def model_of(small_config, small_model):
    """model_of(plan name, dtype) -> a small model."""

    def make(name, dtype=torch.float64):
        plan, fields = PLANS[name]
        return small_model(small_config(*plan, **fields), dtype)

    return make


@pytest.fixture(scope="session")
def text():
    """text(length) -> ids of 41, with bigrams that come again."""

    def make(length, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(3, (length,), generator=generator) * torch.randint(20, (length,), generator=generator)

    return make


@pytest.fixture
def run_with_sanitizers(tmp_path):
    """run_with_sanitizers(source, program): compile both as one, `source` first, and run it."""

    def run(source: Path, program: Path) -> None:
        compiler = next(filter(shutil.which, build.COMPILERS), None)
        if compiler is None:
            pytest.skip("no C++ compiler")
        flags = [
            "-std=c++17",
            "-O1",
            "-g",
            "-w",
            "-pthread",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ]
        built = tmp_path / "program"
        command = [compiler, *flags, "-iquote", build.HEADERS, "-include", source, program, "-o", built]
        result = subprocess.run(command, capture_output=True, check=False, text=True)
        if "asan" in result.stderr:
            pytest.skip("this compiler has no sanitizers")
        assert result.returncode == 0, result.stderr
        subprocess.run([built], check=True, timeout=300)

    return run


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A prepared folder of sentences that can be learned in a few steps."""
    folder = tmp_path_factory.mktemp("corpus")
    words = random.Random(0)
    text = "\n\n".join(
        " ".join(words.choice(["the whale", "the ship", "swims", "sinks", "and"]) for _ in range(40)) for _ in range(60)
    )
    (folder / "text.txt").write_text(text)
    prepare([folder / "text.txt"], folder / "data", ByteTokenizer(), validation_fraction=0.1)
    return folder / "data"


@pytest.fixture
def same_bits():
    """Whether two dicts hold the same tensors: names, dtypes, shapes, and every bit, NaN or not."""

    def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
        return left.keys() == right.keys() and all(
            left[name].dtype == right[name].dtype
            and left[name].shape == right[name].shape
            and torch.equal(
                left[name].contiguous().flatten().view(torch.uint8),
                right[name].contiguous().flatten().view(torch.uint8),
            )
            for name in left
        )

    return same
