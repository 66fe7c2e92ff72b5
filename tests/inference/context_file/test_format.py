"""Contexts as files: exact, checked, replaced all or nothing."""

import dataclasses
import json
import math
import os
import signal
import struct
import subprocess
import sys
import textwrap

import pytest
import torch
from plans import PLANS
from safetensors import safe_open
from safetensors.torch import save_file

import goldfinch as gf
from goldfinch.cache.key_cache import crc32
from goldfinch.checkpoint.model_folder import save_description, save_weights
from goldfinch.config import RopeConfig
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer
from goldfinch.errors import UserError
from goldfinch.inference import context as context_module
from goldfinch.inference.context import Context
from goldfinch.inference.context_file import format as context_file
from goldfinch.inference.context_file.description import model_folder, read_description, states_checksum
from goldfinch.inference.language_model import LanguageModel
from goldfinch.model import Decoder


class SmallLanguageModel(LanguageModel):
    """A model whose contexts come in small pieces."""

    def context(self, latents=None, budget="auto"):
        return Context(self.model, self.tokenizer, latents, budget, self.folder, chunk_size=8, block_size=8)


@pytest.fixture
def lm(model_of):
    return SmallLanguageModel(model_of("two GOLD layers", torch.float32), None)


@pytest.fixture
def saved(lm, text, tmp_path):
    """(lm, path, logits): a file of 37 tokens, five blocks, and what follows them."""
    context = lm.read(text(37))
    context.save(tmp_path / "book.gfc")
    return lm, tmp_path / "book.gfc", context.logits


def rewrite(path, change_metadata=lambda metadata: None, change_tensors=lambda tensors: None):
    """Change a file as a program that knows the format would."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    change_metadata(metadata)
    change_tensors(tensors)
    save_file(tensors, path, metadata)


def sign(path):
    """Make a changed file's checksums match again."""
    with safe_open(path, "pt") as file:
        others = {n: file.get_tensor(n) for n in file.keys() if n[:4] not in ("ids.", "late", "scal")}  # noqa: SIM118 (not a dictionary)
        description = file.metadata()["description"]
    rewrite(path, lambda metadata: metadata.update(checksum=str(states_checksum(description, others))))


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("latents", [None, "bfloat16", "int8", "int4"])
def test_an_opened_context_is_the_saved_one(plan, latents, model_of, text, tmp_path):
    lm = SmallLanguageModel(model_of(plan, torch.float32), None)
    if latents and not lm.config.num_gold_layers:
        pytest.skip("no latents")
    path = tmp_path / "book.gfc"
    for length in (1, 4, 8, 37):
        ids = text(length + 30)
        context = lm.context(latents).read(ids[:length], name="A book")
        context.snapshot()
        context.save(path)
        opened = lm.open(path)
        assert torch.equal(opened.logits, context.logits)
        assert (len(opened), opened.ids()) == (length, ids[:length].tolist())
        assert (opened.documents, opened.snapshots) == (context.documents, context.snapshots)
        assert opened.measure_quantization() == context.measure_quantization()
        for piece in ids[length:].split([1, 9, 20]):
            assert torch.equal(opened.read(piece).logits, context.read(piece).logits)
        assert opened.truncate(length) == 0
        # What was written to the opened context has not reached the file.
        assert torch.equal(opened.logits, lm.open(path).logits)


def test_a_file_is_saved_again_over_itself(saved, text):
    lm, path, _ = saved
    more = text(8, seed=1)
    for piece in more.split([3, 5]):
        lm.open(path).read(piece).save(path)
    expected = lm.read(torch.cat([text(37), more])).logits
    torch.testing.assert_close(lm.open(path).logits, expected, rtol=0, atol=1e-5)


def test_tuning_gold_layers_or_the_head_leaves_files_valid(saved, text):
    lm, path, before = saved
    upper = [*lm.model.blocks[lm.config.first_gold_layer :], lm.model.output_norm, lm.model.head]
    with torch.no_grad():
        for parameter in (p for part in upper for p in part.parameters()):
            parameter.mul_(1.1)
        lm.model.token_cat.up.weight.mul_(0.9)
    opened = lm.open(path)
    assert torch.equal(opened.logits, lm.read(text(37)).logits)
    assert not torch.allclose(opened.logits, before)
    # A short question continues from the states of the tuned layers, and so does a long one.
    for question in (text(1), text(30)):
        expected = lm.read(text(37)).read(question).logits
        torch.testing.assert_close(lm.open(path).read(question).logits, expected, rtol=0, atol=1e-5)


