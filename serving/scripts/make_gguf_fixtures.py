#!/usr/bin/env python3
"""Make the fixtures of serving/tests/gguf.rs: small GGUF files and what others compute from them.

    pip install torch transformers sentencepiece tokenizers gguf
    python serving/scripts/make_gguf_fixtures.py fixtures serving/tests/gguf [NAME...]
    python serving/scripts/make_gguf_fixtures.py vocabularies FOLDER_OF_GGUF_FILES OUT [TEXT_FILE]
    python serving/scripts/make_gguf_fixtures.py mini serving/models/mini OUT

- fixtures: blocks.json holds raw blocks of every type and the values that the gguf package gives them. Each NAME.gguf is a
  random decoder with tokenizer and chat template inside; NAME.json holds texts with the tokens of the library that trained
  the tokenizer (sentencepiece or tokenizers), and prompts with the logits and greedy tokens of transformers, computed from
  the rounded weights in float32. If llama_cpp is installed, its tokens must be the same. With names, only those are made:
  tokenizers are trained on the sources of this tree, so that files made later hold others.
- vocabularies: for each GGUF file with a vocabulary, a file with that vocabulary and one layer of zeros, which can be loaded,
  and texts with the tokens of llama_cpp. REFRAIN_GGUF=OUT cargo test -p refrain-serving --test gguf compares.
- mini: the bundled model in other types with its tokenizer inside, quantised by llama_cpp; for the same test.
"""

import argparse
import ctypes
import json
import random
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import quants

ROOT = Path(__file__).resolve().parents[2]
SEED = 7

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CONTROLS = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"]

# Texts that tell tokenizers apart: space, digits, signs, contractions, scripts, accents that combine, emoji, control tokens.
TEXTS = [
    "", " ", "  ", "   ", "    ", "     ", "\t", "\n", "\n\n", "\n\n\n", " \n", "\n ", "\t\n", "\r\n", " \t ", "a  b   c    d",
    "Hello", "Hello world", " Hello world", "Hello, world!", "HELLO WORLD", "hello\nworld", "hello \n world", "hello\n\n\nworld",
    "I'm you're we'll they've he'd it's", "I'M YOU'RE WE'LL", "don't", "'tis", "''''''", "rock 'n' roll",
    "0", "12", "123", "1234", "12345", "1234567890", "3.14159", "1,000,000", "2024-07-26T12:34:56Z", "a1b22c333d4444",
    "fn main() {\n    let x = vec![1, 2, 3];\n\tprintln!(\"{:?}\", x);\n}\n",
    "SELECT ai_filter('good?', review) FROM reviews WHERE id <> 7 LIMIT 5;", "{\"key\": [1, 2.5, null], \"other\": \"value\"},",
    "https://example.org/path?query=1&other=%20#top", "user@example.org", "C:\\Users\\name\\file.txt", "snake_case camelCase",
    "!!!???...;;;:::---___", "(parens) [brackets] {braces} <angles>", "$100 €50 £20 ¥1000", "a+b=c; a*b/c^d%e|f&g~h`i",
    "naïve café résumé", "nai\u0308ve cafe\u0301", "Größe Straße", "ñandú", "Привет, мир!", "Ελληνικά κείμενα", "שלום עולם",
    "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "こんにちは世界", "カタカナ", "你好，世界！", "안녕하세요 세계", "ភាសាខ្មែរ",
    "🦙", "🦙🦙 llamas 👍🏽 👨‍👩‍👧‍👦 🇩🇪", "mixed 你好 and 🦙 and Привет 123", "½ ⅓ ² ³ ① Ⅷ", "\u00a0non\u00a0breaking", "\u200bzero width",
    "\ufeffmark", "\u2028line\u2029paragraph", "\u3000wide", "\u0000null", "\x1b[31mred", "ﬁ ligature", "ＦＵＬＬ　ｗｉｄｔｈ",
    "▁underline▁", "Ġbyte alphabet", "<0x41>", "<s>", "</s>", "<unk>", "<|user|>", "<|end|>x", "text <|assistant|> more",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abababababab", "        indented\n            more\n    less\n", "tab\tseparated\tvalues\n",
    "The quick brown fox jumps over the lazy dog.", "A device runs the plan; the scheduler makes it. Each row has its tokens.",
]  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("fixtures")
    command.add_argument("out", type=Path)
    command.add_argument("names", nargs="*", help="all otherwise")
    command.set_defaults(run=lambda args: fixtures(args.out, args.names))
    command = commands.add_parser("vocabularies")
    command.add_argument("folder", type=Path)
    command.add_argument("out", type=Path)
    command.add_argument("texts", type=Path, nargs="?", help="JSON list of further texts")
    command.set_defaults(run=lambda args: vocabularies(args.folder, args.out, args.texts))
    command = commands.add_parser("mini")
    command.add_argument("folder", type=Path)
    command.add_argument("out", type=Path)
    command.set_defaults(run=lambda args: mini(args.folder, args.out))
    args = parser.parse_args()
    args.run(args)


