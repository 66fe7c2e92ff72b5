"""Tiny runs, and data of other kinds than `data`."""

import json

import pytest

from goldfinch.config import ModelConfig
from goldfinch.data.prepare import prepare, prepare_stream
from goldfinch.data.stream import Stream
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.training.config import OptimizerConfig, TrainConfig


@pytest.fixture(scope="session")
def many_documents(tmp_path_factory):
    """A prepared folder of documents of 1 to 60 bytes."""
    folder = tmp_path_factory.mktemp("documents")
    texts = [("the whale swims " * 5)[i % 16 :][: 1 + (7 * i) ** 2 % 60] for i in range(80)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    prepare([folder / "text.jsonl"], folder / "data", ByteTokenizer(), validation_fraction=0.2)
    return folder / "data"


@pytest.fixture(scope="session")
def stream(tmp_path_factory):
    """A data folder that streams forty short documents, saved on disk by `datasets`, all but three of them."""
    datasets = pytest.importorskip("datasets", reason="needs the extra: pip install 'goldfinch[datasets]'")
    folder = tmp_path_factory.mktemp("stream")
    texts = [f"the whale {'swims ' * (i % 7)}and sinks, {i} times" for i in range(40)]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(folder / "rows")
    described = Stream(dataset=str(folder / "rows"), shuffle_windows=5)
    prepare_stream(described, folder / "data", ByteTokenizer(), validation_documents=3)
    return str(folder / "data")


@pytest.fixture(scope="session")
def run_settings(data):
    """run_settings(output, **fields) -> TrainConfig of a run of six steps."""

    def make(output, **fields) -> TrainConfig:
        plan = ("finch_c2", "gold")
        model = ModelConfig(vocab_size=257, width=32, head_size=16, time_mixes=plan, latent_ratio=4)
        defaults = {
            "model": model,
            "data": (str(data),),
            "output": output,
            "steps": 6,
            "sequence_length": 16,
            "batch_size": 4,
            "dtype": "float32",
            "device": "cpu",
            "optimizer": OptimizerConfig(learning_rate=1e-2, final_learning_rate=1e-3, warmup_steps=2),
            "validate_every": 4,
            "max_validation_tokens": 64,
            "save_every": 2,
            "sample_every": 3,
            "sample_max_tokens": 5,
        }
        return TrainConfig(**defaults | fields)

    return make


@pytest.fixture
def settings(run_settings, tmp_path):
    """settings(**fields) -> TrainConfig of a run of six steps in tmp_path/run."""
    return lambda **fields: run_settings(**{"output": tmp_path / "run"} | fields)


class Silent:
    """A reporter that remembers."""

    def __init__(self):
        self.losses, self.samples, self.validations, self.notices = [], [], [], []

    def start(self, config, step, steps):
        self.started = (step, steps)

    def notice(self, text):
        self.notices.append(text)

    def compiled(self, seconds):
        self.compile_seconds = seconds

    def step(self, record, done):
        self.losses.append(record.get("loss"))

    def validation(self, step, result):
        self.validations.append((step, result))

    def sample(self, step, text):
        self.samples.append((step, text))


@pytest.fixture
def silent():
    """The class of a reporter that prints nothing and remembers everything."""
    return Silent
