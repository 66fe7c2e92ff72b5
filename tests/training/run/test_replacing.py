"""Replacing an earlier run: it is removed only for a new one, and with nothing else."""

import pytest

from goldfinch.errors import UserError
from goldfinch.training.run.replacing import replacing


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "training.json").write_text("{}")
    return folder


def test_a_new_run_takes_the_place_of_the_old_one(run):
    with replacing(run):
        assert not run.exists()
        run.mkdir()
        (run / "config.json").touch()
    assert [path.name for path in run.iterdir()] == ["config.json"]
    assert list(run.parent.iterdir()) == [run]


@pytest.mark.parametrize("begun", [False, True])
def test_the_old_run_comes_back_when_the_new_one_cannot_begin(run, begun):
    def begin():
        with replacing(run):
            if begun:
                run.mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin()
    assert (run / "training.json").exists()
    assert (run / "checkpoints" / "step-1").exists()
    assert list(run.parent.iterdir()) == [run]


@pytest.mark.parametrize("other", ["notes.txt", "data"])
def test_a_folder_with_other_files_is_left_alone(run, other):
    (run / other).touch()
    with pytest.raises(UserError, match=f"also holds {other}"), replacing(run):
        pass
    assert (run / "training.json").exists()
    if other == "data":
        with replacing(run, also=("data",)):
            pass
        assert not run.exists()


def test_a_folder_or_link_that_is_no_run_is_left_alone(run, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "link").symlink_to(run)
    for path in (tmp_path / "model", tmp_path / "link"):
        with pytest.raises(UserError, match="holds no training run"), replacing(path):
            pass
    assert (run / "training.json").exists()
    with replacing(tmp_path / "nothing"):
        pass
