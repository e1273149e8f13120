"""Makes serving/tests/fixtures/architectures: tiny random models of every architecture, with the logits of transformers.

    python serving/scripts/make_fixtures.py

Needs torch and transformers 5. Each folder holds config.json and weights as transformers saves them (or as version 4 of it
did), and logits.json: prompts, the logits of the whole vocabulary after some of their tokens, and greedy continuations.
All share tokenizer.json, whose tokens are bytes. `max_context` is what chooses between LongRoPE's factors. Weights are rounded to the stored type first and logits computed in single
precision, without a key-value cache.
"""

import json
import math
import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
import transformers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

OUT = Path(__file__).resolve().parent.parent / "tests/fixtures/architectures"
VOCABULARY = 264
END = 257
GREEDY = 8
# The greedy token must lead by this much, so that no rounding can change it.
MARGIN = 0.02
# Longer than a page, and longer than every window and original context below.
LENGTHS = [20, 75]
# After these tokens of the last prompt the logits are kept, besides those after each prompt.
INNER = [40]

SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=256,
    eos_token_id=END,
    pad_token_id=END,
    tie_word_embeddings=True,
)

LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
SHORT = [1.0, 1.1, 1.3, 1.5]
LONG = [1.0, 1.4, 2.5, 6.0]
LONGROPE = dict(rope_type="longrope", short_factor=SHORT, long_factor=LONG, rope_theta=10000.0)


def llama(rope=None, **more):
    rope = {"rope_theta": 10000.0, **(rope or {"rope_type": "default"})}
    return LlamaForCausalLM, LlamaConfig(**{**SIZES, "rope_parameters": rope, **more})


def qwen2(rope=None, **more):
    rope = {"rope_theta": 10000.0, **(rope or {"rope_type": "default"})}
    return Qwen2ForCausalLM, Qwen2Config(**{**SIZES, "rope_parameters": rope, **more})


def qwen3(**more):
    return Qwen3ForCausalLM, Qwen3Config(**{**SIZES, "head_dim": 16, **more})


def phi3(**more):
    return Phi3ForCausalLM, Phi3Config(**{**SIZES, **more})


MODELS = {
    # name: (model class and configuration, stored type, how it is saved)
    "llama_mha": (llama(num_key_value_heads=4, tie_word_embeddings=False), torch.float16, {}),
    "llama_gqa": (llama(num_key_value_heads=1, num_hidden_layers=1), torch.float32, {}),
    "llama_bias": (llama(attention_bias=True, mlp_bias=True), torch.bfloat16, {}),
    "llama_linear": (llama({"rope_type": "linear", "factor": 4.0}), torch.bfloat16, {"old_spelling": "linear"}),
    "llama_llama3": (llama(LLAMA3), torch.bfloat16, {}),
    "llama_yarn": (
        llama({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
        torch.bfloat16,
        {},
    ),
    "llama_sharded": (llama(tie_word_embeddings=False), torch.bfloat16, {"max_shard_size": "20KB"}),
    "mistral": (
        (MistralForCausalLM, MistralConfig(**{**SIZES, "sliding_window": 20, "head_dim": 16})),
        torch.bfloat16,
        {},
    ),
    "qwen2": (qwen2(), torch.bfloat16, {}),
    "qwen2_window": (qwen2(use_sliding_window=True, sliding_window=20, max_window_layers=1), torch.bfloat16, {}),
    "qwen2_yarn": (
        qwen2(
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
                "mscale": 1.5,
                "mscale_all_dim": 0.5,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "truncate": False,
            }
        ),
        torch.bfloat16,
        {},
    ),
    "qwen3": (qwen3(), torch.bfloat16, {}),
    "qwen3_layers": (
        qwen3(
            head_dim=8,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=17,
            layer_types=["sliding_attention", "full_attention"],
        ),
        torch.bfloat16,
        {},
    ),
    "phi3": (phi3(sliding_window=33), torch.bfloat16, {}),
    "phi3_longrope": (
        phi3(original_max_position_embeddings=32, rope_parameters=dict(LONGROPE)),
        torch.bfloat16,
        {"old_spelling": "su"},
    ),
    "phi3_partial": (
        phi3(
            hidden_size=40,
            num_attention_heads=5,
            num_key_value_heads=1,
            original_max_position_embeddings=32,
            sliding_window=100,
            rope_parameters={
                **LONGROPE,
                "short_factor": SHORT[:3],
                "long_factor": LONG[:3],
                "partial_rotary_factor": 0.75,
            },
        ),
        torch.bfloat16,
        {},
    ),
    "smollm3": (
        (SmolLM3ForCausalLM, SmolLM3Config(**{**SIZES, "no_rope_layer_interval": 2})),
        torch.bfloat16,
        {},
    ),
}


def fill(model, dtype, generator):
    """Random weights that make every part of the model matter, rounded to `dtype`."""
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        if "norm" in name:
            values = torch.rand(shape, generator=generator) + 0.5
        elif name.endswith("bias"):
            values = 0.3 * torch.randn(shape, generator=generator)
        elif "embed_tokens" in name:
            values = torch.randn(shape, generator=generator)
        else:
            values = torch.randn(shape, generator=generator) / math.sqrt(shape[1])
        parameter.data = values.to(dtype).float()


@torch.no_grad()
def logits_of(model, tokens):
    return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]


