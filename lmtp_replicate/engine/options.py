"""How a model is to be loaded, as values. No torch: the build tool and the client read this too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from lmtp_replicate.errors import ConfigError

_DTYPE_SPELLINGS = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "fp32": "float32",
    "float": "float32",
}

QUANTIZATION_PREFIXES = ("bnb_4bit_", "llm_int8_")
"""Keys of `model_args` that refine `quantize`; their names are BitsAndBytesConfig's."""

_REFUSED = {
    "attn_implementation": "the engine brings its own attention",
    "quantization_config": 'write quantize = "4bit" or "8bit", and bnb_4bit_* or llm_int8_* keys',
    "token": "set the environment variable HF_TOKEN instead, so that no file holds a secret",
    "use_auth_token": "set the environment variable HF_TOKEN instead",
    "config": "the checkpoint's own config is used",
    "state_dict": "the checkpoint's own weights are used",
    "output_hidden_states": "the engine decides what the model returns",
    "output_attentions": "the engine decides what the model returns",
    "return_dict": "the engine decides what the model returns",
    "use_cache": "the engine keeps the cache",
    "max_memory": 'write device_map as a mapping, or restrict CUDA_VISIBLE_DEVICES, with "auto"',
}

_OBSOLETE = frozenset({"low_cpu_mem_usage"})
"""Old keys that ask for what transformers always does now."""


def _plain_dtype(value: object) -> object:
    if not isinstance(value, str):
        return value
    name = value.removeprefix("torch.")
    return _DTYPE_SPELLINGS.get(name, name)


Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(_plain_dtype)]
Quantize = Literal["4bit", "8bit"]
PackLinears = Literal["all", "untied", "none"]


class LoadOptions(BaseModel):
    """How a checkpoint becomes a model in memory. JSON-able; stored in a work directory's
    ``config.json``.

    - `dtype`: of the weights and the arithmetic; "auto" chooses by checkpoint and device.
    - `device`: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:N".
    - `device_map`: spread over several devices ("auto", or module name to device); excludes
      `device`.
    - `quantize`: "4bit" or "8bit" by bitsandbytes, or None for the weights as they are.
    - `revision`: branch, tag or commit of a Hub repository.
    - `trust_remote_code`: run Python code that comes with the checkpoint.
    - `allow_pickle`: also load ``.bin`` weights, which can run code when they are opened.
    - `kv_cache_bytes`: memory for keys and values; None lets the engine choose.
    - `pack_linears`: which linear layers a CPU gets in a layout of its own: "all", "untied" (not
      those whose weight is used elsewhere, which would be held twice: a tied output head) or
      "none".
    - `compile_kernels`: for float32 and bfloat16 on a CPU, compile kernels of our own for it
      (attention, norms, linear layers), if there is a C compiler; on a GPU, norms by one kernel
      each.
    - `decode_graphs`: on one GPU, record the steps that generate tokens and replay them (CUDA
      graphs), where that can be proved to work. Off until it has been measured on a GPU.
    - `model_args`: further arguments of transformers' `from_pretrained`, and of BitsAndBytesConfig
      (``bnb_4bit_*``, ``llm_int8_*``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    dtype: Dtype = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    device_map: str | dict[str, int | str] | None = None
    quantize: Quantize | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    kv_cache_bytes: PositiveInt | None = None
    pack_linears: PackLinears = "all"
    compile_kernels: bool = True
    decode_graphs: bool = False
    model_args: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in self.model_args:
            if key in _REFUSED:
                raise ValueError(f"{key}: cannot be set; {_REFUSED[key]}")
            if key in type(self).model_fields or key in _OLD_SPELLINGS:
                raise ValueError(f"{key}: is an option of its own, not one of model_args")
            if key.startswith(QUANTIZATION_PREFIXES) and self.quantize is None:
                raise ValueError(f'{key}: has no meaning without quantize = "4bit" or "8bit"')
        if self.device_map is not None and self.device != "auto":
            raise ValueError("device_map: contradicts device; give one of the two")
        return self

    @classmethod
    def from_model_args(cls, arguments: Mapping[str, Any]) -> Self:
        """Options from the free-form ``config.*`` keys of config.toml.

        Fields of this class keep their names; the spellings of older transformers (load_in_4bit,
        load_in_8bit, torch_dtype, use_safetensors) are understood; every other key becomes one of
        `model_args`. Raises ConfigError, which names the key.
        """
        rest = {key: value for key, value in arguments.items() if key not in _OBSOLETE}
        known = {key: rest.pop(key) for key in list(rest) if key in cls.model_fields}
        for old in [key for key in rest if key in _OLD_SPELLINGS]:
            new, value = _modern(old, rest.pop(old))
            if value is not None:
                _set_once(known, new, value, old)
        nested = known.get("model_args", {})
        if isinstance(nested, Mapping):
            known["model_args"] = {**nested, **rest}
        try:
            return cls.model_validate(known)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from None


_OLD_SPELLINGS = frozenset({"torch_dtype", "use_safetensors", "load_in_4bit", "load_in_8bit"})


def _modern(old: str, value: object) -> tuple[str, object]:
    """The field and value that the old spelling `old` means; a value of None changes nothing."""
    if old == "torch_dtype":
        return "dtype", _plain_dtype(value)
    if not isinstance(value, bool):
        raise ConfigError(f"{old}: must be true or false, not {value!r}")
    if old == "use_safetensors":
        return "allow_pickle", not value
    return "quantize", old.removeprefix("load_in_") if value else None


def _set_once(known: dict[str, Any], new: str, value: object, old: str) -> None:
    present = _plain_dtype(known[new]) if new in known else value
    if present != value:
        raise ConfigError(f"{old}: contradicts {new} = {present!r}; give one of the two")
    known[new] = value


def _explain(error: ValidationError) -> str:
    """All faults of `error` in one line, each with its key. Values are left out where pydantic
    would print the whole mapping."""
    faults = []
    for fault in error.errors(include_url=False):
        key = ".".join(str(part) for part in fault["loc"])
        text = fault["msg"].removeprefix("Value error, ")
        faults.append(f"{key}: {text} (got {fault['input']!r})" if key else text)
    return "; ".join(faults)
