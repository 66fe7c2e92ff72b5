"""`goldfinch cache`: what is in a file, as a user sees it."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import goldfinch as gf
from goldfinch.cli.main import run
from goldfinch.inference.context import Context
from goldfinch.inference.context_file import format as context_file
from goldfinch.inference.context_file.description import read_description, states_checksum

TEXT = "Call me Ishmael. Some years ago - never mind how long précisément - I thought I would sail about a little. "


@pytest.fixture
def book(small_run, tmp_path):
    """A file of two named documents, in blocks of 64 tokens, written by the model in `small_run`."""
    lm = gf.load(small_run)
    context = Context(lm.model, lm.tokenizer, "int8", model_folder=lm.folder, chunk_size=32, block_size=64)
    context.read(TEXT, name="loomings.txt")
    context.read("Etymology. Ishmael.", name="etymology.txt")
    context.read("No document.")
    context.save(tmp_path / "book.gfc")
    return tmp_path / "book.gfc", gf.load(small_run), context


def output_of(capsys, *args):
    code = run(["cache", *map(str, args)])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def test_info_tells_documents_sizes_and_what_rounding_changes(book, capsys):
    path, lm, context = book
    code, out, _ = output_of(capsys, "info", path)
    assert code == 0
    for shown in ("loomings.txt", "etymology.txt", f"{len(context):,}", "int8", "times the file", "same most likely"):
        assert shown in out
    _, out, _ = output_of(capsys, "info", path, "--json")
    content = json.loads(out)
    sizes = content["bytes"]
    assert content["num_tokens"] == len(context)
    assert sizes["file"] == path.stat().st_size
    assert sizes["transformer"] == len(context) * lm.config.num_layers * lm.config.width * 2 * 2
    # 16 numbers of a byte and a scale of two, an id of two; a checksum per block.
    width = lm.config.latent_width
    assert sizes["key_cache"] == len(context) * (width + 2 + 2) + 8 * -(-len(context) // 64)
    assert sizes["state"] == context.sequence.current_state().nbytes


def test_only_the_first_documents_are_named_unless_all_are_asked_for(small_run, tmp_path, capsys):
    context = gf.load(small_run).context()
    for number in range(12):
        context.read("x", name=f"file-{number}")
    context.save(tmp_path / "many.gfc")
    _, out, _ = output_of(capsys, "info", tmp_path / "many.gfc")
    assert "and 2 more" in out
    assert "file-11" not in out
    _, out, _ = output_of(capsys, "info", tmp_path / "many.gfc", "--all")
    assert "file-11" in out


def test_cat_prints_any_range_and_any_document(book, capsys):
    path, lm, context = book
    whole = lm.tokenizer.decode(context.ids())
    for options, expected in (
        ([], whole),
        (["--start-token", 5, "--stop-token", 90], whole.encode()[5:90].decode()),
        (["--document", "etymology.txt"], "Etymology. Ishmael."),
        (["--document", "etymology.txt", "--start-token", 11], "Ishmael."),
    ):
        assert output_of(capsys, "cat", path, *options)[:2] == (0, expected + "\n")
    code, _, message = output_of(capsys, "cat", path, "--document", "etymologie.txt")
    assert code == 2
    assert "did you mean etymology.txt?" in message
    assert output_of(capsys, "cat", path, "--start-token", 9, "--stop-token", 3)[0] == 2


def test_grep_finds_every_place_and_its_token(book, capsys):
    path, lm, context = book
    code, out, _ = output_of(capsys, "grep", path, "Ishmael")
    assert code == 0
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["loomings.txt", "etymology.txt"]
    for line in lines:
        position = int(line.split(":")[1])
        assert lm.tokenizer.decode(context.ids(position, position + 7)) == "Ishmael"
    assert "Call me Ishmael. Some years" in lines[0]
    assert output_of(capsys, "grep", path, "ishmael")[0] == 1
    assert len(output_of(capsys, "grep", path, "ishmael", "-i")[1].splitlines()) == 2
    # Across characters of several bytes, and outside of all documents.
    assert "précisément" in output_of(capsys, "grep", path, "cisé", "--context", "5")[1]
    assert output_of(capsys, "grep", path, "No document")[1].startswith(f"{len(context) - 12}: ")
    code, _, message = output_of(capsys, "grep", path, "Ahab")
    assert (code, "'Ahab' is not in" in message) == (1, True)
    assert output_of(capsys, "grep", path, "")[0] == 2


def test_verify_reads_random_blocks_again(book, capsys):
    path, _, context = book
    code, out, _ = output_of(capsys, "verify", path, "--blocks", 9)
    assert code == 0
    assert "checksums match" in out
    assert f"recomputed latents of {len(context):,} tokens" in out


def test_verify_finds_what_checksums_cannot(book, capsys):
    path, _, _ = book
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    tensors["latents.00001"][7] = -tensors["latents.00001"][7]
    damaged = path.with_name("damaged.gfc")
    save_file(tensors, damaged, metadata)
    assert output_of(capsys, "verify", damaged, "--blocks", 0)[0] == 2
    # With a checksum that fits, only the model can tell.
    stored = context_file.open_key_cache(damaged, read_description(damaged))
    tensors["checksums"] = torch.tensor([stored.checksum(block) for block in range(stored.num_blocks)])
    others = {n: tensor for n, tensor in tensors.items() if n[:4] not in ("ids.", "late", "scal")}
    metadata["checksum"] = str(states_checksum(metadata["description"], others))
    save_file(tensors, damaged, metadata)
    assert output_of(capsys, "verify", damaged, "--blocks", 0)[0] == 0
    code, _, message = output_of(capsys, "verify", damaged, "--blocks", 9)
    assert code == 2
    assert "the latents of token 71 are not what the model computes from the text" in message


def test_without_the_models_folder_it_says_how_to_give_it(book, capsys, small_run):
    path, _, _ = book
    away = path.with_name("elsewhere")
    path.with_name(small_run).rename(away)
    assert output_of(capsys, "info", path)[0] == 0
    assert output_of(capsys, "verify", path, "--blocks", 0)[0] == 0
    code, _, message = output_of(capsys, "cat", path)
    assert code == 2
    assert "-m" in message
    assert output_of(capsys, "cat", path, "-m", away, "--stop-token", 4)[1] == "Call\n"
    assert output_of(capsys, "verify", path, "-m", away)[0] == 0


def test_a_range_beyond_the_end_is_named_in_words(book, goldfinch):
    error = goldfinch("cache", "cat", book[0], "--start-token", 10**9, code=2).err
    assert "no tokens 1000000000 to the end: the range is 0 to" in error
