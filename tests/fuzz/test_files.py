"""Damaged files of every format: the same result as from the whole file, or one line of what is wrong.

Formats of others carry no checksums (.pth, config.json, a BPE tokenizer.json, a chat template, YAML): what is damaged
there may be another valid file. For these only other exceptions and the use of memory are looked at.
"""

import json
import random
import resource
import shutil
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from fuzz.mutations import BYTES, JSON

import goldfinch as gf
from goldfinch.checkpoint.convert import import_reference, read_tensors
from goldfinch.checkpoint.model_folder import save_description, save_weights
from goldfinch.checkpoint.reference import tensor_names
from goldfinch.checkpoint.reference_config import (
    model_config_from_reference,
    model_config_to_reference,
    read_reference_config,
)
from goldfinch.cli.train import _read_file
from goldfinch.config import ModelConfig
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.shard_writer import write_dataset
from goldfinch.data.shards import Index, TokenDataset, load_data_tokenizer, verify
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer, load_tokenizer
from goldfinch.errors import UserError
from goldfinch.json_yaml import read_json, read_yaml
from goldfinch.training.run.checkpoint import newest_checkpoint
from goldfinch.training.run.checkpoint_storage import CheckpointReader, CheckpointWriter, read_index

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
PROBE = "The whale swims, 3 times."
MODEL = ModelConfig(vocab_size=257, width=32, head_size=16, time_mixes=("finch_c2", "gold"))
FINCH = ModelConfig(vocab_size=257, width=64, time_mixes=("finch",), channel_width=96, shift_rank=8)
DESCRIBABLE = ModelConfig(vocab_size=257, width=64, time_mixes=("finch_c2", "gold"))


