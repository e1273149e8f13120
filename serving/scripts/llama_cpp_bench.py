#!/usr/bin/env python3
"""Compare the CPU device with llama.cpp: the same GGUF files, the same machine, runs by turns.

    pip install llama-cpp-python gguf numpy
    cargo build --release -p refrain-serving --example llama_cpp_bench
    python llama_cpp_bench.py target/release/examples/llama_cpp_bench serving/models/mini

Models, each as F16 and as Q8_0, are written to a temporary folder:

- smol: random weights in the shape of SmolLM2-135M (30 layers, hidden 576, 9 heads, 3 key-value heads, feed-forward 1536), with
  the vocabulary of the bundled model;
- mini: the bundled model; as F16 its 8-bit weights are rounded once more.

Measured are a prompt of 512 tokens, one sequence and 32 sequences decoding one token after 128. llama.cpp is loaded through its
C interface with n_batch = n_ubatch = 512, as many threads as there are processors, and flash attention off and on: the faster
counts. Where it crashes with weights rearranged for its matrix instructions (AMX), as 0.3.36 does with Q8_0 on a Sapphire Rapids
guest, it runs without, and the table says so. Both engines run in processes of their own by turns; a run takes the median of its passes, and a figure is the best
run's, since other processes only slow one down. "limit" is the time that the
matrix products need at the measured peak of fused multiply-adds, or that reading the file needs at the measured memory rate,
whichever is longer. Last, greedy answers of both engines to the golden prompts are compared for mini.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PREFILL, CONTEXT, SEQUENCES = 512, 128, 32
PASSES = {"prefill": (1, PREFILL), "decode": (1, 1), "batch": (SEQUENCES, 1)}
ANSWER_TOKENS = 24


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ours", type=Path, help="the example llama_cpp_bench")
    parser.add_argument("mini", type=Path, help="folder of the bundled model")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--models", nargs="*", default=["smol-F16", "smol-Q8_0", "mini-F16", "mini-Q8_0"])
    parser.add_argument("--work", type=Path, help="keep the files here instead of in a temporary folder")
    parser.add_argument("--prompts", type=int, default=40, help="golden prompts to compare")
    parser.add_argument("--llama", nargs=2, metavar=("PASS", "MODEL"), help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help="llama.cpp takes weights as they are stored")
    args = parser.parse_args()
    if args.llama:
        return print(json.dumps(run_pass(*args.llama, not args.plain)))
    with tempfile.TemporaryDirectory() as folder:
        work = args.work or Path(folder)
        files = make_models(work, args.mini, args.models)
        compare_times(args, files)
        compare_answers(args, work, files)


# Models.


def make_models(work, mini, names):
    work.mkdir(parents=True, exist_ok=True)
    files = {name: work / f"{name}.gguf" for name in names}
    for name, path in files.items():
        if not path.exists():
            shape, kind = name.split("-")
            write_smol(path, kind) if shape == "smol" else convert(mini / "model.gguf", path, kind)
    return files


def write_smol(path, kind):
    layers, hidden, heads, kv_heads, feed_forward, vocabulary = 30, 576, 9, 3, 1536, 16384
    head = hidden // heads
    random = np.random.default_rng(1)
    matrix = lambda rows, columns: (random.standard_normal((rows, columns)) * 0.02).astype(np.float32)
    tensors = {"token_embd.weight": matrix(vocabulary, hidden), "output_norm.weight": np.ones(hidden, np.float32)}
    for layer in range(layers):
        for part, rows, columns in [
            ("attn_q", hidden, hidden),
            ("attn_k", kv_heads * head, hidden),
            ("attn_v", kv_heads * head, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", feed_forward, hidden),
            ("ffn_up", feed_forward, hidden),
            ("ffn_down", hidden, feed_forward),
        ]:
            tensors[f"blk.{layer}.{part}.weight"] = matrix(rows, columns)
        tensors[f"blk.{layer}.attn_norm.weight"] = np.ones(hidden, np.float32)
        tensors[f"blk.{layer}.ffn_norm.weight"] = np.ones(hidden, np.float32)
    keys = {
        "vocab_size": vocabulary,
        "context_length": 2048,
        "embedding_length": hidden,
        "block_count": layers,
        "feed_forward_length": feed_forward,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": head,
        "rope.freq_base": 100000.0,
    }
    write(path, kind, {f"llama.{key}": value for key, value in keys.items()}, tensors)


def convert(source, path, kind):
    import gguf

    reader = gguf.GGUFReader(source)
    keys = {name: field.contents() for name, field in reader.fields.items() if name.startswith("llama.")}
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
    write(path, kind, keys, tensors)


def write(path, kind, keys, tensors):
    import gguf

    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("no_vocab")
    for key, value in keys.items():
        writer.add_float32(key, value) if isinstance(value, float) else writer.add_uint32(key, int(value))
    for name, tensor in tensors.items():
        if tensor.ndim == 1:
            writer.add_tensor(name, tensor)
        elif kind == "F16":
            writer.add_tensor(name, tensor.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(tensor, kinds.Q8_0), raw_dtype=kinds.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def parameters(path):
    """Values of all matrices, and of those that every token is multiplied with; a tied embedding is multiplied once a sample."""
    import gguf

    sizes = {t.name: int(t.n_elements) for t in gguf.GGUFReader(path).tensors if len(t.shape) == 2}
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name.startswith("blk."))


# llama.cpp.


def llama_context(model, sequences, flash):
    import llama_cpp

    params = llama_cpp.llama_context_default_params()
    params.n_ctx = sequences * 256 if sequences > 1 else 1024
    params.n_batch = params.n_ubatch = PREFILL
    params.n_seq_max = sequences
    params.n_threads = params.n_threads_batch = os.cpu_count()
    params.flash_attn_type = flash
    params.no_perf = True
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        sys.exit("llama.cpp cannot make a context")
    return context


def run_pass(prompts, path, rearranged):
    model = llama_model(path, rearranged)
    return llama_times(model) if prompts == "time" else llama_answers(prompts, model)


def llama_model(path, rearranged):
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    llama_model.quiet = quiet  # llama.cpp keeps the pointer
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    params.use_extra_bufts = rearranged
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        sys.exit(f"llama.cpp cannot load {path}")
    return model


def llama_pass(context, rows):
    """Runs rows of (sequence, first position, tokens) and waits for the logits after each."""
    import llama_cpp

    batch = llama_cpp.llama_batch_init(sum(len(tokens) for _, _, tokens in rows), 0, 1)
    i = 0
    for sequence, first, tokens in rows:
        for offset, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, first + offset, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, offset + 1 == len(tokens)
            i += 1
    batch.n_tokens = i
    start = time.perf_counter()
    if llama_cpp.llama_decode(context, batch):
        sys.exit("llama.cpp failed")
    logits = llama_cpp.llama_get_logits_ith(context, -1)
    elapsed = (time.perf_counter() - start) * 1e3
    llama_cpp.llama_batch_free(batch)
    return elapsed, logits


def llama_times(model):
    import llama_cpp

    tokens = lambda first, count: [position * 31 % 16384 for position in range(first, first + count)]
    best = {}
    for flash in (0, 1):
        for name, (sequences, count) in PASSES.items():
            context = llama_context(model, sequences, flash)
            memory = llama_cpp.llama_get_memory(context)
            first = 0 if name == "prefill" else CONTEXT
            if first:
                llama_pass(context, [(0, 0, tokens(0, first))])
            for sequence in range(1, sequences):
                llama_cpp.llama_memory_seq_cp(memory, 0, sequence, -1, -1)
            times = []
            for _ in range({"prefill": 3, "decode": 30, "batch": 8}[name] + 1):
                rows = [(sequence, first, tokens(first, count)) for sequence in range(sequences)]
                times.append(llama_pass(context, rows)[0])
                for sequence in range(sequences):
                    llama_cpp.llama_memory_seq_rm(memory, sequence, first, -1)
            best[name] = min(best.get(name, 1e9), statistics.median(times[1:]))
            llama_cpp.llama_free(context)
    return best | {"system": llama_cpp.llama_print_system_info().decode()}


def llama_answers(prompts, model):
    import llama_cpp

    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    context = llama_context(model, 1, 0)
    answers = []
    for prompt in json.loads(Path(prompts).read_text()):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        tokens, position, answer, top = prompt, 0, [], None
        for _ in range(ANSWER_TOKENS):
            for first in range(0, len(tokens), PREFILL):
                chunk = tokens[first : first + PREFILL]
                logits = np.ctypeslib.as_array(llama_pass(context, [(0, position, chunk)])[1], (vocabulary,)).copy()
                position += len(chunk)
            tokens = [int(logits.argmax())]
            answer += tokens
            if top is None:
                top = [(int(i), float(logits[i])) for i in np.argsort(-logits)[:5]]
        answers.append({"tokens": answer, "top": top})
    return answers


# The comparison.


def run(*command):
    return subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout


def run_llama(args, *what):
    command = [sys.executable, __file__, args.ours, args.mini, "--llama", *what]
    if not args.plain:
        try:
            return json.loads(run(*command).splitlines()[-1])
        except subprocess.CalledProcessError as error:
            if error.returncode >= 0:
                raise
            print(f"llama.cpp ended with signal {-error.returncode}; from here on it takes weights as they are stored")
            args.plain = True
    return json.loads(run(*command, "--plain").splitlines()[-1])


def compare_times(args, files):
    roof = json.loads(run(args.ours, "roof"))
    print(f"{os.cpu_count()} processors: {roof['gflops']:.0f} GFLOP/s, memory {roof['gbytes']:.1f} GB/s")
    ours, theirs = {name: [] for name in files}, {name: [] for name in files}
    for _ in range(args.runs):
        for name, path in files.items():
            ours[name].append(json.loads(run(args.ours, "time", path)))
            theirs[name].append(run_llama(args, "time", path))
    if files:
        print("llama.cpp:", theirs[next(iter(files))][0]["system"].strip())
    print("\nmodel     | pass    |  ours ms | tokens/s | llama.cpp ms | tokens/s | ratio | limit ms")
    for name, path in files.items():
        total, layers = parameters(path)
        for step, (sequences, count) in PASSES.items():
            mine, other = (min(run[step] for run in runs[name]) for runs in (ours, theirs))
            tokens = sequences * count
            arithmetic = 2 * (layers * tokens + (total - layers) * sequences) / roof["gflops"] / 1e6
            memory = path.stat().st_size / roof["gbytes"] / 1e6
            rates = [f"{ms:8.2f} | {tokens / ms * 1e3:8.1f}" for ms in (mine, other)]
            print(f"{name:9} | {step:7} | {rates[0]} |     {rates[1]} | {other / mine:5.2f} | {max(arithmetic, memory):8.2f}")
        peak = statistics.median(run["peak_mb"] for run in ours[name])
        load = statistics.median(run["load"] for run in ours[name])
        print(f"{name:9} | loading | {load:8.0f} ms; most memory, KV of 32 sequences included, {peak:.0f} MiB; "
              f"file {path.stat().st_size / 2**20:.0f} MiB")


def compare_answers(args, work, files):
    golden = json.loads((args.mini / "golden.json").read_text())[: args.prompts]
    prompts = work / "prompts.json"
    prompts.write_text(json.dumps([item["ids"] for item in golden]))
    for name, path in files.items():
        if not name.startswith("mini"):
            continue
        mine = [json.loads(line) for line in run(args.ours, "greedy", path, ANSWER_TOKENS, prompts).splitlines()]
        other = run_llama(args, prompts, path)
        same = sum(a["tokens"] == b["tokens"] for a, b in zip(mine, other))
        first = sum(a["tokens"][0] == b["tokens"][0] for a, b in zip(mine, other))
        gaps = [abs(logit - dict(b["top"])[token]) for a, b in zip(mine, other) for token, logit in a["top"]
                if token in dict(b["top"])]
        gold = sum(a["tokens"] == item["greedy"] for a, item in zip(mine, golden))
        theirs = sum(b["tokens"] == item["greedy"] for b, item in zip(other, golden))
        print(f"{name}: of {len(golden)} greedy answers {same} agree, {first} in the first token; largest difference of a "
              f"leading logit {max(gaps):.4f}; as golden: ours {gold}, llama.cpp {theirs}")


if __name__ == "__main__":
    main()
