"""Attention in C: the same as torch's for every layout, and never in the way where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from lmtp_replicate.engine import precision
from lmtp_replicate.engine.attention import PackedStep, Scores
from lmtp_replicate.engine.compiled_attention import (
    CompiledAttention,
    CompiledStep,
    compiled_attention_for,
)
from lmtp_replicate.engine.groups import Group, Neighbours
from lmtp_replicate.engine.kernels import ANY_NUMBER, FOLDER, kernels
from lmtp_replicate.engine.kv_store import KVStore
from lmtp_replicate.engine.layout import Layout
from lmtp_replicate.engine.proof import prove
from lmtp_replicate.engine.spans import Spans
from tests.engine.running import running
from tests.engine.test_compiled_linear import has_long_vectors
from tests.engine.tiny_models import VOCABULARY, tiny_loaded, tiny_network

CAPACITY = 512
ROOT = Path(__file__).parents[2]
WORKS = st.lists(st.tuples(st.integers(1, 70), st.integers(0, 150)), min_size=1, max_size=7)
WINDOW = st.none() | st.integers(1, 90)
DTYPE = st.sampled_from([torch.float32, torch.bfloat16])


def attention_width() -> int | None:
    """Numbers in a vector here."""
    library, _ = kernels(torch.float32)
    return None if library is None else library.width


@pytest.fixture(scope="module")
def compiled(has_compiler: None) -> CompiledAttention:
    return attention_in(torch.float32)


def attention_in(dtype: torch.dtype, longest: int | None = None) -> CompiledAttention:
    """As a model has it, or with another limit."""
    attention, why = compiled_attention_for(torch.device("cpu"), dtype)
    assert attention is not None, why
    if longest is not None:
        attention.longest = longest
    return attention


@pytest.mark.usefixtures("has_compiler")
@pytest.mark.parametrize(
    ("flags", "longest"), [({"avx512_bf16"}, ANY_NUMBER), ({"amx_bf16"}, 16), ({"bf16"}, 16)]
)
def test_long_chunks_are_left_to_products_of_matrices(
    flags: set[str], longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a CPU that has them and a compiler that does not know them."""
    library, _ = kernels(torch.bfloat16)
    monkeypatch.setattr(library, "has_tiles", False)
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    assert attention_in(torch.bfloat16).longest == longest
    assert attention_in(torch.float32).longest == ANY_NUMBER


@pytest.fixture
def _compiled_anew() -> Iterator[None]:
    kernels.cache_clear()
    yield
    kernels.cache_clear()


class Case:
    """`works`: count and position of each stream's new tokens; everything before is known."""

    def __init__(
        self,
        works: list[tuple[int, int]],
        heads: int,
        kv_heads: int,
        dim: int,
        window: int | None,
        dtype: torch.dtype = torch.float32,
        drawn: torch.dtype | None = None,
    ) -> None:
        """`drawn`: to what all numbers are rounded, if not to `dtype`."""
        self.dtype = dtype
        self.drawn = drawn or dtype
        self.random = torch.Generator().manual_seed(len(works) * heads + dim)
        pool = Spans(CAPACITY * len(works), page_tokens=1)
        groups, start = [], 0
        for index, (count, position) in enumerate(works):
            groups.append(
                Group(start, count, [position], Neighbours(index * CAPACITY, CAPACITY, 1))
            )
            start += count
        places = [
            index * CAPACITY + position + offset
            for index, (count, position) in enumerate(works)
            for offset in range(count)
        ]
        empty = torch.zeros(0, dtype=torch.int64)
        end, context = max(places) + 1, max(map(sum, works))
        self.layout = Layout(groups, empty, empty, torch.tensor(places), empty, end, context)
        self.store = KVStore(pool)
        known = torch.arange(pool.tokens)
        self.store.write(
            0, known, *(self.numbers(kv_heads, pool.tokens, dim) for _ in ("key", "value"))
        )
        self.query = self.numbers(heads, start, dim)
        self.new = self.numbers(kv_heads, start, dim), self.numbers(kv_heads, start, dim)
        self.scores = Scores(dim**-0.5, window, None, None)

    def numbers(self, heads: int, tokens: int, dim: int) -> Tensor:
        """As a model gives them: heads and tokens lie the other way round."""
        drawn = torch.randn(1, tokens, heads, dim, generator=self.random) * 2
        return drawn.transpose(1, 2).to(self.drawn).to(self.dtype)

    def assert_same(self, compiled: CompiledAttention) -> None:
        step = CompiledStep(compiled, self.layout, self.store)
        found = step.attend(0, self.query, *self.new, self.scores)
        assert step.is_used
        expected = PackedStep(self.layout, self.store).attend(0, self.query, *self.new, self.scores)
        tolerance = 1e-4 if self.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=80, deadline=None)
