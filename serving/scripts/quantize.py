#!/usr/bin/env python3
"""Make the bundled models: a Hugging Face folder in, a GGUF file of 8-bit weights and its golden answers out.

    pip install numpy tokenizers
    python quantize.py SOURCE_FOLDER serving/models/mini
    python quantize.py SOURCE_FOLDER serving/models/mini-draft

SOURCE_FOLDER holds a Llama model: config.json, model.safetensors, tokenizer.json, tokenizer_config.json and golden.json.
The output folder gets

- model.gguf: GGUF version 3 as llama.cpp writes it for `general.architecture = llama`. Matrices are Q8_0, norms F32, and
  the rows of the query and key projections are permuted to the interleaved rotary layout. The vocabulary is not inside
  (`tokenizer.ggml.model = no_vocab`): it stays in tokenizer.json.
- tokenizer.json, tokenizer_config.json: copies.
- golden.json: for each prompt of the source's golden.json, 24 greedy tokens (going on past the end token) and the five
  largest logits at the last prompt position, in float32, for the weights *after* rounding to 8 bits.

The float32 forward pass below is plain numpy. Before it is trusted with the rounded weights it must reproduce the source's
golden.json, which transformers computed, from the source's weights: the script stops if a logit differs by more than 0.002
or a greedy token differs.
"""

import argparse
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

GREEDY_TOKENS = 24
LOGIT_TOLERANCE = 2e-3
BLOCK = 32  # values that share a scale in Q8_0
ALIGNMENT = 32  # of tensor data in a GGUF file
F32, Q8_0 = 0, 8  # ggml tensor types
MOSTLY_Q8_0 = 7  # llama.cpp's general.file_type


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="Hugging Face folder")
    parser.add_argument("target", type=Path, help="folder to write")
    args = parser.parse_args()

    config = json.loads((args.source / "config.json").read_text())
    weights = read_safetensors(args.source / "model.safetensors")
    golden = json.loads((args.source / "golden.json").read_text())
    tokenizer = Tokenizer.from_file(str(args.source / "tokenizer.json"))
    check(Llama(config, weights), golden)

    args.target.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(args.source / name, args.target / name)

    blocks = {name: quantize(tensor) for name, tensor in weights.items() if tensor.ndim == 2}
    write_gguf(args.target / "model.gguf", args.target.name, config, weights, blocks)
    rounded = {name: dequantize(*blocks[name]) if name in blocks else tensor for name, tensor in weights.items()}
    answers = [answer(Llama(config, rounded), tokenizer, item) for item in golden]
    (args.target / "golden.json").write_text(json.dumps(answers, ensure_ascii=False, indent=0))
    same = sum(a["greedy"] == b["greedy"] for a, b in zip(answers, golden))
    print(f"{args.target}: {same} of {len(golden)} greedy answers are those of the unrounded weights")


# Reading.


def read_safetensors(path):
    """All tensors of a bf16 or f32 safetensors file, as float32."""
    data = path.read_bytes()
    (header_len,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + header_len])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + header_len + offset for offset in entry["data_offsets"])
        raw = data[start:end]
        if entry["dtype"] == "BF16":
            values = (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
        elif entry["dtype"] == "F32":
            values = np.frombuffer(raw, "<f4")
        else:
            sys.exit(f"{path}: {name} is {entry['dtype']}; only BF16 and F32 are read")
        tensors[name] = values.reshape(entry["shape"])
    return tensors


# Rounding to 8 bits.


def quantize(tensor):
    """Q8_0: blocks of 32 values along a row, an f16 scale and 32 signed bytes each."""
    blocks = tensor.reshape(*tensor.shape[:-1], -1, BLOCK)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    scaled = blocks * inverse
    quants = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8)
    return scale.astype(np.float16), quants


def dequantize(scale, quants):
    """The float32 values that Q8_0 blocks stand for."""
    values = scale.astype(np.float32) * quants.astype(np.float32)
    return values.reshape(*values.shape[:-2], -1)


# Writing GGUF.

GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outer:
        return outer[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def interleave(array, heads):
    """Rows of each head from the two halves that transformers rotates to the pairs that llama.cpp rotates."""
    rest = array.shape[1:]
    return array.reshape(heads, 2, -1, *rest).swapaxes(1, 2).reshape(array.shape)


def metadata(name, config):
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.license": "cc-by-nc-4.0",
        "general.alignment": ALIGNMENT,
        "general.file_type": MOSTLY_Q8_0,
        "general.quantization_version": 2,
        "llama.vocab_size": config["vocab_size"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": config["hidden_size"],
        "llama.block_count": config["num_hidden_layers"],
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.key_length": head_dim,
        "llama.attention.value_length": head_dim,
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.dimension_count": head_dim,
        "llama.rope.freq_base": float(config["rope_theta"]),
        "tokenizer.ggml.model": "no_vocab",
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }


def gguf_string(text):
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def gguf_value(value):
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_string(value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<II", 4, value)


def pad(length):
    return b"\0" * (-length % ALIGNMENT)


def write_gguf(path, name, config, weights, blocks):
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    infos, data = [], bytearray()
    for tensor_name, tensor in weights.items():
        if tensor_name in blocks:
            packed = np.dtype([("scale", "<f2"), ("quants", "i1", BLOCK)])
            scale, quants = blocks[tensor_name]
            rows = np.empty(quants.shape[:-1], packed)
            rows["scale"], rows["quants"] = scale[..., 0], quants
            projection = tensor_name.split(".")[-2]
            raw, kind = (interleave(rows, heads[projection]) if projection in heads else rows).tobytes(), Q8_0
        else:
            raw, kind = tensor.astype("<f4").tobytes(), F32
        shape = struct.pack(f"<I{tensor.ndim}Q", tensor.ndim, *reversed(tensor.shape))
        infos.append(gguf_string(gguf_name(tensor_name)) + shape + struct.pack("<IQ", kind, len(data)))
        data += raw + pad(len(raw))

    keys = metadata(name, config)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(keys))
    head += b"".join(gguf_string(key) + gguf_value(value) for key, value in keys.items()) + b"".join(infos)
    path.write_bytes(head + pad(len(head)) + data)


# The decoder in float32.


class Llama:
    """A Llama decoder over one sequence, with a KV cache."""

    def __init__(self, config, weights):
        self.config, self.weights = config, weights
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_dim = config.get("head_dim") or config["hidden_size"] // self.heads
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim)
        self.frequencies = (1 / np.float32(config["rope_theta"]) ** exponents).astype(np.float32)
        self.cache = [None] * config["num_hidden_layers"]

    def __call__(self, tokens):
        """Runs tokens that follow those seen so far; returns the logits after the last one."""
        weights = self.weights
        hidden = weights["model.embed_tokens.weight"][tokens]
        for layer in range(len(self.cache)):
            prefix = f"model.layers.{layer}."
            hidden = hidden + self.attention(layer, self.norm(hidden, prefix + "input_layernorm"))
            normed = self.norm(hidden, prefix + "post_attention_layernorm")
            gate = normed @ weights[prefix + "mlp.gate_proj.weight"].T
            up = normed @ weights[prefix + "mlp.up_proj.weight"].T
            hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ weights[prefix + "mlp.down_proj.weight"].T
        head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
        return self.norm(hidden[-1:], "model.norm")[0] @ head.T

    def norm(self, x, name):
        variance = np.mean(x * x, -1, keepdims=True, dtype=np.float32)
        return x / np.sqrt(variance + np.float32(self.config["rms_norm_eps"])) * self.weights[name + ".weight"]

    def attention(self, layer, x):
        projections = (self.project(layer, x, name) for name in ("q_proj", "k_proj", "v_proj"))
        query, key, value = projections
        past = 0 if self.cache[layer] is None else self.cache[layer][0].shape[1]
        positions = np.arange(past, past + len(x), dtype=np.float32)
        query, key = self.rotate(query, positions), self.rotate(key, positions)
        if past:
            key = np.concatenate([self.cache[layer][0], key], 1)
            value = np.concatenate([self.cache[layer][1], value], 1)
        self.cache[layer] = key, value

        group = self.heads // self.kv_heads
        scores = query @ key.repeat(group, 0).swapaxes(1, 2) / np.sqrt(np.float32(self.head_dim))
        future = np.arange(key.shape[1])[None, :] > positions[:, None]
        scores = np.where(future, -np.inf, scores).astype(np.float32)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ value.repeat(group, 0)
        mixed = mixed.swapaxes(0, 1).reshape(len(x), -1)
        return mixed @ self.weights[f"model.layers.{layer}.self_attn.o_proj.weight"].T

    def project(self, layer, x, name):
        """[heads, tokens, head_dim]"""
        y = x @ self.weights[f"model.layers.{layer}.self_attn.{name}.weight"].T
        return y.reshape(len(x), -1, self.head_dim).swapaxes(0, 1)

    def rotate(self, x, positions):
        angles = positions[:, None] * self.frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        first, second = np.split(x, 2, -1)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


# Golden answers.


def answer(model, tokenizer, item):
    """The golden record of one prompt; `model` must be fresh."""
    logits = model(item["ids"])
    top = np.argsort(-logits, kind="stable")[:5]
    greedy = [int(top[0])]
    while len(greedy) < GREEDY_TOKENS:
        greedy.append(int(model(greedy[-1:]).argmax()))
    return {
        "task": item["task"],
        "prompt": item["prompt"],
        "ids": item["ids"],
        "greedy": greedy,
        "text": tokenizer.decode(greedy, skip_special_tokens=False),
        "top5": [[int(token), float(logits[token])] for token in top],
    }


def check(model, golden):
    """Stops unless the forward pass gives the source's golden answers."""
    worst = 0.0
    for number, item in enumerate(golden):
        model.cache = [None] * len(model.cache)
        logits = model(item["ids"])
        worst = max(worst, *(abs(float(logits[token]) - value) for token, value in item["top5"]))
        for step, token in enumerate(item["greedy"]):
            if int(logits.argmax()) != token:
                sys.exit(f"golden answer {number}: token {step} is {int(logits.argmax())}, transformers gave {token}")
            logits = model([token])
    if worst > LOGIT_TOLERANCE:
        sys.exit(f"a logit differs from that of transformers by {worst}")
    print(f"forward pass agrees with transformers: largest logit difference {worst:.1e}")


if __name__ == "__main__":
    main()
