"""What no engine on these kernels beats: the time that the model's linear layers take by
themselves, for the work of `benchmarks.engine`, without attention, norms, sampling or a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from benchmarks.engine import LENGTHS, NEW, REQUESTS
from benchmarks.model import BENCHMARK, TINY, make
from lmtp_replicate.engine.loading import load
from lmtp_replicate.engine.options import LoadOptions
from lmtp_replicate.engine.packed_linear import PackedLinear
from lmtp_replicate.engine.packed_linears import pack_linears
from lmtp_replicate.engine.threads import in_passing_thread

CHUNK = 512
"""Rows of the step in which a token of a prompt is cheapest."""
HEAD = "lm_head"


class Linears:
    """The linear layers of a model, packed as our engine packs them."""

    def __init__(self, model: nn.Module) -> None:
        pack_linears(model, "all", compile_kernels=False)
        kinds = (nn.Linear, PackedLinear)
        named = [(name, m) for name, m in model.named_modules() if isinstance(m, kinds)]
        self._body = [layer for name, layer in named if name != HEAD]
        self._head = [layer for name, layer in named if name == HEAD]

    def seconds(self, rows: int, *, with_head: bool) -> float:
        """One pass of `rows` tokens through all of them, with or without the output head."""
        layers = self._body + (self._head if with_head else [])
        inputs: dict[int, Tensor] = {
            layer.in_features: torch.randn(1, rows, layer.in_features) for layer in layers
        }
        start = perf_counter()
        for layer in layers:
            layer(inputs[layer.in_features])
        return perf_counter() - start


def tokens_per_second(streams: int, step: float, prompt_token: float) -> float:
    """Of the engine comparison's case, were each step and each token of a prompt to take no longer
    than that."""
    requests = REQUESTS[streams]
    prompts = requests * sum(LENGTHS) / 2 * prompt_token
    return requests * NEW / (prompts + requests * NEW / streams * step)


def measure(linears: Linears, rounds: int) -> list[str]:
    """The lines of a table. The numbers of rows take turns."""
    steps: dict[int, list[float]] = {streams: [] for streams in REQUESTS}
    prompt_tokens: list[float] = []
    with torch.inference_mode():
        for number in range(rounds + 1):  # the first one warms up
            taken = {streams: linears.seconds(streams, with_head=True) for streams in steps}
            prompt_token = linears.seconds(CHUNK, with_head=False) / CHUNK
            if number:
                prompt_tokens.append(prompt_token)
                for streams, seconds in taken.items():
                    steps[streams].append(seconds)
    lines = ["| streams | step, ms | prompt token, ms | tokens/s at most |", "| --- " * 4 + "|"]
    for streams, seconds in steps.items():
        each = [
            tokens_per_second(streams, *pair) for pair in zip(seconds, prompt_tokens, strict=True)
        ]
        lines.append(
            f"| {streams} | {median(seconds) * 1000:.1f} | {median(prompt_tokens) * 1000:.2f} "
            f"| {median(each):.0f} ({min(each):.0f} to {max(each):.0f}) |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bound", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="(%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--quick", action="store_true", help="a tiny model: only a try")
    options = parser.parse_args(arguments)
    folder = make(TINY if options.quick else BENCHMARK)

    def run() -> list[str]:
        model = load(folder, LoadOptions(dtype=options.dtype, device="cpu")).model
        return measure(Linears(model), options.rounds)

    print("\n".join(in_passing_thread(run)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
