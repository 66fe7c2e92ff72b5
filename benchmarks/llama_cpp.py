"""llama.cpp from the xllamacpp wheel: the Llama of transformers in a GGUF file, timed by llama.cpp itself.

The wheel runs llama.cpp's server in this process. It answers completions with its own timings (`prompt_ms`,
`predicted_per_token_ms`) and with log-probabilities of as many tokens as requested.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llama import HEAD_SIZE, MAX_POSITIONS, NORM_EPS, ROPE_BASE, Shape, llama
from torch import Tensor

BATCH = 2048  # tokens; llama.cpp's defaults
FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
QUANTIZATION = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Names of a layer's weights in transformers and in GGUF files."""


class LlamaCpp:
    """A server for each context size; weights are mapped from one file, and so shared.

    Args:
        shape: of the model.
        folder: for the GGUF file, which is written if missing.
        flash_attention: whether to use flash attention.
    """

    def __init__(self, shape: Shape, folder: Path, flash_attention: bool) -> None:
        self.shape = shape
        self.flash_attention = flash_attention
        self._xllamacpp = importlib.import_module("xllamacpp")
        self._path = folder / "llama.gguf"
        if not self._path.exists():
            write_gguf(self._path, shape)
        reader = importlib.import_module("gguf").GGUFReader(self._path)
        self.weight_bytes = sum(int(part.n_bytes) for part in reader.tensors if part.name != "token_embd.weight")
        self._servers: dict[int, Any] = {}

    def _server(self, tokens: int) -> Any:
        """A server with room for this many tokens."""
        room = -(-tokens // BATCH) * BATCH
        if room not in self._servers:
            self._servers[room] = self._start(room)
        return self._servers[room]

    def _start(self, tokens: int) -> Any:
        attention = self._xllamacpp.llama_flash_attn_type
        params = server_params(self._path, tokens)
        params.flash_attn_type = (
            attention.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if self.flash_attention
            else attention.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        params.cache_ram_mib = 0  # prompts are cached only by their own server
        params.warmup = False
        return self._xllamacpp.Server(params)

    def _complete(self, server: Any, ids: Tensor, **options: Any) -> dict[str, Any]:
        request = {"prompt": ids.tolist(), "temperature": 0.0, "samplers": ["temperature"], "ignore_eos": True}
        answer = server.handle_completions(request | options)
        if "error" in answer:
            raise RuntimeError(f"llama.cpp: {answer['error']['message']}")
        return answer

    def log_probabilities(self, ids: Tensor) -> Tensor:
        """As `Peer`."""
        answer = self._complete(
            self._server(len(ids) + 1), ids, n_predict=1, n_probs=self.shape.vocab_size, cache_prompt=False
        )
        found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        result = torch.full((self.shape.vocab_size,), -torch.inf)
        result[[entry["id"] for entry in found]] = torch.tensor([entry["logprob"] for entry in found])
        return result

    def prefill_seconds(self, ids: Tensor) -> float:
        """As `Peer`."""
        answer = self._complete(self._server(len(ids) + 1), ids, n_predict=1, cache_prompt=False)
        if answer["timings"]["prompt_n"] != len(ids):
            raise RuntimeError(f"llama.cpp read {answer['timings']['prompt_n']} tokens instead of {len(ids)}")
        return answer["timings"]["prompt_ms"] / 1e3

    def decoder(self, ids: Tensor, tokens: int) -> Callable[[], float]:
        """As `Peer`. The text is read once, now; later calls find it in the server's memory."""
        server = self._start(len(ids) + tokens + 2)
        self._complete(server, ids, n_predict=1, cache_prompt=True)

        def write() -> float:
            # The first token comes from the prefill and is not in the timing.
            answer = self._complete(server, ids, n_predict=tokens + 1, cache_prompt=True)
            if answer["timings"]["prompt_n"] != 1 or answer["timings"]["predicted_n"] != tokens + 1:
                raise RuntimeError(f"llama.cpp did not reuse the prompt: {answer['timings']}")
            return answer["timings"]["predicted_per_token_ms"] / 1e3

        return write

    def release(self) -> None:
        """As `Peer`."""
        self._servers.clear()


def server_params(path: Path, tokens: int) -> Any:
    """Settings of a server on this machine's CPU: a GGUF file, with room for this many tokens."""
    params = importlib.import_module("xllamacpp").CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), tokens, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    params.n_gpu_layers = 0
    params.fit_params = False
    params.verbosity = -1
    return params


def write_gguf(path: Path, shape: Shape) -> None:
    """Write the Llama of transformers as a GGUF file."""
    gguf = importlib.import_module("gguf")
    kind = gguf.GGMLQuantizationType[QUANTIZATION[shape.dtype]]
    weights = llama(shape).state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[shape.dtype]])
    writer.add_context_length(MAX_POSITIONS)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.num_layers)
    writer.add_feed_forward_length(shape.channel_width)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_heads)
    writer.add_layer_norm_rms_eps(NORM_EPS)
    writer.add_rope_dimension_count(HEAD_SIZE)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_vocab_size(shape.vocab_size)
    _add_tokenizer(writer, gguf.TokenType, shape.vocab_size)

    def add(name: str, weight: Tensor) -> None:
        # llama.cpp needs norms in fp32.
        stored = gguf.GGMLQuantizationType.F32 if weight.ndim == 1 else kind
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight.float().numpy(), stored), raw_dtype=stored)

    add("token_embd", weights["model.embed_tokens.weight"])
    add("output_norm", weights["model.norm.weight"])
    add("output", weights["lm_head.weight"])
    for layer in range(shape.num_layers):
        for theirs, name in NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            add(f"blk.{layer}.{name}", _paired(weight, shape.num_heads) if name in ("attn_q", "attn_k") else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _paired(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a head from rotated pairs (i, i + N/2), as in transformers, to (2i, 2i + 1), as in GGUF."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape).contiguous()


def _add_tokenizer(writer: Any, types: Any, vocab_size: int) -> None:
    """The minimum that llama.cpp accepts: three special tokens, all bytes, and placeholder words."""
    special, first_word = ["<unk>", "<s>", "</s>"], 3 + 256
    words = [f"w{number}" for number in range(first_word, vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *(f"<0x{byte:02X}>" for byte in range(256)), *words])
    writer.add_token_scores([-float(number) for number in range(vocab_size)])
    kinds = [types.UNKNOWN, types.CONTROL, types.CONTROL, *[types.BYTE] * 256, *[types.NORMAL] * len(words)]
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