def test_positions_of_gold_layers_may_be_changed_under_a_file(model_of, text, tmp_path):
    trained = SmallLanguageModel(model_of("RoPE", torch.float32), None)
    trained.read(text(37)).save(tmp_path / "book.gfc")
    save_description(tmp_path / "model", trained.config, None)
    save_weights(tmp_path / "model", trained.model.state_dict())
    loaded = gf.load(tmp_path / "model", rope=RopeConfig(rescale=8, rebase=3))
    longer = SmallLanguageModel(loaded.model, None)
    assert longer.config.rope == RopeConfig(rescale=8, rebase=3)
    opened = longer.open(tmp_path / "book.gfc")
    assert torch.equal(opened.logits, longer.read(text(37)).logits)
    assert not torch.allclose(opened.logits, trained.open(tmp_path / "book.gfc").logits)
    expected = longer.logits(torch.cat([text(37), text(9)])[None])[0, -1]
    torch.testing.assert_close(opened.read(text(9)).logits, expected, rtol=0, atol=1e-5)


def test_positions_that_are_in_the_kept_keys_may_not(small_config, small_model, text, tmp_path):
    config = small_config("finch_c2", "gptalpha", "gold", rope=RopeConfig())
    lm = SmallLanguageModel(small_model(config, torch.float32), None)
    lm.read(text(9)).save(tmp_path / "book.gfc")
    longer = small_model(dataclasses.replace(config, rope=RopeConfig(rescale=2)), torch.float32)
    with pytest.raises(UserError, match=r"written with .*rescale=1.0.* load the model with the file's"):
        SmallLanguageModel(longer, None).open(tmp_path / "book.gfc")


def test_a_quantization_report_is_for_the_predictions_that_it_was_measured_on(model_of, text, tmp_path):
    lm = SmallLanguageModel(model_of("RoPE", torch.float32), None)
    context = lm.read(text(100), "int4")
    context.save(tmp_path / "book.gfc")
    assert lm.open(tmp_path / "book.gfc").measure_quantization() == context.measure_quantization()
    config = dataclasses.replace(lm.config, rope=RopeConfig(rescale=4))
    turned = SmallLanguageModel(Decoder(config), None)
    turned.model.load_state_dict(lm.model.state_dict())
    assert turned.open(tmp_path / "book.gfc").measure_quantization() is None
    for name in ("blocks.2.time_mix.query.weight", "token_cat.up.weight", "output_norm.bias", "head.weight"):
        before = lm.model.get_parameter(name).clone()
        lm.model.get_parameter(name).view(-1)[3] += 1e-3
        assert lm.open(tmp_path / "book.gfc").measure_quantization() is None, name
        lm.model.get_parameter(name).copy_(before)
    assert lm.open(tmp_path / "book.gfc").measure_quantization() == context.measure_quantization()


@pytest.mark.parametrize(
    "name", ["embedding", "embedding_norm", "blocks.0.time_mix.key", "blocks.1.channel_mix.key", "token_cat.down"]
)
def test_other_weights_below_are_refused(saved, name):
    lm, path, _ = saved
    with torch.no_grad():
        lm.model.get_submodule(name).weight.view(-1)[3] += 1e-3
    with pytest.raises(UserError, match=r"book\.gfc was written by other weights"):
        lm.open(path)


def test_another_shape_or_type_of_model_is_refused_with_the_remedy(saved, model_of):
    _, path, _ = saved
    with pytest.raises(UserError, match=r"4 layers \(2 GOLD\).*not one of 2 layers \(1 GOLD\)"):
        SmallLanguageModel(model_of("one GOLD layer", torch.float32), None).open(path)
    with pytest.raises(UserError, match=r"weights in float32, these are in bfloat16.*--dtype float32"):
        SmallLanguageModel(model_of("two GOLD layers", torch.bfloat16), None).open(path)


def test_another_tokenizer_is_refused(small_config, small_model, tmp_path):
    model = small_model(small_config("finch_c2", "gold", vocab_size=300), torch.float32)
    SmallLanguageModel(model, ByteTokenizer()).read("Call me Ishmael.").save(tmp_path / "a.gfc")
    other = BpeTokenizer.train(["Call me Ishmael. " * 9], 270)
    with pytest.raises(UserError, match="another tokenizer"):
        SmallLanguageModel(model, other).open(tmp_path / "a.gfc")


def test_every_flipped_bit_is_found(saved):
    lm, path, _ = saved
    content = path.read_bytes()
    generator = torch.Generator().manual_seed(0)
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start = 8 + int.from_bytes(content[:8], "little")
    places = torch.randint(0, start, (40,), generator=generator).tolist()
    for name in names:
        first, last = header[name]["data_offsets"]
        places += [start + int(place) for place in torch.randint(first, last, (3,), generator=generator)]
    for place in places:
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"book\.gfc"):
            lm.open(path)


