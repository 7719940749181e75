"""The floor: the forwards that the work cannot do without, and nothing else. No queue, no
sampling but argmax, no log probabilities, no JSON; each prefix is computed once."""

from __future__ import annotations

import sys
from time import perf_counter

import torch
from bare_model import BareModel
from jobs import Traces, serve, waves
from transformers.cache_utils import Cache

FORBIDDEN = float("-inf")


class Floor:
    """Answers the jobs of every comparison; arguments as `benchmarks.workload` has them."""

    def __init__(self, folder: str, dtype: str, kernels: str) -> None:
        self._bare = BareModel(folder, dtype, is_packed=kernels == "packed")

    @torch.inference_mode()
    def batch(self, prompts: list[list[int]], max_tokens: int, streams: int) -> dict:
        """Each prompt alone, then `streams` of them together, a token a step."""
        traces = Traces(len(prompts))
        for wave in waves(len(prompts), streams):
            for index in wave:
                traces.submit(index)
            caches = []
            for index in wave:
                caches.append(self._prefilled(prompts[index], 0))
                traces.add(index, self._next)
            last = torch.tensor([[traces.all[index]["tokens"][-1]] for index in wave])
            joined, padding = self._bare.join(caches, max_tokens)
            has_padding = bool(padding.any())
            for _ in range(max_tokens - 1):
                logits = self._bare.forward(last, joined, padding=padding if has_padding else None)
                last = logits[:, -1].argmax(-1, keepdim=True)
                for index, token in zip(wave, last[:, 0].tolist(), strict=True):
                    traces.add(index, token)
        return traces.answer()

    @torch.inference_mode()
    def chain(
        self, prompt: list[int], ops: int, max_tokens: int, masks: list[tuple[list[int], bool]]
    ) -> dict:
        """One stream from the first op to the last."""
        biases = [self._bias(*mask) for mask in masks]
        cache = self._bare.cache(len(prompt) + ops * max_tokens)
        start = perf_counter()
        pending, answers, times = prompt, [], []
        for op in range(ops):
            began = perf_counter()
            tokens = []
            for _ in range(max_tokens):
                logits = self._bare.forward(torch.tensor([pending]), cache)[0, -1]
                if biases:
                    logits = logits + biases[op % len(biases)]
                pending = [int(logits.argmax())]
                tokens += pending
            answers.append(tokens)
            times.append(perf_counter() - began)
        return {"answers": answers, "seconds": times, "wall": perf_counter() - start}

    @torch.inference_mode()
    def fan_out(self, prefixes: list[list[int]], options: list[list[int]], generated: int) -> dict:
        """All options of a round in one forward, after one computation of the prefix."""
        seconds, scores = [], []
        for prefix in prefixes:
            whole, cache = prefix, None
            if generated:
                cache = self._prefilled(prefix, generated)
                whole = [*prefix, self._next]
                while len(whole) < len(prefix) + generated:
                    logits = self._bare.forward(torch.tensor([whole[-1:]]), cache)
                    whole.append(int(logits[0, -1].argmax()))
            start = perf_counter()
            scores.append(self._score(cache or self._prefilled(whole[:-1], 1), whole[-1], options))
            seconds.append(perf_counter() - start)
        return {"seconds": seconds, "scores": scores}

    def _prefilled(self, prompt: list[int], more: int) -> Cache:
        cache = self._bare.cache(len(prompt) + more)
        logits = self._bare.forward(torch.tensor([prompt]), cache)
        self._next = int(logits[0, -1].argmax())
        return cache

    def _score(self, cache: Cache, last: int, options: list[list[int]]) -> list[list[float]]:
        width = max(map(len, options))
        rows = [[last, *option[:-1]] + [0] * (width - len(option)) for option in options]
        joined, _ = self._bare.join([cache] * len(options), width)
        logits = self._bare.forward(torch.tensor(rows), joined, kept=width)
        logs = logits.float().log_softmax(-1)
        return [
            [float(logs[row, place, token]) for place, token in enumerate(option)]
            for row, option in enumerate(options)
        ]

    def _bias(self, ids: list[int], is_whitelist: bool) -> torch.Tensor:
        size = self._bare.model.config.vocab_size
        bias = torch.full((size,), FORBIDDEN if is_whitelist else 0.0)
        bias[ids] = 0.0 if is_whitelist else FORBIDDEN
        return bias


if __name__ == "__main__":
    serve(Floor(*sys.argv[1:]))
