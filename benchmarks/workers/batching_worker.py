"""transformers' continuous batching, its manager driven in a closed loop."""

from __future__ import annotations

import sys

import torch
from jobs import Traces, serve
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

BLOCKS = 128
"""Of 256 tokens: enough for 32 streams of 1024."""


class Batching:
    """One manager for all jobs: making it takes a second, which no server would pay again."""

    def __init__(self, folder: str, dtype: str) -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        config = GenerationConfig(do_sample=False, pad_token_id=0)
        # Left alone it takes most of the machine's memory, which it shares with the other sides.
        room = ContinuousBatchingConfig(num_blocks=BLOCKS)
        self._manager = model.init_continuous_batching(
            generation_config=config, continuous_batching_config=room
        )
        self._manager.start()

    def batch(self, prompts: list[list[int]], max_tokens: int, streams: int) -> dict:
        traces = Traces(len(prompts))
        waiting = iter(range(len(prompts)))

        def submit_next() -> None:
            index = next(waiting, None)
            if index is not None:
                traces.submit(index)
                self._manager.add_request(
                    prompts[index],
                    request_id=str(index),
                    max_new_tokens=max_tokens,
                    record_timestamps=True,
                )

        for _ in range(streams):
            submit_next()
        for _ in prompts:
            self._take(traces)
            submit_next()
        return traces.answer()

    def _take(self, traces: Traces) -> None:
        """Wait for the next request that has ended."""
        while True:
            result = self._manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                break
            if result is None and not self._manager.is_running():
                raise RuntimeError("the continuous batching manager stopped")
        if result.error:
            raise RuntimeError(result.error)
        trace = traces.all[int(result.request_id)]
        trace["tokens"] = list(result.generated_tokens)
        trace["times"] = list(result.timestamps)


if __name__ == "__main__":
    serve(Batching(*sys.argv[1:]))
