#!/usr/bin/env python3
"""Put the tokenizer of a bundled model into its GGUF file, so that other programs can serve it.

    pip install gguf 'llama-cpp-python[server]'
    python mini_gguf.py serving/models/mini mini.gguf
    python -m llama_cpp.server --model mini.gguf --n_ctx 2048 --logits_all true --interrupt_requests false --port 8000

The bundled files have no vocabulary inside. The tokenizer is a byte-level BPE whose text is split as Qwen2's is, one digit at a
time, so llama.cpp reads it as `gpt2` with the pre-tokenizer `qwen2`.
"""

import argparse
import json
from pathlib import Path

from gguf import GGUFReader, GGUFValueType, GGUFWriter, TokenType


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of a bundled model")
    parser.add_argument("target", type=Path, help="GGUF file to write")
    args = parser.parse_args()

    reader = GGUFReader(args.source / "model.gguf")
    writer = GGUFWriter(args.target, "llama")
    copy_fields(reader, writer)
    add_tokenizer(writer, args.source)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def copy_fields(reader, writer):
    """Copies what describes the model; the writer makes the header's own fields, and the tokenizer's come from elsewhere."""
    made = ("GGUF.", "general.architecture", "general.alignment", "tokenizer.")
    for name, field in reader.fields.items():
        if not name.startswith(made):
            kind = field.types[0]
            assert kind != GGUFValueType.ARRAY, name
            writer.add_key_value(name, field.contents(), kind)


def add_tokenizer(writer, folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    tokens = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens.update(special)
    numbers = {text: number for number, text in tokens.items()}

    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([tokens[number] for number in range(len(tokens))])
    writer.add_token_types([TokenType.CONTROL if number in special else TokenType.NORMAL for number in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(numbers[config["bos_token"]])
    writer.add_eos_token_id(numbers[config["eos_token"]])
    writer.add_pad_token_id(numbers[config["pad_token"]])
    # The chat template writes the first token itself.
    writer.add_add_bos_token(False)
    writer.add_chat_template(config["chat_template"])


if __name__ == "__main__":
    main()
