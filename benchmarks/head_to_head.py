"""EK-FAC of a language model with random weights, on an accelerator: seconds, memory, disk.

    python benchmarks/head_to_head.py [--size 0.5B | 1.5B | tiny]

A Qwen2.5 of that size by its configuration (weights do not change the cost, and are drawn), 64
sequences of 512 tokens, in float32; factors with the training labels, complete eigenbases. What
kronfluence and bergson were measured at on one H200: 288 to 343 s, 42 to 51 GB of device memory, 60
to 74 GB of disk for 1.5B. Needs the extra `models`. Where there is no CUDA device it says so and
ends; --cpu runs it there all the same, for `tiny` say.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from merged import merged

import curvfluence as cf

# (hidden, layers, heads, key-value heads, feed-forward, words)
SIZES = {
    "tiny": (64, 2, 4, 2, 128, 512),
    "0.5B": (896, 24, 14, 2, 4864, 151_936),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936),
}


def language_model(size: str, device: torch.device) -> torch.nn.Module:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    hidden, layers, heads, shared, wide, words = SIZES[size]
    config = Qwen2Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=shared,
        intermediate_size=wide,
        vocab_size=words,
        tie_word_embeddings=True,
        attn_implementation="eager",
        use_cache=False,
    )
    torch.manual_seed(0)
    with device:
        model = Qwen2ForCausalLM(config).float().eval()
    model.get_input_embeddings().weight.requires_grad_(False)  # as the peers leave it out
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1.5B", choices=list(SIZES))
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--queries", type=int, default=4)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if not asked.cpu and not torch.cuda.is_available():
        print("SKIPPED: there is no CUDA device here")
        return
    device = torch.device("cpu" if asked.cpu else "cuda")
    model = language_model(asked.size, device)
    words = SIZES[asked.size][-1]
    n, q = asked.sequences, asked.queries
    tokens = torch.randint(words, (n + q, asked.tokens), device=device)
    problem = cf.Problem(
        model,
        cf.CausalLM(),
        {"input_ids": tokens[:n], "labels": tokens[:n]},
        {"input_ids": tokens[n:], "labels": tokens[n:]},
        remember=0,
    )
    rung = cf.EKFAC(cf.Empirical())
    print(f"{asked.size}: {problem.parameters.count:,} parameters, {n} × {asked.tokens} tokens")
    start = time.perf_counter()
    forecast = cf.plan(problem, rung)
    print(f"forecast in {time.perf_counter() - start:.1f} s:\n{forecast}", flush=True)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    start = time.perf_counter()
    curvature = cf.fit(problem, rung)
    if device.type == "cuda":
        torch.cuda.synchronize()
    fit = time.perf_counter() - start
    start = time.perf_counter()
    cf.influence(problem, curvature, damping=cf.Relative(1.0))
    scores = time.perf_counter() - start
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as name:
        curvature.save(Path(name) / "curvature")
        disk = sum(f.stat().st_size for f in Path(name).rglob("*") if f.is_file())
    found = {
        "size": asked.size,
        "fit_seconds": round(fit, 1),
        "scores_seconds": round(scores, 1),
        "forecast_seconds": round(forecast.seconds, 1),
        "peak_gb": round(peak / 1e9, 2),
        "disk_gb": round(disk / 1e9, 3),
    }
    print(found)
    if asked.out is not None:
        merged(asked.out, {"head_to_head": found})


if __name__ == "__main__":
    main()
