"""A decoded op (plain objects, from JSON or msgpack) to one of the frozen messages.

Whatever is wrong becomes a `ProtocolError` that names the field and, when it could be read, the
stream. Unknown keys are ignored; null is the same as absent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmtp_replicate.errors import ProtocolError
from lmtp_replicate.protocol.limits import LIMITS
from lmtp_replicate.protocol.mask_names import MaskNames
from lmtp_replicate.protocol.masks import Mask
from lmtp_replicate.protocol.messages import Cancel, Generate, ModelInfo, Op, Sampling, Score
from lmtp_replicate.protocol.payloads import brief
from lmtp_replicate.protocol.token_ids import read_ids, read_prompt

Payload = Mapping[str, Any]
GREEDY_BELOW = 1e-6
"""A temperature so low that dividing by it leaves float32: greedy, as its limit is."""
LARGE = 2**31 - 1

Penalty = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


class Settings(BaseModel):
    """The scalar fields of GENERATE with their ranges and defaults (upstream's, where it has
    one)."""

    model_config = ConfigDict(strict=True, frozen=True)

    max_tokens: Annotated[int, Field(ge=1, le=LARGE)] = 32
    temperature: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 0.0
    top_logprobs: Annotated[int, Field(ge=0, le=LIMITS.top_logprobs)] = 1
    top_k: Annotated[int, Field(ge=0, le=LARGE)] = 0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)] = 1.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0

    def sampling(self) -> Sampling:
        """The part that says how a token is chosen."""
        return Sampling(
            temperature=self.temperature if self.temperature >= GREEDY_BELOW else 0.0,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )


def read_op(kind: object, payload: object, masks: MaskNames) -> Op:
    """The op that `kind` and `payload` say. Raises `ProtocolError`."""
    if not isinstance(payload, dict):
        raise ProtocolError(f"must be an object, not {brief(payload)}", field="arguments")
    stream_id = read_stream_id(payload)
    reader = READERS.get(kind) if isinstance(kind, str) else None
    try:
        if reader is None:
            raise ProtocolError(f"one of {', '.join(READERS)}, not {brief(kind)}", field="command")
        return reader(stream_id, payload, masks)
    except ProtocolError as error:
        error.stream_id = stream_id
        raise


def read_stream_id(payload: Payload) -> int:
    """The field `stream_id`. Raises `ProtocolError`."""
    stream_id = payload.get("stream_id")
    if type(stream_id) is not int or not 0 <= stream_id <= LIMITS.max_stream_id:
        raise ProtocolError(
            f"must be an integer from 0 to 2^53, not {brief(stream_id)}", field="stream_id"
        )
    return stream_id


def _read_generate(stream_id: int, payload: Payload, masks: MaskNames) -> Generate:
    # The mask first: a name it defines is known to the next op even if this one is refused.
    mask = _read_mask(payload, masks)
    settings = _read_settings(payload)
    return Generate(
        stream_id,
        read_prompt(payload.get("prompt")),
        settings.max_tokens,
        settings.sampling(),
        mask,
        settings.top_logprobs,
    )


def _read_score(stream_id: int, payload: Payload, _: MaskNames) -> Score:
    scored = read_ids(payload.get("scored"), "scored", most=LIMITS.prompt_tokens)
    return Score(stream_id, read_prompt(payload.get("prompt")), scored)


def _read_model_info(stream_id: int, payload: Payload, _: MaskNames) -> ModelInfo:
    data = payload.get("data")
    extensions = data.get("extensions") if isinstance(data, dict) else None
    if extensions is None:
        return ModelInfo(stream_id)
    if not isinstance(extensions, list) or not all(isinstance(name, str) for name in extensions):
        raise ProtocolError("must be a list of strings", field="data.extensions")
    return ModelInfo(stream_id, frozenset(extensions))


def _read_cancel(stream_id: int, _payload: Payload, _masks: MaskNames) -> Cancel:
    return Cancel(stream_id)


READERS: Mapping[str, Callable[[int, Payload, MaskNames], Op]] = {
    "GENERATE": _read_generate,
    "SCORE": _read_score,
    "MODEL_INFO": _read_model_info,
    "CANCEL": _read_cancel,
}


def _read_settings(payload: Payload) -> Settings:
    given = {name: payload[name] for name in Settings.model_fields if payload.get(name) is not None}
    try:
        return Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = str(first["loc"][0])
        reason = first["msg"].removeprefix("Input should be ")
        raise ProtocolError(f"must be {reason}, not {brief(given[name])}", field=name) from None


def _read_mask(payload: Payload, masks: MaskNames) -> Mask | None:
    mask, bias = payload.get("mask"), payload.get("logit_bias")
    if mask is not None and bias:
        raise ProtocolError("cannot be given together with logit_bias", field="mask")
    if mask is not None:
        return masks.read(mask)
    return None if bias is None else masks.biases.mask_of(bias)
