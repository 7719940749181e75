"""Plain transformers `generate`: padded batches, one after another."""

from __future__ import annotations

import sys

import torch
from jobs import Traces, serve, waves
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.streamers import BaseStreamer


class Clock(BaseStreamer):
    """Notes the tokens of a batch as they come. transformers sends the prompt first."""

    def __init__(self, traces: Traces, wave: range) -> None:
        self._traces = traces
        self._wave = wave
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            for index, token in zip(self._wave, value.tolist(), strict=True):
                self._traces.add(index, token)
        self._is_prompt = False

    def end(self) -> None:
        pass


class Generate:
    def __init__(self, folder: str, dtype: str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))

    def batch(self, prompts: list[list[int]], max_tokens: int, streams: int) -> dict:
        traces = Traces(len(prompts))
        for wave in waves(len(prompts), streams):
            for index in wave:
                traces.submit(index)
            self._generate([prompts[index] for index in wave], max_tokens, Clock(traces, wave))
        return traces.answer()

    def _generate(self, prompts: list[list[int]], max_tokens: int, clock: Clock) -> None:
        width = max(map(len, prompts))
        tokens = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        config = GenerationConfig(do_sample=False, max_new_tokens=max_tokens, pad_token_id=0)
        self._model.generate(tokens, attention_mask=mask, generation_config=config, streamer=clock)


if __name__ == "__main__":
    serve(Generate(*sys.argv[1:]))
