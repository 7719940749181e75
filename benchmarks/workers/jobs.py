"""How a side that lives in a process of its own is asked: one job as JSON per line of standard
input, one answer as JSON per line of standard output. Standard library only, because a worker may
run in a venv without this project."""

from __future__ import annotations

import json
import os
import sys
import traceback
from time import perf_counter

# What libraries print while they load must not come between the answers: from here on, standard
# output is standard error to everyone else.
_answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


class Traces:
    """When each token of each request came, as the driver reads it. perf_counter is one clock for
    all processes of a Linux machine."""

    def __init__(self, count: int) -> None:
        self.all = [{"submitted": 0.0, "tokens": [], "times": []} for _ in range(count)]
        self.start = perf_counter()

    def submit(self, index: int) -> None:
        self.all[index]["submitted"] = perf_counter()

    def add(self, index: int, token: int) -> None:
        self.all[index]["tokens"].append(int(token))
        self.all[index]["times"].append(perf_counter())

    def answer(self) -> dict:
        return {"traces": self.all, "wall": perf_counter() - self.start}


def waves(count: int, size: int) -> list[range]:
    """0 to count - 1 in neighbouring groups of `size`."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def serve(worker: object) -> None:
    """Answer jobs `{"job": NAME, "arguments": {...}}` by the worker's methods until the
    input ends."""
    _answers.write(json.dumps({"ready": True}) + "\n")
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = getattr(worker, job["job"])(**job["arguments"])
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        _answers.write(json.dumps(answer) + "\n")
