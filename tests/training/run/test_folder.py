"""The folder of a run: it is resumed with its own data only, and nothing of a killed run is left or written twice."""

import json
import shutil
from collections import Counter

import pytest

from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.prepare import prepare, train_tokenizer
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.training.run.folder import check_data, remove_temporary_files
from goldfinch.training.run.metrics import Metrics, read_metrics
from goldfinch.training.trainer import Trainer


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the whale swims and the ship sinks\n\n" * 60)
    return path


@pytest.fixture
def folder(text, tmp_path):
    """A data directory of its own."""
    prepare([text], tmp_path / "data", ByteTokenizer(), validation_fraction=0.1)
    return tmp_path / "data"


def test_a_run_resumes_only_on_the_data_it_was_started_with(settings, silent, folder, text, tmp_path):
    config = settings(data=(str(folder),), steps=2, sample_every=0)
    Trainer(config, silent()).train()
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    Trainer(settings(data=(f"{moved}=2",), steps=3), silent(), resume=True)
    with pytest.raises(UserError, match=r"run was started with 1 sources of data, not 2"):
        Trainer(settings(data=(str(folder), str(moved))), silent(), resume=True)

    text.write_text(text.read_text().replace("sinks", "swims"))
    prepare([text], folder, ByteTokenizer(), validation_fraction=0.1, overwrite=True)
    with pytest.raises(UserError, match=r"data holds other data than .*run was started with.* --initial .*run --data"):
        Trainer(config, silent(), resume=True)

    prepare([text], folder, train_tokenizer([text], 257), validation_fraction=0.1, overwrite=True)
    with pytest.raises(UserError, match=r"data has another tokenizer than .*run was started with"):
        Trainer(config, silent(), resume=True)


@pytest.mark.parametrize("content", ["{}", "[[]]", "[[", "7"])
def test_a_corrupt_record_of_the_data_is_one_line(content, tmp_path):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(UserError, match=r"data\.json is (corrupt|not valid JSON)"):
        check_data(tmp_path, ["d"], [{"tokenizer": "a", "tokens": "b"}])


def test_damage_that_training_reaches_stops_the_run_with_the_file(settings, silent, folder):
    shard = folder / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.bin is corrupt"):
        Trainer(settings(data=(str(folder),)), silent()).train()


def test_a_run_that_is_killed_after_its_last_validation_writes_no_line_twice(settings, silent):
    config = settings(sample_every=0)
    Trainer(config, silent()).train()
    records = read_metrics(config.output)
    assert [record["whole_validation_set"] for record in records if "validation_loss" in record] == [False, True]
    Trainer(config, silent(), resume=True).train()
    assert read_metrics(config.output) == records
    lines = Counter((record["step"], record.get("whole_validation_set")) for record in records)
    assert set(lines.values()) == {1}


def test_temporary_files_of_a_killed_run_are_removed_and_nothing_else(tmp_path):
    for name in (".loss.png.0a1b2c3d.tmp", ".metrics.jsonl.00000000.tmp", ".model.safetensors.ffffffff.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").touch()
    others = [".loss.png.tmp", ".notes.txt.0a1b2c3d.tmp", "loss.png", ".loss.png.0a1b2c3d.tmp.bak"]
    for name in others:
        (tmp_path / name).mkdir()
    remove_temporary_files(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize(
    "record",
    [
        [],
        {"loss": 1.0},
        {"step": "1", "tokens": 1},
        {"step": 1, "tokens": 1, "loss": "low"},
        {"step": 1, "tokens": 1, "validation_loss": 1.0, "whole_validation_set": True, "loss_by_position": [3]},
    ],
)
def test_a_line_that_is_not_a_record_is_named(record, tmp_path):
    good = {"step": 1, "tokens": 64, "loss": 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(good) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not a record of a run"):
        Metrics(tmp_path, 5)


def test_a_model_that_learns_from_conversations_keeps_their_template(settings, silent, tmp_path):
    lines = [{"messages": [{"role": "user", "content": f"Say {n}"}]} for n in range(50)]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
    template = ChatTemplate("{% for message in messages %}{{ message.role }}> {{ message.content }}\n{% endfor %}")
    prepare([tmp_path / "chat.jsonl"], tmp_path / "chat", ByteTokenizer(), chat_template=template)
    config = settings(data=(str(tmp_path / "chat"),), steps=1, sample_every=0)
    Trainer(config, silent()).train()
    assert ChatTemplate.load(config.output) == template
    tuned = settings(initial=config.output, output=tmp_path / "tuned", steps=1, sample_every=0)
    Trainer(tuned, silent()).train()
    assert ChatTemplate.load(tuned.output) == template
