"""`goldfinch export gguf`, judged by llama.cpp: the same tokens, the same logits, and what it cannot run is refused."""

import json
import shlex
import subprocess
import sys
import urllib.request
from pathlib import Path

import gguf
import pytest
import tokenizers
import torch

from goldfinch.checkpoint.convert import export_reference
from goldfinch.checkpoint.gguf import FORMATS, export_gguf, gguf_tensors
from goldfinch.checkpoint.model_folder import save_model_folder
from goldfinch.cli.main import run
from goldfinch.config import ModelConfig
from goldfinch.data.chat_template import ChatTemplate
from goldfinch.data.moby_dick import moby_dick
from goldfinch.data.tokenizers import BpeTokenizer, ByteTokenizer, Tokenizer, WorldTokenizer
from goldfinch.errors import UserError
from goldfinch.model import Decoder

PARAGRAPHS = json.loads(
    (Path(__file__).parents[1] / "data" / "tokenizers" / "paragraphs.json").read_text(encoding="utf-8")
)
NAMES_OF_TOKENS = "<s>struck</s> <|endoftext|> [unused 65530] \\xff<|endoftext|> \\x41 \\n"
TEXT = "Call me Ishmael. — Зовите меня Измаил. 我叫以实玛利。 🐳 café\n\n\tx = [1, 2]\n"
WORLD = WorldTokenizer()


# In a process of its own that is killed in the end: stopping this server from within can wait for itself for ever.
SERVER = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel, params.n_gpu_layers = 512, 1, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.cache_ram_mib = 0  # a prompt continues what the slot has read, and nothing else
params.fit_params = params.warmup = False
params.use_jinja = True
params.verbosity = -1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


