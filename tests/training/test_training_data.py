"""Runs on several sources and on streams: what they report, and that they resume to the last bit."""

import json

import pytest
from reporters import StopAfter

from goldfinch.data.prepare import prepare
from goldfinch.data.tokenizers import ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.training.interruption import Interrupted
from goldfinch.training.run.folder import read_settings
from goldfinch.training.trainer import Trainer


@pytest.fixture
def two_sources(data, tmp_path):
    (tmp_path / "numbers.txt").write_text("\n\n".join(" ".join(map(str, range(i, i + 20))) for i in range(60)))
    prepare([tmp_path / "numbers.txt"], tmp_path / "numbers", ByteTokenizer(), validation_fraction=0.2)
    return f"{data}=3", f"{tmp_path / 'numbers'}=1"


def test_several_sources_are_validated_together_and_by_name(settings, silent, two_sources):
    config, seen = settings(data=two_sources, steps=2, validate_every=1, max_validation_tokens=100), silent()
    result = Trainer(config, seen).train()
    assert list(result.sources) == ["data", "numbers"]
    parts = result.sources.values()
    assert result.tokens == sum(part.tokens for part in parts)
    assert result.loss == pytest.approx(sum(part.loss * part.tokens for part in parts) / result.tokens)
    for ranges in (result.by_position, result.by_document_position):
        assert sum(each.tokens for each in ranges) == result.tokens
        assert result.loss == pytest.approx(sum(each.loss * each.tokens for each in ranges) / result.tokens)
        assert [each.first for each in ranges] == sorted({each.first for each in ranges})
    short = seen.validations[0][1]
    assert 100 <= short.tokens <= 101
    weights = [part.tokens / short.tokens for part in short.sources.values()]
    assert weights == pytest.approx([part.tokens / result.tokens for part in parts], abs=0.01)
    records = [json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["validation_by_source"]["numbers"]["loss"] == result.sources["numbers"].loss
    assert read_settings(config.output).data == two_sources


def test_settings_of_one_folder_as_text_are_still_read(settings, silent):
    config = settings(steps=1)
    Trainer(config, silent()).train()
    path = config.output / "training.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": config.data[0]}))
    assert read_settings(config.output) == config


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_run_on_a_stream_and_a_folder_resumes_to_the_last_bit(settings, silent, stream, data, tmp_path, num_workers):
    fields = {"data": (f"{stream}=2", f"{data}=1"), "num_workers": num_workers, "save_every": 100}
    whole, parts = silent(), silent()
    Trainer(settings(output=tmp_path / "whole", **fields), whole).train()
    config = settings(output=tmp_path / "parts", **fields)
    with pytest.raises(Interrupted, match="--resume"):
        Trainer(config, StopAfter(3, parts)).train()
    Trainer(config, parts, resume=True).train()
    assert len(whole.losses) == 6
    assert parts.losses == whole.losses


def test_a_run_on_a_stream_that_goes_wrong_saves_the_state_before_the_bad_batch(settings, silent, stream):
    class Grow(StopAfter):
        def step(self, record, done):
            self._reporter.step(record, done)
            if record["step"] == 3:
                for group in trainer._optimizer.param_groups:
                    group["lr"] = 0
                trainer._model.head.weight.register_hook(lambda gradient: gradient * float("inf"))

    seen = silent()
    trainer = Trainer(settings(data=(stream,), max_skipped_steps=0, save_every=100), Grow(None, seen))
    with pytest.raises(UserError, match=r"window \d+ of the stream.*the weights before this step are in"):
        trainer.train()
    resumed, whole = silent(), silent()
    Trainer(settings(data=(stream,)), resumed, resume=True).train()
    Trainer(settings(data=(stream,), output=settings().output.with_name("whole")), whole).train()
    assert seen.losses + resumed.losses == whole.losses


def test_a_stream_without_steps_is_refused(settings, silent, stream):
    with pytest.raises(UserError, match=r"a stream has no known length: give --steps"):
        Trainer(settings(data=(stream,), steps=0), silent())
