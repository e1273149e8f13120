"""Times vLLM on the prompts of queries, and adds lines to the results that `refrain bench` wrote of the same queries.

    refrain bench export --query movies-filter --orders none --out prompts/movies-filter
    refrain bench export --query movies-filter --orders ggr --dedup --out prompts/movies-filter
    python serving/scripts/vllm_queries.py prompts --shape 1b --results out/results.jsonl
    refrain bench report out

The first folder has one folder a query, named as the query is, with the files NONE.tokens, .offsets and .outputs that `bench export`
wrote. The model is loaded once. Weights are random in a real shape (speed does not depend on their values) unless --model names a folder.
Each prompt is answered with exactly the tokens that .outputs says, and the prefix cache is emptied between runs. Time is that of
`generate` over token ids: no SQL, no tokenizer. A query of several calls gets the prompts of all of them at once, which Refrain cannot
know before the first is answered.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from array import array

os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

# The shapes of random:llama3-8b and random:llama3.2-1b.
SHAPES = {
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
               vocab_size=128256, tie_word_embeddings=False),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
               vocab_size=128256, tie_word_embeddings=True, head_dim=64),
}

# The order of a file of prompts, and the arm that it is in a report.
ARMS = {"none": "vllm", "ggr": "vllm-ggr"}


def numbers(kind, path):
    found = array(kind)
    with open(path, "rb") as file:
        found.frombytes(file.read())
    return found


def prompts(stem):
    """Returns the prompts of one order, and how many tokens each is answered with."""
    tokens, offsets, outputs = numbers("I", stem + ".tokens"), numbers("Q", stem + ".offsets"), numbers("I", stem + ".outputs")
    return [tokens[start:end].tolist() for start, end in zip(offsets, offsets[1:])], list(outputs)


def config_folder(shape, context):
    folder = os.path.join(tempfile.gettempdir(), f"vllm-random-{shape}")
    os.makedirs(folder, exist_ok=True)
    config = dict(architectures=["LlamaForCausalLM"], model_type="llama", torch_dtype="bfloat16", hidden_act="silu",
                  max_position_embeddings=context, rms_norm_eps=1e-5, rope_theta=500000.0, bos_token_id=1, eos_token_id=2,
                  initializer_range=0.02, attention_bias=False, mlp_bias=False, **SHAPES[shape])
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    return folder


def run(engine, params, texts, outputs):
    """Returns the seconds that all prompts take together, and prompt, cached and output tokens."""
    requests = [{"prompt_token_ids": tokens} for tokens in texts]
    engine.reset_prefix_cache()
    start = time.time()
    answers = engine.generate(requests, [params(count) for count in outputs], use_tqdm=False)
    seconds = time.time() - start
    cached = sum(answer.num_cached_tokens or 0 for answer in answers)
    return seconds, sum(map(len, texts)), cached, sum(len(answer.outputs[0].token_ids) for answer in answers)


def machine():
    """Describes this machine as `refrain bench` does."""
    def field(path, name):
        with open(path) as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith(name)), "")
    gib = (int(field("/proc/meminfo", "MemTotal").split()[0]) + (1 << 19)) >> 20
    return f"{field('/proc/cpuinfo', 'model name')}, {len(os.sched_getaffinity(0))} cores, {gib} GiB"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts")
    parser.add_argument("--results", required=True, help="file of lines of JSON to add to")
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--model", help="folder of a model, instead of random weights")
    parser.add_argument("--queries", help="only these, by name, with commas between")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--batched", type=int, default=16384, help="tokens of a step")
    parser.add_argument("--seqs", type=int, default=1024, help="sequences of a step")
    parser.add_argument("--memory", type=float, default=0.9, help="share of the GPU's memory")
    args = parser.parse_args()

    import torch
    import vllm
    source = dict(model=args.model) if args.model else dict(model=config_folder(args.shape, args.context), load_format="dummy")
    engine = vllm.LLM(**source, skip_tokenizer_init=True, dtype="bfloat16", max_model_len=args.context, enable_prefix_caching=True,
                      max_num_batched_tokens=args.batched, max_num_seqs=args.seqs, gpu_memory_utilization=args.memory,
                      disable_log_stats=False)

    def params(count):
        return vllm.SamplingParams(temperature=0.0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False)

    results = open(args.results, "a")

    def add(**line):
        print(json.dumps(line), file=results, flush=True)

    add(**{"is": "run"}, engine="vllm", version=vllm.__version__, commit=None, command=" ".join(["python", *sys.argv]), machine=machine(),
        device=torch.cuda.get_device_name(0), model=args.model or args.shape, rows=None, tables=None, started_at=int(time.time()))
    # Shapes of passes are compiled and measured before anything counts.
    warm = [[10 + (7 * row + 13 * at) % 100000 for at in range(300)] for row in range(1500)]
    run(engine, params, warm, [4] * len(warm))

    names = args.queries.split(",") if args.queries else sorted(os.listdir(args.prompts))
    for query in names:
        for order, arm in ARMS.items():
            stem = os.path.join(args.prompts, query, order)
            if not os.path.isfile(stem + ".outputs"):
                continue
            texts, outputs = prompts(stem)
            fits = [len(text) + count <= args.context for text, count in zip(texts, outputs)]
            kept = [pair for pair, fit in zip(zip(texts, outputs), fits) if fit]
            for repetition in range(args.repetitions):
                seconds, prompt, cached, written = run(engine, params, [text for text, _ in kept], [count for _, count in kept])
                add(**{"is": "query"}, query=query, arm=arm, repetition=repetition, generated=False, table_rows=0,
                    rows_out=0, wall_s=seconds, planning_s=0.0, calls=len(kept), prompt_tokens=prompt, cached_tokens=cached,
                    output_tokens=written, failed_rows=len(texts) - len(kept), ideal_s=None, agreement=None, quality=None, error=None)
                print(f"{query}, {arm}: {seconds:.2f} s, {len(kept)} prompts, {100 * cached / max(prompt, 1):.1f} % cached", flush=True)


if __name__ == "__main__":
    main()
