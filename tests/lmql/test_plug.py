"""The plug-in is in place whenever it is imported, and LMQL still is what it was written for."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import subprocess
import sys

import pytest

from lmtp_replicate.lmql import install
from lmtp_replicate.serving.websocket_server import WebSocketServer
from tests.lmql.alphabet import AlphabetEngine

PROOF = """
from lmql.models.lmtp import lmtp_dcmodel
from lmql.models.lmtp.lmtp_replicate_client import LMTPReplicateClient
assert LMTPReplicateClient.__module__ == "lmtp_replicate.lmql.bridge", LMTPReplicateClient
assert lmtp_dcmodel.LMTPDcModel.is_lmtp_replicate
assert lmtp_dcmodel.LMTPDcModel.__mro__[1].__module__ == "lmql.models.lmtp.lmtp_dcmodel"
assert "class LMTPDcModel" in inspect.getsource(lmtp_dcmodel)
"""
BEFORE = "import sys, inspect; sys.modules['aiohttp_sse_client'] = None\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import lmtp_replicate; assert 'lmql' not in sys.modules",
        "import lmql.models.lmtp.lmtp_dcmodel; import lmtp_replicate",
    ],
)
def test_the_order_of_imports_does_not_matter(imports: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{BEFORE}{imports}{PROOF}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_installing_again_changes_nothing() -> None:
    from lmql.models.lmtp import lmtp_dcmodel

    before = lmtp_dcmodel.LMTPDcModel, list(sys.meta_path)
    install()
    assert (lmtp_dcmodel.LMTPDcModel, sys.meta_path) == before


async def test_other_endpoints_are_left_alone(tokenizer: str) -> None:
    """LMQL's own websocket client, on the model class that we have replaced."""
    import lmql

    engine = AlphabetEngine()
    try:
        async with WebSocketServer(engine) as server:
            model = lmql.model("alphabet", endpoint=f"127.0.0.1:{server.port}", tokenizer=tokenizer)
            query = lmql.run('argmax "abc[X]" where len(TOKENS(X)) < 6', model=model)
            result = await asyncio.wait_for(query, 60)
    finally:
        engine.close()
    assert result.variables["X"] == "defgh"


def test_lmql_is_what_the_plug_in_was_written_for() -> None:
    """The pieces of LMQL that we replace or rely on. When this fails, read what has changed, adapt
    lmtp_replicate/lmql, and take the new values."""
    from lmql.models.lmtp import lmtp_dcmodel
    from lmql.runtime.dclib.dclib_cache import CachedDcModel
    from lmql.runtime.lmql_runtime import LMQLQueryFunction
    from lmql.version import version

    upstream = lmtp_dcmodel.LMTPDcModel.__mro__[1]
    pieces = {
        "close": upstream.close,
        "del": upstream.__del__,
        "ensure_connected": upstream.ensure_connected,
        "first": upstream.stream_and_return_first,
        "generate": upstream.generate,
        "init": upstream.__init__,
        "keys": CachedDcModel.get_keys,
        "make_cache_entry": upstream.make_cache_entry,
        "mask": upstream.compute_logits_mask,
        "model_info": upstream.model_info,
        "replicate_client_loop": upstream.replicate_client_loop,
        "score": upstream._score_next_tokens,
        "topk": upstream.topk_continuations,
        "factory": lmtp_dcmodel.lmtp_model.__call__,
        "consumer": CachedDcModel.register_token_stream,
        "cache_close": CachedDcModel.close,
        "query": LMQLQueryFunction.__acall__,
    }
    digests = {name: _digest(piece) for name, piece in pieces.items()}
    assert (version, digests) == ("0.7.3", KNOWN)


def _digest(piece: object) -> str:
    return hashlib.blake2b(inspect.getsource(piece).encode(), digest_size=6).hexdigest()


KNOWN = {
    "close": "f89ee9ab2288",
    "del": "14d4f4fb77cc",
    "ensure_connected": "9d8c6c558a4b",
    "first": "10cd641052b8",
    "generate": "9eb19213f5f5",
    "init": "3d4052fbdd71",
    "keys": "5975345dd4a6",
    "make_cache_entry": "6dd1b06b2ac1",
    "mask": "9e047688b946",
    "model_info": "5ba2cc5d1c30",
    "replicate_client_loop": "ddd89e92e1b6",
    "score": "9285c158585f",
    "topk": "fc280e26c648",
    "factory": "5bc87f682d37",
    "consumer": "87edaf9b6359",
    "cache_close": "d62a5467aaee",
    "query": "a31e8021ef2f",
}
