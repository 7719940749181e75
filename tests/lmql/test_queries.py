"""Real LMQL queries through the plug-in, the gateway and the Cog runtime."""

from __future__ import annotations

import asyncio
import math
import threading

import lmql
import pytest

import lmtp_replicate  # noqa: F401 - the plug-in
from lmtp_replicate.client import connect
from tests.gateway_thread import GatewayThread
from tests.lmql.alphabet import logprob, vocabulary

IDS = vocabulary()


def ids(text: str) -> list[int]:
    """The prompt LMQL makes of a text without words."""
    names = {" ": "Ġ", "\n": "Ċ"}
    return [IDS["<bos>"], *(IDS[names.get(letter, letter)] for letter in text)]


@pytest.fixture
def model(gateway: GatewayThread, tokenizer: str) -> lmql.LLM:
    return lmql.model("replicate:local/alphabet", tokenizer=tokenizer)


async def ask(model: lmql.LLM, code: str) -> lmql.LMQLResult:
    return await lmql.run(code, model=model)


async def test_argmax(model: lmql.LLM) -> None:
    result = await ask(model, 'argmax "abc[X]" where len(TOKENS(X)) < 6')
    assert result.variables["X"] == "defgh"


async def test_a_variable_that_needs_several_ops(model: lmql.LLM) -> None:
    result = await ask(model, 'argmax "a[X]" where STOPS_AT(X, ".") and len(TOKENS(X)) < 40')
    assert result.variables["X"] == "bcdefghijklmnopqrstuvwxyz."


async def test_the_models_other_end_token_ends_a_variable(model: lmql.LLM) -> None:
    """The alphabet model ends with an EOS that is not the tokenizer's; LMQL knows one alone."""
    result = await ask(model, 'argmax "xy[X]"')
    assert result.variables["X"] == "z.\n"
    assert result.prompt == "xyz.\n"


async def test_in(model: lmql.LLM) -> None:
    result = await ask(model, 'argmax "abc:[X]" where X in [" no", " yes", " maybe"]')
    assert result.variables["X"] == " yes"


async def test_distribution(model: lmql.LLM, gateway: GatewayThread) -> None:
    before = gateway.predictions()
    result = await ask(
        model,
        'argmax "ab[X]:[Y]" where len(TOKENS(X)) < 3 distribution Y in [" yes", " no", " maybe"]',
    )
    assert result.variables["X"] == "cd"
    shares = dict(result.variables["P(Y)"])
    prompt = ids("abcd:")
    scores = {word: logprob(prompt, IDS[f"Ġ{word.strip()}"]) for word in shares}
    total = sum(map(math.exp, scores.values()))
    for word, share in shares.items():
        assert share == pytest.approx(math.exp(scores[word]) / total, abs=1e-5)
    # The three SCOREs are one prediction.
    assert len(gateway.predictions() - before) == 2


async def test_samples_share_one_prediction(model: lmql.LLM, gateway: GatewayThread) -> None:
    before = gateway.predictions()
    results = await lmql.run(
        'sample(n=3, temperature=0.8) "abc[X]" where len(TOKENS(X)) < 5', model=model
    )
    assert [result.variables["X"] for result in results] == ["defg"] * 3
    assert len(gateway.predictions() - before) == 1


async def test_beam(model: lmql.LLM) -> None:
    results = await lmql.run('beam(n=2) "abc[X]" where X in [" yes", " no"]', model=model)
    assert {result.variables["X"] for result in results} == {" yes", " no"}


async def test_parallel_queries_share_one_prediction(
    model: lmql.LLM, gateway: GatewayThread
) -> None:
    await ask(model, 'argmax "abc[X]" where len(TOKENS(X)) < 3')  # the tokenizer is loaded
    before = gateway.predictions()
    results = await asyncio.gather(
        *(ask(model, f'argmax "{c}[X]" where len(TOKENS(X)) < 5') for c in "abcdefgh")
    )
    assert " ".join(r.variables["X"] for r in results) == "bcde cdef defg efgh fghi ghij hijk ijkl"
    assert len(gateway.predictions() - before) == 1