@given(
    works=WORKS,
    kv_heads=st.integers(1, 4),
    shared=st.sampled_from([1, 2, 3, 5, 7, 8, 40]),
    dim=st.sampled_from([16, 48, 64, 80, 256]),
    window=WINDOW,
    dtype=DTYPE,
)
def test_any_mix_of_chunks_equals_torch(
    has_compiler: None,
    works: list[tuple[int, int]],
    kv_heads: int,
    shared: int,
    dim: int,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    case = Case(works, kv_heads * shared, kv_heads, dim, window, dtype)
    case.assert_same(attention_in(dtype, longest=1000))


@settings(max_examples=40, deadline=None)
@given(
    works=WORKS,
    longest=st.integers(0, 40),
    window=WINDOW,
    dtype=DTYPE,
)
def test_long_chunks_may_be_left_to_torch(
    has_compiler: None,
    works: list[tuple[int, int]],
    longest: int,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    """Queries and keys are rotated for them too."""
    found, stored = [], []
    for limit in (longest, 1000):
        case = Case(works, 6, 2, 64, window, dtype)
        angles = torch.randn(1, sum(count for count, _ in works), 64, generator=case.random)
        step = CompiledStep(attention_in(dtype, longest=limit), case.layout, case.store)
        new, rotary = (case.query, *case.new), (angles.cos().to(dtype), angles.sin().to(dtype))
        found.append(step.attend_rotated(0, new, case.scores, rotary))
        stored.append(case.store.whole(0))
    # torch rounds rotated queries of bfloat16, so that single numbers may differ by more.
    errors = (found[0].float() - found[1].float()).square().mean(dim=-1).sqrt()
    assert errors.max() < (1e-5 if dtype == torch.float32 else 5e-2)
    for few, many in zip(*stored, strict=True):
        assert torch.equal(few, many)


LONG_COUNTS = st.sampled_from([9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 129, 300])
LONG_WORKS = st.lists(st.tuples(LONG_COUNTS | st.just(1), st.integers(0, 150)), min_size=1)


def long_attention() -> CompiledAttention:
    """As a model in bfloat16 has it on a CPU with AMX; elsewhere the test is skipped."""
    attention = attention_in(torch.bfloat16)
    if attention.long is None:
        pytest.skip("this CPU has no AMX")
    return attention


@settings(max_examples=60, deadline=None)
@given(
    works=LONG_WORKS.filter(lambda works: len(works) < 5),
    kv_heads=st.integers(1, 3),
    shared=st.sampled_from([1, 3, 8, 32]),
    dim=st.sampled_from([32, 64, 96, 128, 256]),
    window=st.none() | st.integers(1, 200),
    threads=st.sampled_from([1, 2]),
)
def test_long_works_equal_torch_in_float32(
    has_compiler: None,
    works: list[tuple[int, int]],
    kv_heads: int,
    shared: int,
    dim: int,
    window: int | None,
    threads: int,
) -> None:
    """Weights and outputs are rounded to bfloat16 once each."""
    attention, shape = long_attention(), (kv_heads * shared, kv_heads, dim, window)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    case = Case(works, *shape, torch.bfloat16)
    found = CompiledStep(attention, case.layout, case.store).attend(
        0, case.query, *case.new, case.scores
    )
    exact = Case(works, *shape, torch.float32, torch.bfloat16)
    expected = PackedStep(exact.layout, exact.store).attend(
        0, exact.query, *exact.new, exact.scores
    )
    torch.set_num_threads(before)
    torch.testing.assert_close(found.float(), expected, rtol=1.5e-2, atol=1.5e-2)


@pytest.mark.parametrize("window", [None, 1, 30, 90])
@pytest.mark.parametrize("works", [[(17, 0)], [(33, 40), (1, 3)], [(100, 77), (64, 0), (65, 31)]])
def test_places_that_no_query_sees_do_not_matter_to_long_works(
    has_compiler: None, works: list[tuple[int, int]], window: int | None
) -> None:
    found = []
    for is_stale in (False, True):
        case = Case(works, 6, 2, 64, window, torch.bfloat16)
        keys, values = (part[:-1].view(len(works), CAPACITY, 2, 64) for part in case.store.whole(0))
        for index, (count, position) in enumerate(works if is_stale else ()):
            unseen = max(0, position - window + 1) if window else 0
            for part in (keys[index], values[index]):
                part[:unseen] = part[position + count :] = float("nan")
        step = CompiledStep(long_attention(), case.layout, case.store)
        found.append(step.attend(0, case.query, *case.new, case.scores))
    assert torch.equal(*found)


@pytest.mark.parametrize(("window", "reached"), [(None, range(50, 100)), (20, range(50, 70))])
def test_what_is_not_a_number_reaches_only_who_sees_it_in_long_works(
    has_compiler: None, window: int | None, reached: range
) -> None:
    for part in range(2):  # keys and values
        case = Case([(100, 37), (64, 3)], 6, 2, 64, window, torch.bfloat16)
        case.new[part][:, :, 50] = float("nan")
        step = CompiledStep(long_attention(), case.layout, case.store)
        found = step.attend(0, case.query, *case.new, case.scores)
        assert found[0, reached].isnan().all()
        others = [token for token in range(164) if token not in reached]
        assert not found[0, others].isnan().any()


@pytest.mark.parametrize(("heads", "dim"), [(33, 64), (4, 48)])
def test_long_works_of_other_shapes_are_left_to_torch(
    has_compiler: None, heads: int, dim: int
) -> None:
    long_attention()
    case = Case([(40, 5), (1, 3)], heads, 1, dim, None, torch.bfloat16)
    case.assert_same(attention_in(torch.bfloat16))


def test_rotated_queries_and_keys_equal_transformers(has_compiler: None) -> None:
    case = Case([(1, 7), (30, 20), (3, 0)], 6, 2, 64, None)
    plain = Case([(1, 7), (30, 20), (3, 0)], 6, 2, 64, None)
    angles = torch.randn(1, 34, 32).repeat(1, 1, 2)
    rotary = angles.cos(), angles.sin()
    query, key = apply_rotary_pos_emb(plain.query, plain.new[0], *rotary)
    expected = PackedStep(plain.layout, plain.store).attend(
        0, query, key, plain.new[1], plain.scores
    )
    for longest in (0, 1000):
        step = CompiledStep(attention_in(torch.float32, longest), case.layout, case.store)
        found = step.attend_rotated(0, (case.query, *case.new), case.scores, rotary)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("streams", [1, 3, 4, 40])
@pytest.mark.parametrize("threads", [1, 2])
def test_decode_steps_equal_torch_however_the_threads_share_them(
    compiled: CompiledAttention, streams: int, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    Case([(1, 5 * n) for n in range(streams)], 12, 4, 64, None).assert_same(compiled)
    torch.set_num_threads(before)


def test_large_scores_neither_overflow_nor_hide_the_small_ones(compiled: CompiledAttention) -> None:
    case = Case([(1, 100), (30, 90)], 4, 2, 64, None)
    case.query *= 10  # scores up to about 200: e^200 is no float32
    case.assert_same(compiled)


def test_what_is_not_a_number_stays_in_its_own_stream(compiled: CompiledAttention) -> None:
    case = Case([(1, 100), (20, 90), (1, 30)], 4, 2, 64, None)
    case.query[:, :, 5] = float("nan")
    found = CompiledStep(compiled, case.layout, case.store).attend(
        0, case.query, *case.new, case.scores
    )
    assert found[0, 5].isnan().all()
    assert not found[0, [*range(5), *range(6, 22)]].isnan().any()


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "dtype", "softcap"),
    [
        (4, 2, 12, torch.float32, None),
        (4, 2, 72 if attention_width() == 16 else 76, torch.float32, None),
        (4, 2, 264, torch.float32, None),
        (97, 1, 64, torch.float32, None),
        (4, 2, 64, torch.bfloat16, None),
        (4, 2, 64, torch.float32, 30.0),
    ],
)
def test_what_it_does_not_know_torch_computes(
    compiled: CompiledAttention,
    heads: int,
    kv_heads: int,
    dim: int,
    dtype: torch.dtype,
    softcap: float | None,
) -> None:
    case = Case([(1, 3)], heads, kv_heads, dim, None)
    store = KVStore(Spans(CAPACITY, page_tokens=1))
    step = CompiledStep(compiled, case.layout, store)
    new = [tensor.to(dtype) for tensor in (case.query, *case.new)]
    found = step.attend(0, *new, Scores(dim**-0.5, None, softcap, None))
    assert not step.is_used
    assert found.shape == (1, 1, heads, dim)


def test_code_that_computes_something_else_is_found_out(
    compiled: CompiledAttention, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = CompiledAttention.attend
    monkeypatch.setattr(CompiledAttention, "attend", lambda *arguments: attend(*arguments) * 1.01)
    verdict = prove(tiny_network("llama"), VOCABULARY, 256)
    assert verdict.path == "packed"
    assert verdict.attention is None
    assert "differ from the model's own eager forward" in verdict.attention_reason


def test_a_model_without_attention_it_knows_is_said_to_run_torchs(
    compiled: CompiledAttention,
) -> None:
    verdict = prove(tiny_network("gpt_oss"), VOCABULARY, 256)
    assert verdict.attention is None
    assert verdict.attention_reason.startswith("none of the model's layers")


@pytest.mark.usefixtures("has_compiler")
@pytest.mark.parametrize(
    ("settings", "attention", "reason"),
    [
        ({}, "compiled", "it agrees with the model's own"),
        ({"compile_kernels": False}, "torch", "as asked"),
    ],
)
def test_the_engine_says_whose_attention_it_runs(
    settings: dict[str, Any], attention: str, reason: str
) -> None:
    with running(tiny_loaded("llama"), **settings) as engine:
        details = engine.info().details
        assert (details["attention"], details["attention_reason"]) == (attention, reason)


@pytest.mark.usefixtures("_compiled_anew")
def test_without_a_compiler_the_engine_runs_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with running(tiny_loaded("llama")) as engine:
        details = engine.info().details
        assert details["attention"] == "torch"
        assert "there is no C compiler" in details["attention_reason"]


def test_it_uses_torchs_openmp(compiled: CompiledAttention) -> None:
    """One of its own would bring threads that fight with torch's for the cores."""
    code = """
import torch
from pathlib import Path
from lmtp_replicate.engine.compiler import compile_library
def loaded():
    return {l.split()[-1] for l in open("/proc/self/maps") if "libgomp" in l or "libomp" in l}
before = loaded()
compile_library(Path("lmtp_replicate/engine/kernels")).lmtp_attend
assert len(before) == 1 and loaded() == before, (before, loaded())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("threads", ["2,1", "1,2"])
def test_inner_levels_may_have_other_numbers_of_threads(
    compiled: CompiledAttention, threads: str
) -> None:
    """A list in OMP_NUM_THREADS is one number for each level of parallel regions."""
    code = """
import torch
from tests.engine.test_compiled_attention import Case, attention_in
attention = attention_in(torch.float32)
Case([(1, 50), (1, 60), (1, 70)], 12, 4, 64, None).assert_same(attention)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not has_long_vectors(), reason="without AVX-512 all tests are this one")
def test_shorter_vectors_compute_the_same(compiled: CompiledAttention) -> None:
    """As on a CPU without AVX-512."""
    code = """
import torch
from lmtp_replicate.engine.kernels import kernels
from tests.engine.test_compiled_attention import Case, attention_in
from tests.engine.test_compiled_linear import packed
for dtype in (torch.float32, torch.bfloat16):
    assert kernels(dtype)[0].width == 8
    for works in ([(1, 50), (1, 60), (30, 70), (3, 0)], [(1, 9)]):
        Case(works, 12, 4, 72, None, dtype).assert_same(attention_in(dtype, longest=1000))
kernels(torch.float32)[0].linear_bytes = None
layer = packed(208, 1000)
compiled, layer.compiled = layer.compiled, None
for rows in range(1, 4):
    x = torch.randn(1, rows, 208)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
"""
    environment = {**os.environ, "CC": "gcc -mno-avx512f"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_source_is_part_of_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(tmp_path), "."]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True
    ).stdout
    for source in FOLDER.glob("*.[ch]"):
        assert f"lmtp_replicate/engine/kernels/{source.name}" in listed