def test_in_large_files_a_block_is_checked_before_its_first_use(saved, monkeypatch):
    lm, path, _ = saved
    monkeypatch.setattr(context_file, "MAX_BYTES_CHECKED_AT_OPEN", 0)
    rewrite(path, change_tensors=lambda tensors: tensors["latents.00002"][5].neg_())
    context = lm.open(path)
    assert len(context) == 37
    for use in (
        lambda: context.logits,
        lambda: context.fork().read([1]).logits,
        context.sequence.key_cache.verify,
        lambda: context.save(path),
        context.ids,
        lambda: context.truncate(20),
    ):
        with pytest.raises(UserError, match="checksum of tokens 16 to 23 does not match"):
            use()
    assert context.ids(0, 16) == lm.read(context.ids(0, 16)).ids()


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, -1000, -1])
def test_truncated_files_are_refused(saved, left):
    lm, path, _ = saved
    content = path.read_bytes()
    path.write_bytes(content[:left])
    with pytest.raises(UserError, match=r"book\.gfc"):
        lm.open(path)


def test_files_of_other_kinds_and_newer_versions_are_refused(saved, tmp_path):
    lm, path, _ = saved
    rewrite(path, lambda metadata: metadata.update(version="4"))
    with pytest.raises(UserError, match="version 4, this program reads version 3: read the text again"):
        lm.open(path)
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(UserError, match=r"is not a \.gfc context file"):
        lm.open(path)
    path.write_text("Call me Ishmael. " * 99)
    with pytest.raises(UserError, match=r"is not a \.gfc context file"):
        lm.open(path)
    with pytest.raises(UserError, match=r"is not a \.gfc context file"):
        lm.open(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        lm.open(tmp_path / "none.gfc")


@pytest.mark.parametrize("tokens", [0, -5, 38, 45, 10**18])
@pytest.mark.parametrize("header", [False, True])
def test_absurd_lengths_are_refused_before_anything_is_allocated(saved, tokens, header):
    lm, path, _ = saved
    if header:
        content = path.read_bytes()
        path.write_bytes(struct.pack("<q", tokens) + content[8:])
    else:

        def change(metadata):
            metadata["description"] = json.dumps(json.loads(metadata["description"]) | {"num_tokens": tokens})

        rewrite(path, change)
        sign(path)
    with pytest.raises(UserError, match=r"book\.gfc"):
        lm.open(path)


def test_a_model_folder_that_moves_with_the_file_is_still_found(model_of, text, tmp_path):
    lm = SmallLanguageModel(model_of("one GOLD layer", torch.float32), None)
    save_description(tmp_path / "a" / "model", lm.config, None)
    save_weights(tmp_path / "a" / "model", lm.model.state_dict())
    gf.load(tmp_path / "a" / "model").read(text(9)).save(tmp_path / "a" / "notes" / "book.gfc")
    (tmp_path / "a").rename(tmp_path / "b")
    path = tmp_path / "b" / "notes" / "book.gfc"
    folder = model_folder(path, read_description(path))
    assert folder == tmp_path / "b" / "model"
    assert len(gf.load(folder).open(path)) == 9


def test_an_empty_context_is_not_saved(lm, tmp_path):
    with pytest.raises(UserError, match="read a text before saving"):
        lm.context().save(tmp_path / "a.gfc")


@pytest.mark.slow
def test_a_process_killed_while_it_saves_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "book.gfc"
    program = textwrap.dedent(
        """
        import sys
        import torch
        import goldfinch as gf
        torch.set_num_threads(1)
        lm = gf.build("goldfinch-L3-D64", vocab_size=64)
        contexts = [lm.context().read(torch.full((length,), 7)) for length in (5000, 9000)]
        for number in range(10**6):
            contexts[number % 2].save(sys.argv[1])
            print("saved", flush=True)
        """
    )
    lm = gf.build("goldfinch-L3-D64", vocab_size=64)
    lengths = []
    for delay in (0.0, 0.003, 0.007):
        with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as process:
            for _ in range(3):
                assert process.stdout.readline() == b"saved\n"
            signal.sigtimedwait([], delay)
            os.kill(process.pid, signal.SIGKILL)
        context = lm.open(path)
        lengths.append(len(context))
        assert set(context.ids()) == {7}
    assert set(lengths) <= {5000, 9000}


def test_a_file_with_another_block_size_opens(model_of, text, tmp_path):
    model, ids, path = model_of("two GOLD layers", torch.float32), text(37), tmp_path / "book.gfc"
    Context(model, None, chunk_size=8, block_size=16).read(ids).save(path)
    usual = LanguageModel(model, None)
    opened = usual.open(path)
    assert opened.sequence.block_size == 16
    torch.testing.assert_close(opened.logits, usual.read(ids).logits, rtol=0, atol=1e-5)
    longer = torch.cat([ids, text(50, seed=1)])
    torch.testing.assert_close(opened.read(text(50, seed=1)).logits, usual.read(longer).logits, rtol=0, atol=1e-5)
    opened.save(path)
    assert usual.open(path).sequence.block_size == 16


def test_blocks_must_hold_complete_chunks(model_of):
    with pytest.raises(ValueError, match="block_size 10 must be a multiple of chunk_size 4"):
        Context(model_of("one GOLD layer"), None, chunk_size=4, block_size=10)


def test_a_file_that_someone_else_has_written_meanwhile_is_not_replaced(saved, text):
    lm, path, _ = saved
    first, second = lm.open(path), lm.open(path)
    first.read(text(5)).save(path)
    first.read(text(5)).save(path)  # its own version may be replaced as often as one likes
    with pytest.raises(UserError, match=r"another process has written .*, and it was not replaced"):
        second.read(text(3)).save(path)
    assert len(lm.open(path)) == 37 + 10
    second.save(path.with_name("other.gfc"))
    assert len(lm.open(path.with_name("other.gfc"))) == 37 + 3


def test_an_existing_file_is_refused_on_request(saved):
    lm, path, _ = saved
    with pytest.raises(UserError, match="another process has written"):
        lm.read([1, 2, 3]).save(path, overwrite=False)
    assert len(lm.open(path)) == 37


def test_a_pipe_is_not_waited_for(lm, tmp_path):
    os.mkfifo(tmp_path / "book.gfc")
    with pytest.raises(UserError, match=r"is not a \.gfc context file"):
        lm.open(tmp_path / "book.gfc")


def documents(*ranges, name="a"):
    return [{"name": name, "start": start, "stop": stop} for start, stop in ranges]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("documents", documents((-1, 5))),
        ("documents", documents((5, 5))),
        ("documents", documents((9, 5))),
        ("documents", documents((0, 38))),
        ("documents", documents((0, 10**30))),
        ("documents", documents((0, 10), (9, 20))),
        ("documents", documents((0, 5), name="")),
        ("documents", documents((0, 5), name="a\x1b[31m")),
        ("documents", documents((0, 5), name="a\ud800")),
        ("documents", documents((0, 5), name=5)),
        ("pinned", [7]),
        ("snapshots", [38]),
        ("block_size", 0),
        ("num_tokens", 10**30),
        ("documents", "x"),
    ],
    ids=str,
)
def test_a_description_of_what_cannot_be_is_refused(field, value, saved):
    lm, path, _ = saved

    def change(metadata):
        metadata["description"] = json.dumps(json.loads(metadata["description"]) | {field: value})

    rewrite(path, change)
    sign(path)
    with pytest.raises(UserError, match=r"book\.gfc") as error:
        lm.open(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["ids.00001", "latents.00002", "state.37.tail", "state.37.0.wkv"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_numbers_that_no_model_computes_are_refused(name, value, saved):
    lm, path, _ = saved

    def change(tensors):
        tensor = tensors[name]
        tensor.view(-1)[3] = 60000 if name.startswith("ids") else value
        for block in range(5):
            checksum = crc32(tensors[f"latents.{block:05}"], crc32(tensors[f"ids.{block:05}"]))
            tensors["checksums"][block] = checksum

    rewrite(path, change_tensors=change)
    sign(path)
    with pytest.raises(UserError, match=r"that no model computes|token ids outside the vocabulary"):
        lm.open(path)


def test_what_is_written_right_after_a_save_is_not_taken_for_ones_own(saved, text, monkeypatch):
    lm, path, _ = saved
    mine = lm.open(path)
    real = context_module.save_context

    def then_someone_else(*args):
        result = real(*args)
        monkeypatch.setattr(context_module, "save_context", real)
        lm.open(path).read(text(3)).save(path)
        return result

    monkeypatch.setattr(context_module, "save_context", then_someone_else)
    mine.read(text(5)).save(path)
    with pytest.raises(UserError, match="another process has written"):
        mine.read(text(5)).save(path)
    assert len(lm.open(path)) == 37 + 5 + 3