# Blocks.


def blocks():
    """Raw blocks of random bytes with scales of ordinary size, and their values."""
    rng = np.random.default_rng(SEED)
    scales = {
        "F32": [], "F16": [], "BF16": [], "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
        "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    }  # fmt: skip
    found = {}
    for name, places in scales.items():
        kind = Type[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        count = max(1, 256 // values) if values > 1 else 16
        raw = rng.integers(0, 256, (count, size), dtype=np.uint8)
        if values == 1:
            floats = rng.normal(size=count).astype(np.float32)
            raw = quants.quantize(floats, kind).view(np.uint8).reshape(count, size)
        for place in places:
            scale = rng.normal(size=(count, 1)).astype(np.float16)
            raw[:, place : place + 2] = scale.view(np.uint8)
        data = raw.reshape(-1)
        data = data.view(np.float32) if name == "F32" else data.view(np.float16) if name == "F16" else data
        expected = quants.dequantize(data, kind).astype(np.float32)
        found[name] = {"bytes": raw.tobytes().hex(), "values": expected.reshape(-1).astype("<f4").tobytes().hex()}
    return found


# Tokenizers.


def corpus():
    paths = sorted(ROOT.glob("docs/*.md")) + sorted(ROOT.glob("serving/src/**/*.rs")) + [ROOT / "README.md"]
    return [line for path in paths for line in path.read_text().splitlines() if line.strip()] + [t for t in TEXTS if t.strip()]


def sentence_piece(folder, size):
    """Trains a SentencePiece BPE model as Llama 2's: bytes, no dummy prefix in what is compared."""
    import sentencepiece

    lines = folder / "corpus.txt"
    lines.write_text("\n".join(corpus()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(folder / "spm"), vocab_size=size, model_type="bpe", byte_fallback=True,
        character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, max_sentence_length=100_000, add_dummy_prefix=False, num_threads=1,
        control_symbols=CONTROLS, minloglevel=2,
    )  # fmt: skip
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    kinds = []
    for id in range(model.vocab_size()):
        kinds.append(
            UNKNOWN if model.is_unknown(id) else CONTROL if model.is_control(id) else BYTE if model.is_byte(id) else NORMAL
        )
    tokens = [model.id_to_piece(id) for id in range(model.vocab_size())]
    scores = [model.get_score(id) for id in range(model.vocab_size())]

    def write(writer):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        writer.add_unk_token_id(model.unk_id())
        writer.add_bos_token_id(model.bos_id())
        writer.add_eos_token_id(model.eos_id())
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(False)
        writer.add_chat_template(TEMPLATE)

    return write, model.encode, len(tokens), "<s>"


PRE = {
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        True,
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ),
    "smollm": (None, False),
}


def byte_level(pre, size):
    """Trains a byte-level BPE tokenizer that splits as those of the name."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    regex, ignore_merges = PRE[pre]
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    if regex:
        split = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - len(CONTROLS) - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ["<|begin|>", *CONTROLS]])
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    controls = {"<|begin|>", *CONTROLS}
    begin, end = vocab.index("<|begin|>"), vocab.index("<|end|>")

    plain = Tokenizer.from_str(tokenizer.to_str())
    json_plain = json.loads(plain.to_str())
    json_plain["added_tokens"] = []
    plain = Tokenizer.from_str(json.dumps(json_plain))

    def write(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(vocab)
        writer.add_token_types([CONTROL if token in controls else NORMAL for token in vocab])
        writer.add_token_merges(merges)
        writer.add_bos_token_id(begin)
        writer.add_eos_token_id(end)
        writer.add_add_bos_token(False)
        writer.add_chat_template(TEMPLATE)

    return write, lambda text: plain.encode(text).ids, len(vocab), "<|begin|>"


# Decoders.

HIDDEN, INNER, LAYERS = 32, 64, 2
SIZES = {
    "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5, "initializer_range": 0.2, "attention_dropout": 0.0, "pad_token_id": None,
}  # fmt: skip


def architectures():
    """Name, architecture in GGUF, transformers' configuration, tokenizer, type of matrices, prompt lengths."""
    from transformers import LlamaConfig, Phi3Config, Qwen2Config, Qwen3Config, SmolLM3Config

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    default = {"rope_type": "default", "rope_theta": 10000.0}
    llama3 = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    yarn = {"rope_type": "yarn", "rope_theta": 1000000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    longrope = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1, 1.2], "long_factor": [1.3, 2.0, 4.5],
        "original_max_position_embeddings": 16, "partial_rotary_factor": 0.75,
    }  # fmt: skip
    yield "llama-spm", "llama", LlamaConfig(**SIZES, **heads, rope_parameters=default), ("spm", 640), Type.Q8_0, (5, 40)
    tied = {"tie_word_embeddings": True}
    yield "llama3-bpe", "llama", LlamaConfig(**SIZES, **heads, **tied, rope_parameters=llama3), ("llama-bpe", 480), Type.F16, (5, 120)
    yield "qwen2", "qwen2", Qwen2Config(**SIZES, **heads, **tied, rope_parameters=yarn), ("qwen2", 480), Type.Q5_0, (5, 100)
    qwen3 = Qwen3Config(**SIZES, **heads, head_dim=16, rope_parameters=default)
    yield "qwen3", "qwen3", qwen3, ("smollm", 480), Type.Q4_1, (5, 40)
    phi3 = Phi3Config(
        **SIZES, **heads, sliding_window=24, rope_parameters=longrope, original_max_position_embeddings=16, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    yield "phi3", "phi3", phi3, ("spm", 640), Type.Q5_1, (20, 60)
    # Each fourth layer has no rotary embedding; transformers' default is the step that llama.cpp has.
    smollm3 = SmolLM3Config(**SIZES | {"num_hidden_layers": 4}, **heads, rope_parameters=default, use_sliding_window=False)
    yield "smollm3", "smollm3", smollm3, ("llama-bpe", 480), Type.BF16, (5, 40)
    yield "llama-q4_0", "llama", LlamaConfig(**SIZES, **heads, **tied, rope_parameters=default), ("smollm", 480), Type.Q4_0, (5, 40)
    # Rows of K types have 256 values or a multiple.
    wide = SIZES | {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
    wide |= {"num_attention_heads": 4, "num_key_value_heads": 1, "tie_word_embeddings": True}
    for kind in RANDOM_SCALES:
        name = f"llama-{kind.name.lower()}"
        yield name, "llama", LlamaConfig(**wide, rope_parameters=default), ("smollm", 272), kind, (5, 40)


NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "mlp.gate_up_proj": "ffn_up",
}  # fmt: skip


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    part, suffix = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[part]}.{suffix}"


def interleave(array, heads):
    """Rows of each head from two halves to rotary pairs, as llama.cpp's converter does for Llama and SmolLM3."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


# Types that the gguf package reads and cannot write: where the half precision scales of a block stand, and what makes the
# values of random bytes have a mean near 0 and a deviation near 0.05.
RANDOM_SCALES = {Type.Q4_K: {0: 1.9e-4, 2: 1.4e-3}, Type.Q6_K: {208: 3.3e-5}}


def random_rows(rng, shape, kind):
    """Rows of random blocks whose scales are between a half and one and a half of those named."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // values, size), dtype=np.uint8)
    factor = rng.uniform(0.5, 1.5, (len(blocks), 1))
    for place, scale in RANDOM_SCALES[kind].items():
        blocks[:, place : place + 2] = (factor * scale).astype(np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def write_model(path, architecture, config, model, kind, write_tokenizer, name):
    """Writes the model and leaves in it the weights as rounded."""
    import torch

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if architecture == "qwen3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if architecture == "phi3":
        writer.add_sliding_window(config.sliding_window)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        scale = config.max_position_embeddings / original
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(scale) / np.log(original))))
        for length in ("long", "short"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))
    if rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(rope, head_dim))
    write_tokenizer(writer)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    rng = np.random.default_rng(SEED)
    with torch.no_grad():
        for tensor_name, tensor in model.state_dict().items():
            if tensor_name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            array = tensor.float().numpy()
            if array.ndim == 2:
                raw = random_rows(rng, array.shape, kind) if kind in RANDOM_SCALES else quants.quantize(array, kind)
                tensor.copy_(torch.from_numpy(quants.dequantize(raw, kind).astype(np.float32).reshape(array.shape)))
            else:
                raw = array
            projection = tensor_name.split(".")[-2]
            if architecture in ("llama", "smollm3") and projection in heads:
                raw = interleave(raw, heads[projection])
            writer.add_tensor(gguf_name(tensor_name), raw, raw_dtype=kind if array.ndim == 2 else Type.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_factors(rope, head_dim):
    wavelengths = 2 * np.pi * rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = (rope["original_max_position_embeddings"] / wavelengths - rope["low_freq_factor"]) / (
        rope["high_freq_factor"] - rope["low_freq_factor"]
    )
    smooth = np.clip(smooth, 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


# Types with a minimum or with blocks of blocks, which the CPU device keeps as half precision.
COARSE = (Type.Q4_1, Type.Q5_1, *RANDOM_SCALES)


def answers(model, vocabulary, lengths):
    """Prompts of random tokens, the largest logits after them, and greedy tokens."""
    import torch

    rng = random.Random(SEED)
    found = []
    for length in lengths:
        ids = [rng.randrange(vocabulary) for _ in range(length)]
        greedy, seen = [], list(ids)
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()
            top = torch.topk(logits, 8)
            while len(greedy) < 6:
                greedy.append(int(model(torch.tensor([seen]), use_cache=False).logits[0, -1].argmax()))
                seen.append(greedy[-1])
        found.append({"ids": ids, "greedy": greedy, "top": [[int(i), float(v)] for v, i in zip(*top)]})
    return found


def fixtures(out, names):
    import torch
    from transformers import AutoModelForCausalLM

    out.mkdir(parents=True, exist_ok=True)
    if not names:
        (out / "blocks.json").write_text(json.dumps(blocks(), indent=0))
    for name, architecture, config, (pre, size), kind, lengths in architectures():
        if names and name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            if pre == "spm":
                write, encode, vocabulary, begin = sentence_piece(Path(folder), size)
            else:
                write, encode, vocabulary, begin = byte_level(pre, size)
        config.vocab_size = vocabulary
        torch.manual_seed(SEED)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if parameter_name.endswith(".bias"):
                    parameter.normal_(0, 0.2)
                elif parameter.ndim == 1:
                    parameter.normal_(1, 0.1)
        path = out / f"{name}.gguf"
        write_model(path, architecture, config, model, kind, write, name)
        tokens = [[text, list(encode(text))] for text in TEXTS]
        compare_with_llama_cpp(path, tokens)
        user = "Is 'x' good?"
        chat = f"{begin}<|system|>\nBe brief.<|end|>\n<|user|>\n{user}<|end|>\n<|assistant|>\n"
        chat = chat.replace("<|begin|>", begin)
        record = {"tokens": tokens, "chat": chat, "answers": answers(model, vocabulary, lengths)}
        if kind in COARSE:
            record["tolerance"] = 2e-3
        (out / f"{name}.json").write_text(json.dumps(record, ensure_ascii=False))
        print(f"{path}: {path.stat().st_size} bytes, {vocabulary} tokens")


# llama.cpp.


def llama_tokens(path):
    """Returns llama.cpp's tokenizer of a file for text in which nothing is a control token, without a space in front."""
    import llama_cpp

    overrides = {"tokenizer.ggml.add_space_prefix": False}
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False, kv_overrides=overrides)
    return lambda text: model.tokenize(text.encode(), add_bos=False, special=False)


def compare_with_llama_cpp(path, tokens):
    try:
        encode = llama_tokens(path)
    except ImportError:
        print(f"{path}: llama_cpp is not installed, tokens not compared", file=sys.stderr)
        return
    differing = [(text, ids, encode(text)) for text, ids in tokens if encode(text) != ids]
    for text, ids, theirs in differing:
        print(f"{path}: {text!r} is {ids}, by llama.cpp {theirs}", file=sys.stderr)
    print(f"{path}: llama.cpp gives the same tokens for {len(tokens) - len(differing)} of {len(tokens)} texts")


def vocabularies(folder, out, more):
    """Gives each vocabulary a decoder of zeros, so that the file can be loaded."""
    out.mkdir(parents=True, exist_ok=True)
    texts = TEXTS + (json.loads(more.read_text()) if more else [])
    for path in sorted(folder.glob("*.gguf")):
        reader = gguf.GGUFReader(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        if values.get("tokenizer.ggml.model") not in ("gpt2", "llama"):
            continue
        writer = gguf.GGUFWriter(out / path.name, "llama")
        for key, value in values.items():
            if key.startswith("tokenizer.") or key == "general.name":
                field = reader.fields[key]
                sub_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
                writer.add_key_value(key, value, field.types[0], sub_type=sub_type)
        if "tokenizer.ggml.eos_token_id" not in values:
            writer.add_eos_token_id(0)
        rows = len(values["tokenizer.ggml.tokens"])
        writer.add_context_length(64)
        writer.add_embedding_length(32)
        writer.add_block_count(1)
        writer.add_feed_forward_length(32)
        writer.add_head_count(1)
        zeros = {"token_embd": rows, "blk.0.attn_q": 32, "blk.0.attn_k": 32, "blk.0.attn_v": 32, "blk.0.attn_output": 32}
        zeros |= {"blk.0.ffn_gate": 32, "blk.0.ffn_up": 32, "blk.0.ffn_down": 32}
        for name, count in zeros.items():
            writer.add_tensor(f"{name}.weight", np.zeros((count, 18), np.uint8), raw_dtype=Type.Q4_0)
        for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
            writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        try:
            encode = llama_tokens(path)
        except ValueError as error:
            print(f"{path}: llama.cpp refuses it: {error}")
            continue
        record = {"tokens": [[text, encode(text)] for text in texts], "answers": []}
        (out / path.name).with_suffix(".json").write_text(json.dumps(record, ensure_ascii=False))
        print(f"{out / path.name}: {rows} tokens")


# The bundled model in other types.

PROMPTS = 10


def mini(folder, out):
    import llama_cpp

    out.mkdir(parents=True, exist_ok=True)
    source = gguf.GGUFReader(folder / "model.gguf")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    vocab = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    controls = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(vocab, key=vocab.get)
    f16 = out / "mini-F16.gguf"
    writer = gguf.GGUFWriter(f16, "llama")
    for key, field in source.fields.items():
        if not key.startswith(("GGUF.", "tokenizer.", "general.architecture", "general.file_type")):
            writer.add_key_value(key, field.contents(), field.types[0])
    writer.add_file_type(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in controls else NORMAL for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(vocab[config["bos_token"]])
    writer.add_eos_token_id(vocab[config["eos_token"]])
    writer.add_chat_template(config["chat_template"])
    for tensor in source.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float16 if values.ndim == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K"):
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        target = out / f"mini-{name}.gguf"
        if llama_cpp.llama_model_quantize(str(f16).encode(), str(target).encode(), ctypes.byref(params)):
            sys.exit(f"{target} cannot be written")
    golden = json.loads((folder / "golden.json").read_text())[:PROMPTS]
    for path in sorted(out.glob("mini-*.gguf")):
        encode = llama_tokens(path)
        model = decoder(path)
        found, worst, same = [], 0.0, 0
        for item in golden:
            model.cache = [None] * len(model.cache)
            logits = model(item["ids"])
            worst = max(worst, *(abs(float(logits[token]) - value) for token, value in item["top5"]))
            top = [[int(token), float(logits[token])] for token in np.argsort(-logits)[:8]]
            greedy = [top[0][0]]
            while len(greedy) < 12:
                greedy.append(int(model(greedy[-1:]).argmax()))
            same += greedy == item["greedy"][: len(greedy)]
            found.append({"ids": item["ids"], "greedy": greedy, "top": top})
        record = {"tokens": [[text, encode(text)] for text in TEXTS], "answers": found, "tolerance": 1e-2}
        path.with_suffix(".json").write_text(json.dumps(record, ensure_ascii=False))
        print(f"{path}: {path.stat().st_size} bytes; largest logits differ from Q8_0 by {worst:.3f}, {same} of {PROMPTS} same answers")


def decoder(path):
    """The float32 decoder of quantize.py with the weights of a GGUF file, as the gguf package decodes them."""
    from quantize import Llama

    reader = gguf.GGUFReader(path)
    value = lambda key: reader.fields[f"llama.{key}"].contents()  # noqa: E731
    config = {
        "num_attention_heads": value("attention.head_count"), "num_key_value_heads": value("attention.head_count_kv"),
        "head_dim": value("attention.key_length"), "hidden_size": value("embedding_length"),
        "num_hidden_layers": value("block_count"), "rms_norm_eps": value("attention.layer_norm_rms_epsilon"),
        "rope_theta": value("rope.freq_base"),
    }  # fmt: skip
    parts = {theirs: ours for ours, theirs in NAMES.items() if ours not in ("mlp.gate_up_proj", "self_attn.qkv_proj")}
    weights = {}
    for tensor in reader.tensors:
        array = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if tensor.name in parts:
            weights[parts[tensor.name]] = array
            continue
        _, layer, part, suffix = tensor.name.split(".")
        if part in ("attn_q", "attn_k"):
            heads = config["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
            array = array.reshape(heads, -1, 2, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        weights[f"model.layers.{layer}.{parts[part]}.{suffix}"] = array
    return Llama(config, weights)


if __name__ == "__main__":
    main()
