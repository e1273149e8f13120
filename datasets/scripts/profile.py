"""Prints the shape of a table: the numbers that `src/generate/` keeps of it, and no value of the table itself.

    pip install pyarrow tokenizers
    python datasets/scripts/profile.py movies.parquet [--tokenizer serving/models/mini/tokenizer.json]

For each column: type, distinct values, NULLs, the share of rows that repeat the row before ("adjacent"), the share of rows that the
1, 2, 4, ... most frequent values hold ("skew"), quantiles of the length of distinct values in characters, words and tokens, and the
characters that sorted neighbours have in common. Then the columns that determine others, and how much of a column's entropy the
others explain.
"""

import argparse
import json
import math
from collections import Counter

import pyarrow.parquet as parquet

QUANTILES = [0, 10, 25, 50, 75, 90, 99, 100]


def quantiles(numbers):
    numbers = sorted(numbers)
    return [round(numbers[round(q / 100 * (len(numbers) - 1))], 4) for q in QUANTILES] if numbers else []


def entropy(counts):
    total = sum(counts)
    return -sum(n / total * math.log2(n / total) for n in counts)


def common_prefix(a, b):
    return next((at for at, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def skew(counts):
    """Returns (rank, percent of rows held by that many values), at powers of two."""
    ordered, total, points, sum_, rank = sorted(counts, reverse=True), sum(counts), [], 0, 1
    for at, count in enumerate(ordered, 1):
        sum_ += count
        if at == rank or at == len(ordered):
            points.append((at, round(100 * sum_ / total, 1)))
            rank *= 2
    return points


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--tokenizer")
    args = parser.parse_args()
    table = parquet.read_table(args.file)
    tokenizer = None
    if args.tokenizer:
        from tokenizers import Tokenizer
        tokenizer = Tokenizer.from_file(args.tokenizer)
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    print(f"{args.file}: {table.num_rows} rows x {table.num_columns} columns, {len(set(zip(*columns.values())))} distinct rows")
    codes = {}
    for name, values in columns.items():
        known = {}
        codes[name] = [known.setdefault(value, len(known)) for value in values]
        counts = Counter(values)
        texts = [json.dumps(v, ensure_ascii=False) if isinstance(v, str) else str(v) for v in counts if v is not None]
        ordered = sorted(texts)
        adjacent = sum(a == b for a, b in zip(values, values[1:])) / max(1, len(values) - 1)
        print(f"\n{name}: {table.schema.field(name).type}, {len(counts)} distinct, {counts.get(None, 0)} null, adjacent {100 * adjacent:.1f} %")
        print(f"  skew {skew(counts.values())}")
        if texts and isinstance(next(v for v in counts if v is not None), str):
            print(f"  characters {quantiles([len(t) - 2 for t in texts])}  words {quantiles([len(t.split()) for t in texts])}")
        else:
            print(f"  characters {quantiles([len(t) for t in texts])}  values {quantiles([v for v in counts if v is not None])}")
        if tokenizer:
            encoded = [len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
            per_character = sum(encoded) / max(1, sum(map(len, texts)))
            print(f"  tokens {quantiles(encoded)}  {per_character:.3f} a character")
        shared = [common_prefix(a, b) for a, b in zip(ordered, ordered[1:])]
        print(f"  characters in common with the next in order {quantiles(shared)}, mean {sum(shared) / max(1, len(shared)):.1f}")
    print("\nshare of a column's entropy that another explains (100: determined)")
    names = list(columns)
    single = {name: entropy(Counter(codes[name]).values()) for name in names}
    for name in names:
        if single[name] == 0:
            continue
        shares = []
        for other in names:
            if other != name:
                joint = entropy(Counter(zip(codes[name], codes[other])).values())
                shares.append((other, 100 * (single[name] + single[other] - joint) / single[name]))
        told = ", ".join(f"{other} {share:.0f}" for other, share in sorted(shares, key=lambda s: -s[1]) if share >= 10)
        print(f"  {name} ({single[name]:.2f} bit): {told}")


if __name__ == "__main__":
    main()
