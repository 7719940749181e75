"""llama.cpp with a batching loop of our own over its C interface: decode tokens first, then
prompts as far as the step has room. Runs in a venv of its own."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import numpy as np
from jobs import Traces, serve
from llama_weights import converted

STEP_TOKENS = 2048
LONGEST = 640
"""Context of one stream: the longest prompt and what follows it."""


@dataclass
class Stream:
    index: int
    prompt: list[int]
    done: int = 0
    """Tokens that llama.cpp has seen."""
    last: int = -1


class Llama:
    """float16 stands for any 16-bit dtype: llama.cpp multiplies no other one fast on a CPU."""

    def __init__(self, folder: str, dtype: str) -> None:
        llama_cpp.llama_backend_init()
        self._is_float32 = dtype == "float32"
        kind = "float32" if self._is_float32 else "float16"
        parameters = llama_cpp.llama_model_default_params()
        path = str(converted(Path(folder), kind)).encode()
        self._model = llama_cpp.llama_model_load_from_file(path, parameters)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        self._batch = llama_cpp.llama_batch_init(STEP_TOKENS, 0, 1)

    def batch(self, prompts: list[list[int]], max_tokens: int, streams: int) -> dict:
        self._context = self._new_context(streams)
        traces = Traces(len(prompts))
        waiting = list(enumerate(prompts))[::-1]
        slots: dict[int, Stream] = {}
        while waiting or slots:
            for slot in range(streams):
                if slot not in slots and waiting:
                    index, prompt = waiting.pop()
                    traces.submit(index)
                    slots[slot] = Stream(index, prompt)
            for slot, token in self._step(slots).items():
                stream = slots[slot]
                stream.last = token
                traces.add(stream.index, token)
                if len(traces.all[stream.index]["tokens"]) == max_tokens:
                    memory = llama_cpp.llama_get_memory(self._context)
                    llama_cpp.llama_memory_seq_rm(memory, slot, -1, -1)
                    del slots[slot]
        answer = traces.answer()
        llama_cpp.llama_free(self._context)
        return answer

    def _new_context(self, streams: int) -> object:
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = LONGEST * streams
        parameters.n_batch = STEP_TOKENS
        parameters.n_ubatch = 512
        parameters.n_seq_max = streams
        if self._is_float32:  # else it keeps keys and values in 16 bits all the same
            parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        parameters.n_threads = parameters.n_threads_batch = len(os.sched_getaffinity(0))
        return llama_cpp.llama_init_from_model(self._model, parameters)

    def _step(self, slots: dict[int, Stream]) -> dict[int, int]:
        """One forward; the new token of each stream that has one, by slot."""
        self._batch.n_tokens = 0
        rows: dict[int, int] = {}
        for slot, stream in sorted(slots.items(), key=lambda pair: pair[1].last < 0):
            if stream.last >= 0:
                self._append(stream.last, stream.done, slot, is_last=True)
                stream.done += 1
                rows[slot] = self._batch.n_tokens - 1
                continue
            room = STEP_TOKENS - self._batch.n_tokens
            chunk = stream.prompt[stream.done : stream.done + room]
            for token in chunk:
                stream.done += 1
                self._append(
                    token, stream.done - 1, slot, is_last=stream.done == len(stream.prompt)
                )
            if chunk and stream.done == len(stream.prompt):
                rows[slot] = self._batch.n_tokens - 1
        if llama_cpp.llama_decode(self._context, self._batch) != 0:
            raise RuntimeError("llama_decode failed")
        return {slot: self._best(row) for slot, row in rows.items()}

    def _append(self, token: int, position: int, slot: int, *, is_last: bool) -> None:
        batch, place = self._batch, self._batch.n_tokens
        batch.token[place] = token
        batch.pos[place] = position
        batch.n_seq_id[place] = 1
        batch.seq_id[place][0] = slot
        batch.logits[place] = is_last
        batch.n_tokens += 1

    def _best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(logits, (self._vocabulary,)).argmax())


if __name__ == "__main__":
    serve(Llama(*sys.argv[1:]))