def continuation(model, prompt):
    """Greedy tokens after `prompt`, or nothing if one of them leads by too little or ends the answer."""
    tokens = list(prompt)
    for _ in range(GREEDY):
        (first, second), (token, _) = (top.tolist() for top in logits_of(model, tokens)[-1].topk(2))
        if first - second < MARGIN or token >= 256:
            return None
        tokens.append(token)
    return tokens[len(prompt) :]


def context_of(config, length):
    """The context that chooses LongRoPE's factors for a prompt of `length` as transformers does."""
    original = config.rope_parameters.get("original_max_position_embeddings")
    if config.rope_parameters["rope_type"] != "longrope" or length > original:
        return config.max_position_embeddings
    assert length + GREEDY <= original, "the factors would change while the answer is written"
    return original


def prompts(model, generator):
    found = []
    for length in LENGTHS:
        for _ in range(200):
            prompt = torch.randint(0, 256, (length,), generator=generator).tolist()
            greedy = continuation(model, prompt)
            if greedy is not None:
                break
        assert greedy is not None, "no prompt has a clear continuation"
        logits = logits_of(model, prompt)
        after = [length - 1] + (INNER if length == max(LENGTHS) else [])
        rows = [{"after": at, "logits": [round(x, 5) for x in logits[at].tolist()]} for at in after]
        context = context_of(model.config, length)
        found.append({"max_context": context, "tokens": prompt, "logits": rows, "greedy": greedy})
    return found


def save(model, folder, dtype, old_spelling=None, **how):
    model.to(dtype).save_pretrained(folder, **how)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if old_spelling:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        rope.pop("rope_type")
        for beside in ["partial_rotary_factor", "original_max_position_embeddings"]:
            if beside in rope:
                config[beside] = rope.pop(beside)
        config["rope_scaling"] = {"type": old_spelling, **rope}
        config["torch_dtype"] = config.pop("dtype")
        path.write_text(json.dumps(config, indent=2) + "\n")


def write_tokenizer():
    # Token `i` is byte `i`, spelled as byte-level tokenizers spell it.
    shown = {b: chr(b) for b in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    hidden = (b for b in range(256) if b not in shown)
    shown.update({b: chr(256 + i) for i, b in enumerate(hidden)})
    tokenizer = Tokenizer(models.BPE(vocab={shown[b]: b for b in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    assert tokenizer.encode("<s>a é</s>").ids == [256, *"a é".encode(), END]
    tokenizer.save(str(OUT / "tokenizer.json"), pretty=False)


def main():
    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    write_tokenizer()
    for seed, (name, ((kind, config), dtype, how)) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(seed)
        config._attn_implementation = "eager"
        model = kind(config).eval()
        fill(model, dtype, generator)
        cases = prompts(model, generator)
        folder = OUT / name
        save(model, folder, dtype, **how)
        text = json.dumps({"prompts": cases}, separators=(",", ":")).replace('},{"max_context"', '},\n{"max_context"')
        (folder / "logits.json").write_text(text + "\n")
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {size} bytes, {sorted(file.name for file in folder.iterdir())}", flush=True)


if __name__ == "__main__":
    main()
