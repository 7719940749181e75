"""Which files of a repository are taken: one set of weights, and what belongs to it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtp_replicate.building.checkpoint import Checkpoint, choose
from lmtp_replicate.errors import ConfigError
from tests.building.tiny import index

TWO = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
TWO_BIN = ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin")


def chosen(
    *names: str, texts: dict[str, str] | None = None, pickle: bool = False, code: bool = False
) -> Checkpoint:
    return choose(
        {*names, *(texts or {}), "config.json"},
        (texts or {}).__getitem__,
        allow_pickle=pickle,
        remote_code=code,
    )


def test_a_single_file() -> None:
    assert chosen("model.safetensors").weights == ("model.safetensors",)


def test_shards_are_those_of_the_index_and_no_others() -> None:
    found = chosen(
        *TWO,
        "model-00001-of-00003.safetensors",
        texts={"model.safetensors.index.json": index(*TWO)},
    )
    assert found.weights == TWO
    assert found.texts == ("config.json", "model.safetensors.index.json")


def test_shards_in_a_folder_keep_it() -> None:
    found = chosen("parts/a.safetensors", texts={
        "model.safetensors.index.json": index("parts/a.safetensors")})  # fmt: skip
    assert found.weights == ("parts/a.safetensors",)


def test_a_single_file_goes_before_an_index_as_in_transformers() -> None:
    found = chosen("model.safetensors", *TWO, texts={"model.safetensors.index.json": index(*TWO)})
    assert found.weights == ("model.safetensors",)
    assert found.texts == ("config.json",)


def test_safetensors_go_before_pickles_even_where_these_are_allowed() -> None:
    found = chosen(
        *TWO,
        "pytorch_model.bin",
        texts={"model.safetensors.index.json": index(*TWO)},
        pickle=True,
    )
    assert found.weights == TWO


def test_pickles_only_with_permission() -> None:
    with pytest.raises(ConfigError, match=r"config\.allow_pickle = true"):
        chosen("pytorch_model.bin")
    assert chosen("pytorch_model.bin", pickle=True).weights == ("pytorch_model.bin",)
    sharded = chosen(*TWO_BIN, texts={"pytorch_model.bin.index.json": index(*TWO_BIN)}, pickle=True)
    assert sharded.weights == TWO_BIN
    assert "pytorch_model.bin.index.json" in sharded.texts


def test_the_same_weights_in_other_formats_are_left() -> None:
    others = [
        "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.gguf",
        "consolidated.00.pth", "consolidated.safetensors", "model.fp16.safetensors",
        "onnx/model.onnx", "onnx/model.onnx_data", "onnx/config.json", "original/params.json",
        "original/consolidated.00.pth", "original/tokenizer.model", "openvino/openvino_model.bin",
        "checkpoint-500/model.safetensors", "checkpoint-500/config.json", "optimizer.pt",
        "trainer_state.json", "training_args.bin", "pytorch_model.bin.index.json",
        "adapter_config.json", "adapter_model.safetensors", "README.md", "corpus.txt", "logo.png",
    ]  # fmt: skip
    found = chosen("model.safetensors", *others)
    assert found.files == ("model.safetensors", "config.json")


def test_everything_a_tokenizer_needs_is_taken() -> None:
    tokenizer = [
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "vocab.txt", "vocab.bpe", "merges.txt", "tokenizer.model", "spiece.model",
        "sentencepiece.bpe.model", "qwen.tiktoken", "chat_template.jinja", "chat_template.json",
        "additional_chat_templates/tool.jinja", "generation_config.json",
        "preprocessor_config.json", "LICENSE", "LICENSE.txt", "NOTICE",
    ]  # fmt: skip
    found = chosen("model.safetensors", *tokenizer)
    assert set(found.texts) == {*tokenizer, "config.json"}


def test_code_only_with_permission() -> None:
    names = ("model.safetensors", "modeling_x.py", "tests/test_x.py")
    assert chosen(*names).code == ()
    assert chosen(*names, code=True).code == ("modeling_x.py",)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["model.gguf"], r"no model\.safetensors.*found model\.gguf"),
        (["tf_model.h5", "flax_model.msgpack"], "found flax_model.msgpack, tf_model.h5"),
        ([], "has no model.safetensors"),
    ],
)
def test_unusable_weights_are_named(names: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        chosen(*names)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="only an adapter"):
        choose({"adapter_config.json", "adapter_model.safetensors"}, str)
    with pytest.raises(ConfigError, match=r"no config\.json.*folders v1, v2 have one"):
        choose({"v1/config.json", "v2/config.json"}, str)


def test_a_missing_shard_is_noticed() -> None:
    with pytest.raises(ConfigError, match=r"is incomplete: .* model-00002-of-00002"):
        chosen(TWO[0], texts={"model.safetensors.index.json": index(*TWO)})


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}',
             '{"weight_map": {"a": [1]}}',
             '{"weight_map": {"a": null}}', '{"weight_map": {"a": "../../etc/passwd"}}']
)  # fmt: skip
def test_a_broken_index_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"index\.json|incomplete"):
        chosen(texts={"model.safetensors.index.json": text})


@pytest.mark.parametrize("name", ["../evil.safetensors", "/etc/passwd", "a//b", "a/../../b"])
def test_a_path_that_leads_elsewhere_is_no_file_of_the_model(name: str) -> None:
    with pytest.raises(ConfigError, match="is incomplete"):
        chosen(name, texts={"model.safetensors.index.json": index(name)})
    assert chosen("model.safetensors", name, "../tokenizer.json").files == (
        "model.safetensors",
        "config.json",
    )


_names = st.sampled_from(
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", *TWO, *TWO_BIN,
     "pytorch_model.bin.index.json", "tf_model.h5", "tokenizer.json", "x.py", "onnx/model.onnx"]
)  # fmt: skip


@given(names=st.sets(_names), pickle=st.booleans(), code=st.booleans())
def test_any_listing_gives_one_format_or_a_reason(
    names: set[str], pickle: bool, code: bool
) -> None:
    texts = {"model.safetensors.index.json": index(*TWO)}
    texts["pytorch_model.bin.index.json"] = index(*TWO_BIN)
    try:
        found = choose(names | {"config.json"}, texts.__getitem__, allow_pickle=pickle,
                       remote_code=code)  # fmt: skip
    except ConfigError:
        return
    assert found.weights
    assert len({name.rpartition(".")[2] for name in found.weights}) == 1
    assert set(found.files) <= names | {"config.json"}
    assert len(set(found.files)) == len(found.files)
    assert pickle or not any(name.endswith(".bin") for name in found.files)