def test_generate_and_score(model: lmql.LLM) -> None:
    assert model.generate_sync("abc", max_tokens=4) == "defg"
    scores = model.score_sync("abc", ["d", "e"])
    expected = [logprob(ids("abc"), IDS[letter]) for letter in "de"]
    assert list(scores.token_scores[0]) == pytest.approx(expected[:1], abs=1e-5)
    assert list(scores.token_scores[1]) == pytest.approx(expected[1:], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "endpoint"),
    [
        ("replicate:local/alphabet/VERSION", None),
        ("replicate:deployment/local/alphabet", None),
        ("any", "replicate:local/alphabet"),
        ("any", "replicate:local/alphabet/VERSION?idle_timeout=60"),
        ("local/alphabet", "replicate"),
        ("deployment/local/alphabet", "replicate:"),
    ],
)
async def test_ways_to_name_a_model(
    gateway: GatewayThread, tokenizer: str, name: str, endpoint: str | None
) -> None:
    version = gateway.version("alphabet")
    settings = {} if endpoint is None else {"endpoint": endpoint.replace("VERSION", version)}
    model = lmql.model(name.replace("VERSION", version), tokenizer=tokenizer, **settings)
    result = await ask(model, 'argmax "abc[X]" where len(TOKENS(X)) < 4')
    assert result.variables["X"] == "def"


async def test_a_traced_query_asks_for_the_models_card(model: lmql.LLM, tmp_path) -> None:
    certificate = tmp_path / "certificate.json"
    await lmql.run(
        'argmax "abc[X]" where len(TOKENS(X)) < 4', model=model, certificate=str(certificate)
    )
    assert '"path": "scripted"' in certificate.read_text()


async def test_no_prediction_outlives_its_query(model: lmql.LLM, gateway: GatewayThread) -> None:
    """Without a constraint LMQL asks for 128 tokens and drops what it does not need."""
    await ask(model, 'argmax "ab[X]" where STOPS_AT(X, "d")')
    gateway.wait_until_quiet()


def test_threads_and_tasks_stay_flat_over_many_queries(
    model: lmql.LLM, gateway: GatewayThread
) -> None:
    """Synchronous queries, each with a client of its own that LMQL never closes."""

    def query() -> None:
        assert lmql.run_sync('argmax "abc[X]" where len(TOKENS(X)) < 4', model=model)

    query()
    gateway.wait_until_quiet()
    threads = {thread.name for thread in threading.enumerate()}
    for _ in range(8):
        query()
    gateway.wait_until_quiet()
    assert {thread.name for thread in threading.enumerate()} == threads
    assert not [task for task in asyncio.all_tasks(lmql_loop()) if "lmtp" in task.get_name()]


def lmql_loop() -> asyncio.AbstractEventLoop:
    from lmql.runtime import loop

    found: asyncio.AbstractEventLoop = loop.lmql_loop
    return found


def test_queries_in_several_threads(model: lmql.LLM) -> None:
    """Each thread has its own loop; the hub serves them all."""
    answers: dict[str, str] = {}

    def work(start: str) -> None:
        query = ask(model, f'argmax "{start}[X]" where len(TOKENS(X)) < 4')
        answers[start] = asyncio.run(query).variables["X"]

    model.get_tokenizer().tokenizer_impl  # noqa: B018 - loaded once, not in each thread
    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert answers == {"a": "bcd", "b": "cde", "c": "def"}


async def test_the_plain_client_sees_the_same_model(gateway: GatewayThread) -> None:
    async with connect("replicate:local/alphabet") as client:
        assert (await client.model_info())["model"] == "alphabet"
        items = [item async for item in client.generate(ids("abc"), max_tokens=3)]
    assert [item.token for item in items] == ids("def")[1:]
    assert items[0].logprob == pytest.approx(logprob(ids("abc"), items[0].token), abs=1e-9)