class LlamaCpp:
    """llama.cpp's server for one file."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._address = self._process.stdout.readline().strip()
        assert self._address, "llama.cpp did not start"

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, path: str, **request: object) -> dict:
        """One of its services."""
        url, headers = self._address + path, {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(request).encode(), headers)) as answer:
            return json.load(answer)

    def log_probabilities(self, ids: list[int], number: int) -> tuple[dict[int, float], int]:
        """Of so many tokens after `ids`, the most likely ones, and how many of `ids` were read anew."""
        # Some token has to follow. One with a text of its own: probabilities of half a character are held back.
        follow = {"n_predict": 1, "logit_bias": [[ids[0], 1e9]], "temperature": 0.0, "samplers": ["temperature"]}
        answer = self.ask("/completion", prompt=ids, n_probs=number, cache_prompt=True, ignore_eos=False, **follow)
        found = answer["completion_probabilities"][0]["top_logprobs"]
        return {entry["id"]: entry["logprob"] for entry in found}, answer["timings"]["prompt_n"]

    def encode(self, text: str) -> list[int]:
        return self.ask("/tokenize", content=text, add_special=True, parse_special=False)["tokens"]

    def decode(self, ids: list[int]) -> str:
        return self.ask("/detokenize", tokens=ids)["content"]


@pytest.fixture
def llama_cpp():
    """llama_cpp(path) -> llama.cpp with this file."""
    started = []

    def start(path: Path) -> LlamaCpp:
        started.append(LlamaCpp(path))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return BpeTokenizer.train([moby_dick()[:100_000], *PARAGRAPHS], 1000)


@pytest.fixture
def finch(small_model):
    """finch(**sizes) -> a Finch without neutral weights, fp32, of two layers unless told otherwise."""

    def make(**sizes) -> Decoder:
        return small_model(ModelConfig(**{"width": 128, "time_mixes": ("finch",) * 2} | sizes), torch.float32)

    return make


@pytest.fixture
def folder(finch, tmp_path):
    """folder(tokenizer, dtype, **sizes) -> a model folder with such a Finch."""

    def save(tokenizer: Tokenizer | None, dtype=torch.float32, chat_template=None, **sizes) -> Path:
        model = finch(**{"vocab_size": tokenizer.vocab_size if tokenizer else 257} | sizes).to(dtype)
        path = tmp_path / "finch"
        save_model_folder(path, model.config, model.state_dict(), tokenizer, chat_template, overwrite=True)
        return path

    return save


def refused(source: Path, output: Path, message: str, dtype: str = "auto") -> None:
    """Exporting fails with this message, and no file is there afterwards, whole or half."""
    before = sorted(output.parent.iterdir())
    with pytest.raises(UserError, match=message) as caught:
        export_gguf(source, output, dtype)
    assert "\n" not in str(caught.value)
    assert sorted(output.parent.iterdir()) == before


# --- llama.cpp -------------------------------------------------------------------------------------------------------


# How far log-probabilities may be off, relative to the standard deviation of the logits. llama.cpp rounds the inputs of
# products with matrices to the type of the matrix, so that the low ones are off by more than their weights are.
TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 4e-2, "q8_0": 0.1}


@pytest.mark.parametrize("dtype", TOLERANCES)
@torch.inference_mode()
def test_llama_cpp_has_our_logits_for_a_whole_prompt_and_token_by_token(dtype, folder, finch, tmp_path, llama_cpp):
    export_gguf(folder(WORLD), tmp_path / "finch.gguf", dtype)
    judge, ids = llama_cpp(tmp_path / "finch.gguf"), WORLD.encode(TEXT)
    logits = finch(vocab_size=WORLD.vocab_size)(torch.tensor([ids]))[0][0]
    tolerance = TOLERANCES[dtype] * float(logits.std())
    expected = logits.log_softmax(-1)

    def check(length: int, number: int) -> int:
        found, read = judge.log_probabilities(ids[:length], number)
        assert len(found) == number
        actual = torch.tensor(list(found.values()))
        torch.testing.assert_close(actual, expected[length - 1, list(found)], rtol=0, atol=tolerance)
        return read

    assert check(len(ids), WORLD.vocab_size) == len(ids)
    reads = [check(length, 1000) for length in range(1, len(ids))]
    assert reads == [1] * len(reads)


@pytest.mark.parametrize("name", ["world", "bytes", "bpe"])
def test_llama_cpp_reads_and_writes_the_same_tokens(name, bpe, folder, tmp_path, llama_cpp):
    tokenizer = {"world": WORLD, "bytes": ByteTokenizer(), "bpe": bpe}[name]
    # More ids than the tokenizer has, as in models that round their vocabulary up.
    sizes = {} if name == "world" else {"vocab_size": tokenizer.vocab_size + 7}
    export_gguf(folder(tokenizer, **sizes), tmp_path / "finch.gguf")
    judge = llama_cpp(tmp_path / "finch.gguf")
    for text in (*PARAGRAPHS, "\n\n".join(PARAGRAPHS), moby_dick()[:20_000], NAMES_OF_TOKENS, "<s>", " ", ""):
        ids = tokenizer.encode(text)
        assert judge.encode(text) == ids
        assert judge.decode(ids) == text


def test_llama_cpp_has_the_bytes_of_every_world_token(folder, tmp_path, llama_cpp):
    export_gguf(folder(WORLD, time_mixes=("finch",), width=64), tmp_path / "finch.gguf")
    judge = llama_cpp(tmp_path / "finch.gguf")
    pieces = {id: WORLD.token_bytes(id).decode(errors="ignore") for id in range(WORLD.vocab_size)}
    texts = {id: piece for id, piece in pieces.items() if piece.encode() == WORLD.token_bytes(id) != b""}
    assert len(texts) > 65_000
    assert judge.decode(list(texts)) == "".join(texts.values())
    split = [
        id for id in range(1, 65_530) if id not in texts
    ]  # parts of characters, which the server writes as numbers
    for text in ("龘", "🐳", "𐍈", "Ǆ", "\u0379"):
        found = judge.ask("/tokenize", content=text, with_pieces=True)["tokens"]
        assert any(token["id"] in split for token in found), text
        assert b"".join(bytes(token["piece"]) for token in found) == text.encode()


def test_added_tokens_of_a_bpe_are_found_in_text(bpe, folder, tmp_path, llama_cpp):
    tokenizer = with_added_token(bpe)
    text = "if x:\n" + " " * 20 + "y()"
    assert bpe.vocab_size in tokenizer.encode(text)
    export_gguf(folder(tokenizer), tmp_path / "finch.gguf")
    judge = llama_cpp(tmp_path / "finch.gguf")
    assert judge.encode(text) == tokenizer.encode(text)
    assert judge.decode(tokenizer.encode(text)) == text


def with_added_token(bpe: BpeTokenizer, **flags: bool) -> BpeTokenizer:
    """The same with a token of eight spaces, which is no special token."""
    backend = bpe.to_backend()
    backend.add_tokens([tokenizers.AddedToken(" " * 8, normalized=False, **flags)])
    return BpeTokenizer(backend)


@pytest.mark.parametrize(
    "template",
    [
        ChatTemplate(),
        ChatTemplate("{% for m in messages %}{{ bos_token }}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"),
    ],
    ids=["names", "special tokens"],
)
def test_llama_cpp_writes_conversations_as_we_do(template, folder, tmp_path, llama_cpp):
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ahab."}]
    messages.append({"role": "user", "content": "Where?"})
    export_gguf(folder(ByteTokenizer(), chat_template=template), tmp_path / "finch.gguf")
    prompt = llama_cpp(tmp_path / "finch.gguf").ask("/apply-template", messages=messages)["prompt"]
    assert prompt == template.render(messages)


# --- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=["of fp32", "of bf16"])
@pytest.mark.parametrize("dtype", FORMATS)
def test_every_number_is_stored_as_near_as_the_dtype_allows(dtype, stored, folder, finch, tmp_path):
    export_gguf(folder(ByteTokenizer(), stored), tmp_path / "finch.gguf", dtype)
    model = finch(vocab_size=257).to(stored)
    tensors = {tensor.name: tensor for tensor in gguf_tensors(model.state_dict(), model.config)}
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "finch.gguf").tensors}
    assert read.keys() == tensors.keys()
    numbers = 0
    for name, tensor in tensors.items():
        found = torch.from_numpy(gguf.quants.dequantize(read[name].data, read[name].tensor_type).copy())
        expected = tensor.tensor.float()
        numbers += found.numel()
        assert read[name].tensor_type.name == (FORMATS[dtype].matrices.name if tensor.is_matrix else "F32")
        if not tensor.is_matrix:
            assert torch.equal(found, expected)
        elif dtype == "q8_0":  # half a step, and what rounding the scale to float16 moves the largest by
            largest = expected.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True).expand(-1, -1, 32).flatten(-2)
            assert ((found - expected).abs() <= largest * (0.5 / 127 + 2**-11)).all()
        else:
            assert torch.equal(found, expected.to(getattr(torch, dtype)).float())
    assert numbers == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("stored", "wanted"),
    [(torch.float32, "float32"), (torch.bfloat16, "bfloat16"), (torch.float16, "float16"), (torch.float64, "float32")],
    ids=str,
)
def test_by_default_the_dtype_is_the_models(stored, wanted, folder, tmp_path):
    exported = export_gguf(folder(ByteTokenizer(), stored), tmp_path / "finch.gguf")
    assert (exported.dtypes, exported.tokenizer) == ((wanted,), "bytes")


def test_a_pth_gives_the_same_file_as_the_folder(folder, tmp_path):
    export_reference(folder(ByteTokenizer(), torch.bfloat16, ChatTemplate()), tmp_path / "finch.pth")
    export_gguf(tmp_path / "finch", tmp_path / "of_folder.gguf")
    export_gguf(tmp_path / "finch.pth", tmp_path / "of_pth.gguf")
    assert (tmp_path / "of_folder.gguf").read_bytes() == (tmp_path / "of_pth.gguf").read_bytes()


def test_nothing_is_replaced_without_overwrite_or_by_half_a_file(folder, tmp_path, monkeypatch):
    source, output = folder(ByteTokenizer()), tmp_path / "finch.gguf"
    output.write_text("precious")
    refused(source, output, r"finch\.gguf exists: choose another name, or give --overwrite")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
        with pytest.raises(UserError, match=r"cannot write .*finch\.gguf: No space left on device"):
            export_gguf(source, output, overwrite=True)
    assert output.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["finch", "finch.gguf"]
    export_gguf(source, output, overwrite=True)
    assert output.read_bytes().startswith(b"GGUF")


# --- what cannot be exported -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "layers"),
    [
        ({"time_mixes": ("finch_c2", "gold")}, "finch_c2 and gold layers"),
        ({"time_mixes": ("finch", "gold")}, "gold layers"),
        ({"time_mixes": ("llama", "llama"), "channel_mix": "swiglu"}, "llama layers"),
        ({"channel_mix": "swiglu"}, "the channel mix swiglu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_kinds_are_refused(sizes, layers, folder, tmp_path):
    message = f"finch has {layers}, for which llama.cpp has no architecture: only models whose layers are all finch"
    refused(folder(ByteTokenizer(), **sizes), tmp_path / "model.gguf", message)


def test_sizes_that_llama_cpp_does_not_have_are_refused(folder, tmp_path):
    source = folder(ByteTokenizer(), head_size=32)
    refused(source, tmp_path / "model.gguf", r"heads of 32 channels; llama\.cpp's kernels are for 64")
    source = folder(ByteTokenizer(), channel_width=200)
    refused(
        source, tmp_path / "model.gguf", "channel mix of width 200, no multiple of the 32 numbers that Q8_0", "q8_0"
    )
    export_gguf(source, tmp_path / "model.gguf", "float16")


def test_a_model_without_a_tokenizer_is_refused(folder, tmp_path):
    refused(folder(None), tmp_path / "model.gguf", r"finch has no tokenizer, .* add its tokenizer\.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"pre_tokenizer": {"use_regex": False}},
            "only those that split like GPT-2's",
        ),
        ({"model": {"ignore_merges": True}}, r"finch: tokenizer\.json sets ignore_merges, which GPT-2's BPE lacks"),
    ],
    ids=["words", "merges"],
)
def test_a_bpe_that_llama_cpp_would_read_otherwise_is_refused(change, message, bpe, folder, tmp_path):
    content = {
        name: part | change.get(name, {}) if isinstance(part, dict) else part
        for name, part in json.loads(bpe.to_backend().to_str()).items()
    }
    tokenizer = BpeTokenizer(tokenizers.Tokenizer.from_str(json.dumps(content)))
    refused(folder(tokenizer), tmp_path / "model.gguf", message)


def test_an_added_token_with_conditions_is_refused(bpe, folder, tmp_path):
    source = folder(with_added_token(bpe, single_word=True))
    refused(source, tmp_path / "model.gguf", r"tokenizer\.json sets single_word")


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (7e4, "float16", r"blk\.1\.time_mix_gate\.weight has the value 70000, and F16 ends at 65504: choose another"),
        (1e7, "q8_0", r"time_mix_gate\.weight has the value 1e\+07, and Q8_0 ends at 8\.3"),
        (float("nan"), "float32", "has the value nan, .* the weights are damaged"),
        (float("-inf"), "q8_0", "has the value inf, .* the weights are damaged"),
    ],
    ids=str,
)
def test_numbers_that_the_file_cannot_hold_are_refused(value, dtype, message, finch, tmp_path):
    model = finch(vocab_size=257)
    model.blocks[1].time_mix.gate.weight[3, 5] = value
    save_model_folder(tmp_path / "finch", model.config, model.state_dict(), ByteTokenizer())
    refused(tmp_path / "finch", tmp_path / "model.gguf", message, dtype)


def test_names_and_dtypes_are_checked_first(tmp_path):
    refused(tmp_path / "nosuch", tmp_path / "model.bin", r"model\.bin must end in \.gguf")
    refused(tmp_path / "nosuch", tmp_path / "model.gguf", r"unknown dtype 'q4_0' .* use auto, float32, .* q8_0", "q4_0")


# --- command line ----------------------------------------------------------------------------------------------------


def test_the_command_prints_how_to_run_the_file(folder, tmp_path, capsys):
    source, output = folder(ByteTokenizer()), tmp_path / "a file.gguf"
    assert run(["export", "gguf", str(source), "-o", str(output), "--dtype", "q8_0"]) == 0
    shown = capsys.readouterr().out
    assert "layers:     2 finch; width 128, vocabulary 257" in shown
    assert "in q8_0" in shown
    assert f"wrote {output} with the bytes tokenizer" in shown
    command = shlex.split(shown.partition("next: ")[2])
    assert command[:3] == ["llama-completion", "-m", str(output)]
    assert run(["export", "gguf", str(source), "-o", str(output)]) == 2
    assert run(["export", "gguf", str(source), "-o", str(output), "--overwrite"]) == 0


def test_without_the_package_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.delitem(sys.modules, "goldfinch.checkpoint.gguf")
    assert run(["export", "gguf", str(tmp_path), "-o", str(tmp_path / "finch.gguf")]) == 2
    assert capsys.readouterr().err.endswith("pip install 'goldfinch[gguf]'\n")
