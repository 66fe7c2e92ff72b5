"""`goldfinch convert`: whole checkpoints in both directions, and all that must be refused."""

import contextlib
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro

from goldfinch.checkpoint.convert import export_reference, import_reference, read_tensors
from goldfinch.checkpoint.model_folder import load_model, read_config, read_tokenizer
from goldfinch.checkpoint.reference import tensor_names
from goldfinch.cli.convert import Convert
from goldfinch.config import ModelConfig
from goldfinch.data.tokenizers import ByteTokenizer, WorldTokenizer
from goldfinch.errors import UserError

FINCH = ModelConfig(vocab_size=257, width=64, time_mixes=("finch", "finch"), channel_width=96, shift_rank=8)


def tensors_of(config: ModelConfig, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return {name.reference: torch.full(name.shape, 0.25, dtype=dtype) for name in tensor_names(config)}


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- there and back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_there_and_back_on_disk(golden, dtype, save_pth, same_bits, tmp_path):
    tensors = {name: tensor.to(dtype) for name, tensor in golden.tensors.items()}
    pth, folder, back = save_pth(tensors), tmp_path / "folder", tmp_path / "back.pth"
    converted = import_reference(pth, golden.config, folder, None)
    assert converted.config == golden.config == read_config(folder)
    assert converted.dtypes == (str(dtype).removeprefix("torch."),)
    assert converted.parameters == sum(parameter.numel() for parameter in load_model(folder).parameters())
    assert leftovers(folder) == ["config.json", "model.safetensors"]
    export_reference(folder, back)

    exported = torch.load(back, weights_only=True)
    assert exported.keys() == tensors.keys()
    used = {name.reference for name in tensor_names(golden.config)}
    assert same_bits({name: exported[name] for name in used}, {name: tensors[name] for name in used})


def test_converting_back_changes_no_byte(published, save_pth, tmp_path):
    kind = published("goldfinch")
    import_reference(save_pth(kind.tensors), kind.config, tmp_path / "folder", None)
    export_reference(tmp_path / "folder", tmp_path / "first.pth")
    import_reference(tmp_path / "first.pth", kind.config, tmp_path / "again", None)
    export_reference(tmp_path / "again", tmp_path / "second.pth")
    for first, second in (("folder/model.safetensors", "again/model.safetensors"), ("first.pth", "second.pth")):
        assert (tmp_path / first).read_bytes() == (tmp_path / second).read_bytes()


def test_nan_infinity_and_negative_zero_survive(save_pth, same_bits, tmp_path):
    tensors = tensors_of(FINCH, torch.bfloat16)
    odd = torch.tensor([math.nan, math.inf, -math.inf, -0.0], dtype=torch.bfloat16)
    odd[0:1].view(torch.int16)[0] = 0x7FC5  # a NaN with a payload
    tensors["ln_out.weight"][:4] = odd
    tensors["blocks.0.att.time_maa_k"][0, 0, :4] = odd
    import_reference(save_pth(tensors), None, tmp_path / "folder", None)
    export_reference(tmp_path / "folder", tmp_path / "back.pth")
    assert same_bits(torch.load(tmp_path / "back.pth", weights_only=True), tensors)


def test_mixed_dtypes_stay_mixed(save_pth, tmp_path):
    tensors = tensors_of(FINCH, torch.bfloat16)
    tensors["blocks.1.att.time_decay"] = tensors["blocks.1.att.time_decay"].float()
    assert import_reference(save_pth(tensors), None, tmp_path / "folder", None).dtypes == ("bfloat16", "float32")
    export_reference(tmp_path / "folder", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert {name: tensor.dtype for name, tensor in back.items()} == {n: t.dtype for n, t in tensors.items()}


def test_tied_sliced_and_transposed_tensors_are_stored_each_in_its_own_right(save_pth, same_bits, tmp_path):
    tensors = tensors_of(FINCH)
    tensors["emb.weight"] = torch.randn(257, 64)
    tensors["head.weight"] = tensors["emb.weight"]
    tensors["blocks.0.att.key.weight"] = torch.randn(64, 64).t()
    tensors["blocks.1.att.key.weight"] = torch.nn.Parameter(torch.randn(128, 64)[64:])
    import_reference(save_pth(tensors), None, tmp_path / "folder", None)
    export_reference(tmp_path / "folder", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert same_bits(back, {name: tensor.detach() for name, tensor in tensors.items()})


@pytest.mark.parametrize("sizes", [{}, {"shift_rank": 64, "decay_rank": 128}, {"head_size": 32}], ids=str)
def test_a_pure_finch_needs_no_config(sizes, save_pth, tmp_path):
    config = ModelConfig(**{"vocab_size": 257, "width": 64, "time_mixes": ("finch",), "channel_width": 224} | sizes)
    assert import_reference(save_pth(tensors_of(config)), None, tmp_path / "folder", None).config == config
    assert load_model(tmp_path / "folder").config == config


# --- what is not a checkpoint ---


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("raw", [False, True], ids=["torch.save", "pickle"])
def test_code_in_a_pickle_is_not_run(raw, tmp_path, save_pth):
    trap = tmp_path / "trap"
    bad = {"emb.weight": torch.ones(2, 2), "x": Malicious(trap)}
    if raw:
        pth = tmp_path / "model.pth"
        pth.write_bytes(pickle.dumps(Malicious(trap)))
    else:
        pth = save_pth(bad)
    with pytest.raises(
        UserError, match=r"model\.pth " + ("is not a checkpoint" if raw else r"holds .*mkdir.* not loaded")
    ):
        import_reference(pth, None, tmp_path / "folder", None)
    assert leftovers(tmp_path) == ["model.pth"]
    pickle.loads(pickle.dumps(Malicious(trap)))
    assert trap.exists(), "the trap would have worked"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds an empty dict"),
        ([torch.ones(1)], "holds a value of type list: a flat dict of floating-point tensors was expected"),
        (torch.ones(1), "holds a tensor of torch.float32"),
        ({"state_dict": {"emb.weight": torch.ones(1)}}, "holds a dict under 'state_dict'.* save that inner dict alone"),
        ({"emb.weight": torch.ones(1), "step": 3}, "holds a value of type int under 'step'"),
        ({"emb.weight": torch.ones(1, dtype=torch.int8)}, "holds a tensor of torch.int8.* under 'emb.weight'"),
        ({"emb.weight": torch.eye(2).to_sparse()}, "holds a tensor of .*sparse_coo under 'emb.weight'"),
        ({"emb.weight": torch.ones(1, device="meta")}, "holds a tensor .* under 'emb.weight'"),
        ({3: torch.ones(1)}, "under 3"),
        (torch.nn.Linear(2, 2), "holds objects of Python .*Linear"),
        ({"unrelated.weight": torch.ones(1)}, "only for a pure Finch .* with --config"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_content_is_named(content, message, save_pth, tmp_path):
    pth = save_pth(content)
    with pytest.raises(UserError, match=message) as caught:
        import_reference(pth, None, tmp_path / "folder", None)
    assert str(caught.value).startswith(str(pth))
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path) == ["model.pth"]


@pytest.mark.parametrize("share", [0, 1, 3, 4, 100, 0.5, 0.99, -1])
def test_a_file_cut_off_anywhere_is_refused(share, save_pth, tmp_path):
    pth = save_pth(tensors_of(FINCH))
    whole = pth.read_bytes()
    pth.write_bytes(whole[: int(share * len(whole)) if isinstance(share, float) else share])
    with pytest.raises(UserError, match=r"model\.pth is (empty|not a checkpoint|corrupt or truncated)") as caught:
        import_reference(pth, None, tmp_path / "folder", None)
    assert "\n" not in str(caught.value)
    assert leftovers(tmp_path) == ["model.pth"]


def test_damaged_pickles_are_user_errors(save_pth):
    pth = save_pth({"emb.weight": torch.ones(4)})
    whole = pth.read_bytes()
    start = whole.index(b"data.pkl") + 8
    for position in range(start, start + 200):
        pth.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        with contextlib.suppress(UserError):
            read_tensors(pth)


@pytest.mark.parametrize("kind", ["missing", "folder", "text", "old"])
def test_files_that_are_not_zip_archives(kind, tmp_path):
    pth = tmp_path / "model.pth"
    match kind:
        case "folder":
            pth.mkdir()
        case "text":
            pth.write_text("weights, honestly")
        case "old":
            torch.save({"a": torch.ones(1)}, pth, _use_new_zipfile_serialization=False)
    wanted = "is not a checkpoint of torch 1.6 or later" if kind in ("text", "old") else "cannot read .*model.pth"
    with pytest.raises(UserError, match=wanted):
        read_tensors(pth)


def test_a_checkpoint_of_another_model_lists_all_and_writes_nothing(published, save_pth, tmp_path):
    tensors = dict(published("goldfinch").tensors) | {"extra": torch.ones(1)}
    pth = save_pth(tensors)
    with pytest.raises(UserError, match=r"model\.pth: .*missing: .*gate.* unexpected: .*extra"):
        import_reference(pth, published("goldfinch_upgrade").config, tmp_path / "folder", None)
    assert leftovers(tmp_path) == ["model.pth"]


# --- output ----------------------------------------------------------------------------------------------------------


def test_nothing_is_replaced_without_overwrite(save_pth, tmp_path):
    pth, folder = save_pth(tensors_of(FINCH)), tmp_path / "folder"
    import_reference(pth, None, folder, None)
    before = (folder / "model.safetensors").read_bytes()
    for output in (folder, pth):
        with pytest.raises(UserError, match="exists: choose another name, or"):
            import_reference(pth, None, output, None)
    with pytest.raises(UserError, match="exists: choose another name, or"):
        export_reference(folder, pth)
    assert (folder / "model.safetensors").read_bytes() == before


def test_overwrite_replaces_a_whole_model_and_only_that(save_pth, same_bits, tmp_path):
    folder = tmp_path / "folder"
    import_reference(save_pth(tensors_of(FINCH)), None, folder, ByteTokenizer())
    other = tensors_of(FINCH, torch.bfloat16)
    import_reference(save_pth(other), None, folder, None, overwrite=True)
    assert leftovers(folder) == ["config.json", "model.safetensors"], "the old tokenizer is gone"
    assert leftovers(tmp_path) == ["folder", "model.pth"]
    export_reference(folder, tmp_path / "model.pth", overwrite=True)
    assert same_bits(read_tensors(tmp_path / "model.pth"), other)

    (folder / "metrics.jsonl").write_text("precious")
    with pytest.raises(UserError, match=r"also holds metrics\.jsonl, so it is not overwritten"):
        import_reference(tmp_path / "model.pth", None, folder, None, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        import_reference(tmp_path / "model.pth", None, tmp_path / "model.pth", None, overwrite=True)
    assert (folder / "metrics.jsonl").read_text() == "precious"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_fails_leaves_what_was(overwrite, save_pth, same_bits, tmp_path, monkeypatch):
    pth, folder = save_pth(tensors_of(FINCH)), tmp_path / "folder"
    if overwrite:
        import_reference(pth, None, folder, None)
    before = leftovers(tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("goldfinch.checkpoint.safetensors_file.save_file", fail)
    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(UserError, match=r"cannot write .*folder: .*No space left on device"):
        import_reference(pth, None, folder, None, overwrite=overwrite)
    assert leftovers(tmp_path) == before
    if overwrite:
        with pytest.raises(UserError, match=r"cannot write .*model\.pth: .*No space left on device"):
            export_reference(folder, pth, overwrite=True)
        assert leftovers(tmp_path) == before
        assert same_bits(read_tensors(pth), tensors_of(FINCH))


def test_when_the_swap_fails_the_old_folder_is_back(save_pth, tmp_path, monkeypatch):
    pth, folder = save_pth(tensors_of(FINCH)), tmp_path / "folder"
    import_reference(pth, None, folder, ByteTokenizer())
    rename = Path.rename

    def fail_once(self, target):
        if self.name == "new":
            raise OSError("the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(UserError, match="the disk is gone"):
        import_reference(pth, None, folder, None, overwrite=True)
    assert leftovers(folder) == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert leftovers(tmp_path) == ["folder", "model.pth"]


@pytest.fixture
def files_of_at_most_50_kb():
    """The system lets no file grow further: what a full disk looks like to those who write."""
    resource = pytest.importorskip("resource", reason="only POSIX limits the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_reason_from_the_system_is_shown(save_pth, tmp_path, request):
    """Both libraries hide it behind errors of their own."""
    pth, folder = save_pth(tensors_of(FINCH)), tmp_path / "folder"
    import_reference(pth, None, folder, None)
    request.getfixturevalue("files_of_at_most_50_kb")
    with pytest.raises(UserError, match=r"cannot write .*new: .*File too large"):
        import_reference(pth, None, tmp_path / "new", None)
    with pytest.raises(UserError, match=r"cannot write .*new\.pth: .*File too large"):
        export_reference(folder, tmp_path / "new.pth")
    assert leftovers(tmp_path) == ["folder", "model.pth"]


@pytest.mark.parametrize("name", ["model", "model.pt", "model.safetensors", "model.pth.zip"])
def test_an_export_must_be_named_pth(name, tmp_path):
    with pytest.raises(UserError, match=r"must end in \.pth"):
        export_reference(tmp_path, tmp_path / name)


# --- tokenizer -------------------------------------------------------------------------------------------------------


def test_the_world_tokenizer_comes_with_its_vocabulary(save_pth, tmp_path):
    config = ModelConfig(vocab_size=65536, width=8, head_size=4, time_mixes=("finch",), channel_width=8)
    pth = save_pth(tensors_of(config, torch.bfloat16))
    assert import_reference(pth, None, tmp_path / "folder", None).tokenizer == "world"
    assert isinstance(read_tokenizer(tmp_path / "folder", config), WorldTokenizer)
    import_reference(pth, None, tmp_path / "other", ByteTokenizer())
    assert isinstance(read_tokenizer(tmp_path / "other", config), ByteTokenizer)


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(save_pth, tmp_path):
    pth = save_pth(tensors_of(FINCH))
    with pytest.raises(UserError, match=r"world tokenizer has 65536 ids, the model of .*model\.pth only 257"):
        import_reference(pth, None, tmp_path / "folder", WorldTokenizer())
    assert leftovers(tmp_path) == ["model.pth"]


# --- command line ----------------------------------------------------------------------------------------------------


def parse(*args) -> Convert:
    return tyro.cli(Convert, args=[str(arg) for arg in args])


@pytest.mark.parametrize("flags", [["--config", "A", "--config", "B"], ["--config", "A", "B"]], ids=" ".join)
def test_several_config_files_in_both_spellings(flags):
    convert = parse("x.pth", *flags, "-o", "out")
    assert [path for group in convert.config for path in group] == [Path("A"), Path("B")]
    assert (convert.source, convert.output) == (Path("x.pth"), Path("out"))


def test_the_command_converts_there_and_back(published, save_pth, same_bits, tmp_path, capsys):
    kind = published("goldfinch_upgrade")
    pth, folder = save_pth(kind.tensors), tmp_path / "my model"
    shape, plan = tmp_path / "shape.yaml", tmp_path / "plan.yaml"
    shape.write_text("model: {n_layer: 6, n_embd: 128, vocab_size: 320, tmix: x060c2, ctx_len: 512}")
    plan.write_text("model: {tmix: x060, tmix2: gold, inv_other_layer_ratio: 6}")

    parse(pth, "--config", shape, "--config", plan, "-o", folder, "--tokenizer", "bytes").run()
    out = capsys.readouterr().out
    count = sum(tensor.numel() for tensor in kind.tensors.values())
    for wanted in ("ctx_len", "5 finch, then 1 gold", f"{count:,} in float32", "vocabulary 320"):
        assert wanted in out
    assert f"goldfinch generate '{folder}' \"" in out

    parse(folder, "-o", tmp_path / "back.pth").run()
    assert f"{count:,} in float32" in capsys.readouterr().out
    assert same_bits(read_tensors(tmp_path / "back.pth"), kind.tensors)


def test_the_command_says_when_there_is_no_tokenizer(save_pth, tmp_path, capsys):
    parse(save_pth(tensors_of(FINCH)), "-o", tmp_path / "folder").run()
    out = capsys.readouterr().out
    assert "without a tokenizer" in out
    assert "goldfinch generate" not in out


def test_a_tokenizer_file_is_taken_along(save_pth, tmp_path):
    ByteTokenizer().save(tmp_path / "mine.json")
    parse(save_pth(tensors_of(FINCH)), "-o", tmp_path / "folder", "--tokenizer", tmp_path / "mine.json").run()
    assert isinstance(read_tokenizer(tmp_path / "folder", FINCH), ByteTokenizer)


@pytest.mark.parametrize("flags", [["--config", "a.yaml"], ["--tokenizer", "world"]], ids=" ".join)
def test_a_folder_needs_neither_config_nor_tokenizer(flags, tmp_path):
    with pytest.raises(UserError, match=r"are for \.pth files"):
        parse(tmp_path, *flags, "-o", "x.pth").run()


def test_a_source_or_tokenizer_that_is_not_there_is_named(save_pth, tmp_path):
    with pytest.raises(UserError, match=r"gone\.pth does not exist"):
        parse(tmp_path / "gone.pth", "-o", tmp_path / "folder").run()
    with pytest.raises(UserError, match=r"wrold"):
        parse(save_pth(tensors_of(FINCH)), "-o", tmp_path / "folder", "--tokenizer", "wrold").run()
    with pytest.raises(UserError, match="holds no model"):
        parse(tmp_path, "-o", tmp_path / "x.pth").run()


def test_the_command_imports_no_torch_before_it_runs():
    program = "import sys, goldfinch.cli.convert; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
