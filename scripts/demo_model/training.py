"""Train the demo model: plain AdamW on freshly drawn examples, on one CPU thread."""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.demo_model.evaluation import accuracy
from scripts.demo_model.reviews import Example, make_example

CONTEXT = 512
#: Weights in the loss: what the model has to write, the label, and what it only has to read.
WRITTEN, LABEL, READ = 1.0, 3.0, 0.0


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train."""

    steps: int
    batch: int = 16
    peak_rate: float = 3e-3
    warmup: int = 100
    seed: int = 20

    def rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to a fiftieth of the peak."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.peak_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 1.1 million parameters with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def train(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Train and return the model; progress goes to stdout."""
    torch.manual_seed(plan.seed)
    torch.set_flush_denormal(True)  # they cost more than the arithmetic
    model = new_model(tokenizer)
    model.set_attn_implementation("eager")  # at this size faster than the fused kernel
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.05)
    batches = _batches(plan, tokenizer)
    started, losses = time.monotonic(), deque[float](maxlen=100)
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.rate(step)
        loss = _loss(model, *next(batches))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 100 == 99:
            mean, spent = sum(losses) / len(losses), time.monotonic() - started
            print(f"step {step + 1}/{plan.steps}  loss {mean:.4f}  {spent:.0f} s", flush=True)
        if step % 500 == 499:
            print(f"    accuracy {check(model, tokenizer, 100):.3f}", flush=True)
    return model.eval()


def check(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, count: int) -> float:
    """Accuracy on `count` held-out reviews (see `accuracy`)."""
    rng = random.Random("held out")
    examples = [make_example(rng, held_out=True) for _ in range(count)]
    return accuracy(model, tokenizer, examples)


def _batches(
    plan: Plan, tokenizer: PreTrainedTokenizerFast
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of (ids, loss weights), both [batch, length]; alike lengths share a batch."""
    rng = random.Random(plan.seed)
    while True:
        rows = [encode(make_example(rng), rng, tokenizer) for _ in range(plan.batch * 16)]
        rows.sort(key=lambda row: len(row[0]))
        batches = [rows[at : at + plan.batch] for at in range(0, len(rows), plan.batch)]
        rng.shuffle(batches)
        for batch in batches:
            longest = len(batch[-1][0])
            ids = torch.full((len(batch), longest), tokenizer.pad_token_id)
            weights = torch.full((len(batch), longest), READ)
            for row, (row_ids, row_weights) in enumerate(batch):
                ids[row, : len(row_ids)] = torch.tensor(row_ids)
                weights[row, : len(row_ids)] = torch.tensor(row_weights)
            yield ids, weights


def encode(
    example: Example, rng: random.Random, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[float]]:
    """Token ids and the weight of each in the loss.

    Most examples have LMQL's layout, some the plain one with single line breaks, and in some the
    analysis lacks its line break, as when a query cuts it short.
    """
    gap = rng.choices(("\n\n", "\n"), (4, 1))[0]
    end = rng.choices(("\n", ""), (5, 1))[0]
    parts = (
        (example.prompt(gap), READ),
        (example.analysis + "\n", WRITTEN),
        ((gap if end else gap[1:]) + example.question(gap)[len(gap) :], READ),
        (f" {example.label}{tokenizer.eos_token}", LABEL),
    )
    ids, weights = [tokenizer.bos_token_id], [READ]
    for text, weight in parts:
        part = tokenizer.encode(text, add_special_tokens=False)
        ids += part
        weights += [weight] * len(part)
    return ids, weights


def _loss(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean cross entropy of each token given those before it, in nats."""
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
    counts = weights[:, 1:] > 0
    targets, weights = ids[:, 1:][counts], weights[:, 1:][counts]
    logits = model.lm_head(hidden[counts])
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return (losses * weights).sum() / weights.sum()