@pytest.fixture(scope="module", autouse=True)
def memory():
    """At most 1 GiB more than before, whatever a file says."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


@pytest.fixture
def fuzz(request, tmp_path):
    """fuzz(folder, file, mutations, read, own=True): damage a file in copies of a folder and `read(copy)` each.

    What `read` returns is bytes, text, numbers and tensors in lists and dictionaries. With `own`, it must be the same
    as for the whole folder; else it may be another.
    """
    times = request.config.getoption("--fuzz")

    def run(folder, file, mutations, read, own=True):
        whole = plain(read(folder))
        assert plain(read(folder)) == whole
        content = (folder / file).read_bytes()
        for seed in range(times):
            choose = random.Random(f"{file} {seed}")
            mutate = choose.choice(mutations)
            damaged = mutate(content, choose)
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            (copy / file).unlink()
            (copy / file).write_bytes(damaged)
            what = f"{file}, seed {seed}, {mutate.__name__}"
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = plain(read(copy))
                assert not own or result == whole, f"{what}: another result"
            except UserError as error:
                # Paths of temporary folders may be long.
                message = str(error).replace(str(copy), "copy")
                assert "\n" not in message, f"{what}: {message!r}"
                assert 0 < len(message) < 500, f"{what}: {message!r}"
            except AssertionError:
                raise
            except BaseException as error:
                raise AssertionError(f"{what}: {type(error).__name__}") from error
            shutil.rmtree(copy)

    return run


def plain(value):
    """With the bytes of tensors in their place, so that == compares bits."""
    if isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return str(value.dtype), tuple(value.shape), bits.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


@pytest.fixture(scope="module")
def model(small_model):
    return small_model(MODEL, torch.float32)


@pytest.fixture(scope="module")
def model_folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_description(folder, MODEL, ByteTokenizer(), ChatTemplate.plain())
    save_weights(folder, model.state_dict())
    return folder


def read_model(folder):
    lm = gf.load(folder)
    return (
        lm.config.to_dict(),
        lm.model.state_dict(),
        lm.tokenizer.encode(PROBE),
        lm.chat_template.render([{"role": "user", "content": PROBE}]),
    )


@pytest.mark.parametrize(
    ("file", "mutations", "own"),
    [("model.safetensors", BYTES, True), ("config.json", JSON, False), ("tokenizer.json", JSON, True)],
)
def test_model_folders(file, mutations, own, fuzz, model_folder):
    fuzz(model_folder, file, mutations, read_model, own)


def test_chat_templates(fuzz, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "chat_template.jinja").write_text(
        "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    )
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    fuzz(folder, "chat_template.jinja", BYTES, lambda copy: ChatTemplate.load(copy).render(messages), own=False)


def test_bpe_tokenizers(fuzz, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    BpeTokenizer.train([PROBE * 3], 270).save(folder / "tokenizer.json")

    def read(copy):
        tokenizer = load_tokenizer(copy / "tokenizer.json")
        return tokenizer.decode(tokenizer.encode(PROBE))

    fuzz(folder, "tokenizer.json", JSON, read, own=False)


def test_contexts(fuzz, model_folder, tmp_path):
    lm = gf.load(model_folder)
    folder = tmp_path / "contexts"
    folder.mkdir()
    lm.read(PROBE).save(folder / "book.gfc")

    def read(copy):
        context = lm.open(copy / "book.gfc")
        return context.ids(), context.logits, context.read(" More").logits

    fuzz(folder, "book.gfc", BYTES, read)


@pytest.mark.parametrize("file", ["index.json", "tokenizer.json", ".bin", ".sums", ".docs"])
def test_token_data(file, fuzz, tmp_path):
    folder = tmp_path / "data"
    with write_dataset(folder, ByteTokenizer(), shard_tokens=64) as writers:
        for split in ("train", "validation"):
            for document in range(6):
                writers[split].append([document + token for token in range(20)], 20)

    def read(copy):
        parts = []
        for split in ("train", "validation"):
            data = TokenDataset.open(copy, split)
            windows = [data.tokens(start, 9).tolist() for start in range(0, len(data) - 8, 9)]
            parts += [data.tokens(0, len(data)).tolist(), windows, data.document_starts.tolist(), data.text_bytes]
            parts.append(load_data_tokenizer(copy, Index.load(copy)).encode(PROBE))
        return [*parts, [split for split, _ in verify(copy)]]

    if file.startswith("."):
        file = min(path.name for path in folder.iterdir() if path.name.endswith(file))
    fuzz(folder, file, JSON if file.endswith("json") else BYTES, read)


@pytest.mark.parametrize("file", ["index.json", "progress.json", "shard-00000.safetensors"])
def test_checkpoints(file, fuzz, tmp_path):
    tensors = {"matrix": torch.arange(12.0).view(4, 3), "step": torch.tensor(7)}
    run = tmp_path / "run"
    name = "checkpoints/step-00000001"
    (run / "checkpoints").mkdir(parents=True)
    writer = CheckpointWriter(run / name, 0, {"step": 1}, lambda: None)
    dcp.save(tensors, storage_writer=writer, no_dist=True)

    def read(copy):
        index = read_index(newest_checkpoint(copy, lambda message: None))
        loaded = {key: torch.zeros_like(tensor) for key, tensor in tensors.items()}
        dcp.load(loaded, storage_reader=CheckpointReader(copy / name, index), no_dist=True)
        return loaded, index.progress

    fuzz(run, f"{name}/{file}", JSON if file.endswith("json") else BYTES, read)


def test_published_checkpoints(fuzz, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    weights = {name.reference: torch.full(name.shape, 0.25) for name in tensor_names(FINCH)}
    torch.save(weights, folder / "model.pth")

    def read(copy):
        names = list(read_tensors(copy / "model.pth"))
        shutil.rmtree(tmp_path / "converted", ignore_errors=True)
        return names, import_reference(copy / "model.pth", FINCH, tmp_path / "converted", None).parameters

    fuzz(folder, "model.pth", BYTES, read, own=False)


@pytest.mark.parametrize("kind", ["json", "yaml"])
def test_settings(kind, fuzz, tmp_path):
    folder = tmp_path / "settings"
    folder.mkdir()
    (folder / "settings.json").write_text('{"steps": 100, "model": {"width": 64, "rope": {"rescale": 2.0}}, "a": [1]}')
    (folder / "settings.yaml").write_text(yaml.safe_dump(read_json(folder / "settings.json")))
    file = f"settings.{kind}"

    def read(copy):
        path = copy / file
        return repr((read_json(path) if kind == "json" else read_yaml(path), _read_file(path)))

    fuzz(folder, file, JSON if kind == "json" else BYTES, read, own=False)


def test_published_configs(fuzz, tmp_path):
    folder = tmp_path / "config"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(model_config_to_reference(DESCRIBABLE)))

    def read(copy):
        return repr(model_config_from_reference(read_reference_config([copy / "config.json"])))

    fuzz(folder, "config.json", JSON, read, own=False)
