"""vLLM on a CPU, its engine stepped in this process. Runs in a venv of its own."""

from __future__ import annotations

import os
import sys

# One process: the engine's own core process would share two cores with this one.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")

from jobs import Traces, serve
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind


class VLLM:
    def __init__(self, folder: str, dtype: str) -> None:
        model = LLM(
            model=folder,
            dtype=dtype,
            skip_tokenizer_init=True,
            max_model_len=2048,
            enforce_eager=False,
        )
        self._engine = model.llm_engine
        self._made = 0

    def batch(self, prompts: list[list[int]], max_tokens: int, streams: int) -> dict:
        traces = Traces(len(prompts))
        waiting = iter(range(len(prompts)))
        running: dict[str, int] = {}
        for _ in range(streams):
            self._submit(next(waiting, None), prompts, max_tokens, traces, running)
        while running:
            for output in self._engine.step():
                index = running[output.request_id]
                for token in output.outputs[0].token_ids:
                    traces.add(index, token)
                if output.finished:
                    del running[output.request_id]
                    self._submit(next(waiting, None), prompts, max_tokens, traces, running)
        return traces.answer()

    def _submit(
        self,
        index: int | None,
        prompts: list[list[int]],
        max_tokens: int,
        traces: Traces,
        running: dict[str, int],
    ) -> None:
        if index is None:
            return
        # New for each request: the engine writes into it.
        sampling = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        self._made += 1
        name = str(self._made)
        running[name] = index
        traces.submit(index)
        self._engine.add_request(name, {"prompt_token_ids": prompts[index]}, sampling)


if __name__ == "__main__":
    serve(VLLM(*sys.argv[1:]))
