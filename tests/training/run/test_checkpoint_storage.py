"""What a checkpoint is on disk, and that nothing of it is believed unseen."""

import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from goldfinch.data.checksums import checksum
from goldfinch.errors import UserError
from goldfinch.training.run.checkpoint_storage import CheckpointReader, CheckpointWriter, Damaged, read_index

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")

ROWS = torch.arange(12.0).view(4, 3)
TENSORS = {"matrix": ROWS, "half": torch.ones(2, dtype=torch.bfloat16), "step": torch.tensor(7)}


@pytest.fixture
def checkpoint(tmp_path):
    """The folder of a checkpoint."""
    folder = tmp_path / "step-00000001"
    dcp.save(TENSORS, storage_writer=CheckpointWriter(folder, 0, {"step": 1}, lambda: None), no_dist=True)
    return folder


@pytest.fixture
def rewrite(checkpoint):
    """rewrite(change): let `change` work on the content of the index."""

    def write(change):
        content = json.loads((checkpoint / "index.json").read_text())
        change(content)
        content.pop("checksum")
        progress = json.loads((checkpoint / "progress.json").read_text())
        content["checksum"] = checksum(json.dumps([content, progress], sort_keys=True).encode())
        (checkpoint / "index.json").write_text(json.dumps(content))

    return write


def test_what_is_written_is_read_and_nothing_of_it_is_a_pickle(checkpoint):
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "index.json",
        "progress.json",
        "shard-00000.safetensors",
    ]
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    index = read_index(checkpoint)
    assert index.progress == {"step": 1}
    read = {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}
    dcp.load(read, storage_reader=CheckpointReader(checkpoint, index), no_dist=True)
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())


def test_a_save_that_fails_leaves_the_checkpoint_that_is_there_alone(checkpoint, monkeypatch):
    def fail(tensors, path, metadata=None):
        raise OSError("no space")

    monkeypatch.setattr("goldfinch.checkpoint.safetensors_file.save_file", fail)
    with pytest.raises(dcp.CheckpointException, match="no space"):
        dcp.save(TENSORS, storage_writer=CheckpointWriter(checkpoint, 0, {"step": 2}, lambda: None), no_dist=True)
    assert read_index(checkpoint).progress == {"step": 1}


def test_a_damaged_checkpoint_is_replaced(checkpoint):
    (checkpoint / "index.json").unlink()
    dcp.save(TENSORS, storage_writer=CheckpointWriter(checkpoint, 0, {"step": 2}, lambda: None), no_dist=True)
    assert read_index(checkpoint).progress == {"step": 2}
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]


def lose_a_row(content):
    content["tensors"]["matrix"]["shape"] = [5, 3]


def count_rows_twice(content):
    content["tensors"]["matrix"]["shape"] = [8, 3]
    content["tensors"]["matrix"]["parts"] *= 2


def change_the_dtype(content):
    content["tensors"]["matrix"]["dtype"] = "float16"


def name_no_dtype(content):
    content["tensors"]["matrix"]["dtype"] = "save"


def leave_the_folder(content):
    content["files"]["../shard-00000.safetensors"] = content["files"].pop("shard-00000.safetensors")


def name_a_file_that_is_not_listed(content):
    content["tensors"]["matrix"]["parts"][0]["file"] = "shard-00001.safetensors"


def move_a_part(content):
    content["tensors"]["matrix"]["parts"][0]["offset"] = [1, 0]


def be_something_else(content):
    content["format"] = "other"


def forget_the_tensors(content):
    content["tensors"] = [1]


@pytest.mark.parametrize(
    "lie",
    [
        lose_a_row,
        count_rows_twice,
        change_the_dtype,
        name_no_dtype,
        leave_the_folder,
        name_a_file_that_is_not_listed,
        move_a_part,
        be_something_else,
        forget_the_tensors,
    ],
)
def test_an_index_that_does_not_fit_the_files_is_not_believed(lie, rewrite, checkpoint):
    rewrite(lie)
    with pytest.raises(Damaged):
        read_index(checkpoint)


def test_a_file_of_the_right_size_with_other_tensors_is_not_believed(checkpoint):
    file = checkpoint / "shard-00000.safetensors"
    save_file(TENSORS | {"matrix": torch.zeros(3, 4)}, file)
    with pytest.raises(Damaged, match="does not hold matrix"):
        read_index(checkpoint)


def test_another_version_is_refused_rather_than_passed_over(rewrite, checkpoint):
    rewrite(lambda content: content.update(version=99))
    with pytest.raises(UserError, match=r"version 99.*resume with the version of goldfinch that wrote it"):
        read_index(checkpoint)
