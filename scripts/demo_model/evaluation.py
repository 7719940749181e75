"""Classify reviews as a query does: write an analysis, then score the three words after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.demo_model.reviews import Example

LABELS = ("positive", "negative", "neutral")
LONGEST_ANALYSIS = 120


def accuracy(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> float:
    """The share of `examples` that get their label by way of the model's own analysis."""
    labels = [label for _, label in classify(model, tokenizer, examples)]
    pairs = zip(labels, examples, strict=True)
    return sum(label == example.label for label, example in pairs) / len(examples)


@torch.inference_mode()
def classify(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example]
) -> list[tuple[str, str]]:
    """(the model's analysis, its label) for each example, decoding greedily, in one batch."""
    tokenizer.padding_side = "left"
    prompts = tokenizer(
        [example.prompt() for example in examples], return_tensors="pt", padding=True
    )
    newline = tokenizer.encode("\n", add_special_tokens=False)[0]
    output = model.generate(
        **prompts,
        max_new_tokens=LONGEST_ANALYSIS,
        do_sample=False,
        eos_token_id=newline,
        pad_token_id=tokenizer.pad_token_id,
    )
    written = tokenizer.batch_decode(
        output[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
    )
    texts = [
        example.prompt() + analysis + example.question()
        for example, analysis in zip(examples, written, strict=True)
    ]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    logits = model(**batch, logits_to_keep=1).logits[:, -1]
    ids = [tokenizer.encode(f" {label}", add_special_tokens=False)[0] for label in LABELS]
    best = logits[:, ids].argmax(dim=-1)
    return [(text, LABELS[int(index)]) for text, index in zip(written, best, strict=True)]
