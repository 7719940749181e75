"""Random messages for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import (
    Cancel,
    Ending,
    ErrorItem,
    FinishReason,
    Generate,
    Info,
    Item,
    ModelInfo,
    Op,
    Sampling,
    Score,
    TokenItem,
    Usage,
)

ids = st.integers(0, 5000)
stream_ids = st.integers(0, 2**53)
prompts = st.lists(ids, max_size=8).map(tuple)
logprobs = st.floats(max_value=0, allow_nan=False, allow_infinity=False)
biases = st.floats(-150, 150) | st.sampled_from([100, -100, 0])
masks = st.dictionaries(ids, biases, max_size=60).map(Mask.from_logit_bias)
samplings = st.builds(
    Sampling,
    temperature=st.just(0.0) | st.floats(0.001, 100),
    top_k=st.integers(0, 100),
    top_p=st.floats(0, 1, exclude_min=True),
    seed=st.none() | st.integers(0, 2**63 - 1),
    repetition_penalty=st.floats(0.01, 100),
    presence_penalty=st.floats(-100, 100),
    frequency_penalty=st.floats(-100, 100),
)
generates = st.builds(
    Generate,
    stream_ids,
    prompts,
    st.integers(1, 1000),
    samplings,
    masks,
    st.integers(0, 20),
)
ops: st.SearchStrategy[Op] = (
    generates
    | st.builds(Score, stream_ids, prompts, prompts)
    | st.builds(ModelInfo, stream_ids, st.frozensets(st.text(max_size=5), max_size=2))
    | st.builds(Cancel, stream_ids)
)
json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
reasons = st.sampled_from(FinishReason)
objects = st.dictionaries(st.text(max_size=5), json_like, max_size=3)
items: st.SearchStrategy[Item] = (
    st.builds(
        TokenItem,
        stream_ids,
        ids,
        logprobs,
        st.dictionaries(ids, logprobs, max_size=4),
        st.none() | reasons,
    )
    | st.builds(Ending, stream_ids, reasons)
    | st.builds(ErrorItem, st.none() | stream_ids, st.text(max_size=20))
    | st.builds(Info, stream_ids, objects)
    | st.builds(Usage, objects)
)
