"""Sentences a second of transformers on the texts of vectors.json: python embed_torch_bench.py FOLDER [THREADS] [BATCH].

Texts are sorted by length before they are cut into batches, as sentence-transformers does, so little is padded.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModel

folder, threads, size = sys.argv[1], int((sys.argv[2:] + ["2"])[0]), int((sys.argv[3:] + ["32"])[0])
torch.set_num_threads(threads)
model = AutoModel.from_pretrained(folder).eval()
rows = [row["ids"] for row in json.loads((Path(folder) / "vectors.json").read_text())] * 20
rows.sort(key=len)
batches = []
for at in range(0, len(rows), size):
    part = rows[at:at + size]
    width = max(map(len, part))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in part])
    batches.append((ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in part])))
best = float("inf")
with torch.inference_mode():
    for _ in range(5):
        start = time.perf_counter()
        for ids, mask in batches:
            states = model(input_ids=ids, attention_mask=mask).last_hidden_state
            pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            torch.nn.functional.normalize(pooled, dim=1)
        best = min(best, time.perf_counter() - start)
print(f"{threads} threads, batches of {size}: {len(rows) / best:.0f} sentences/s, {sum(map(len, rows)) / best:.0f} tokens/s")
