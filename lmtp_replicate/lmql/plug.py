"""Everything of LMQL 0.7.3 that we touch, in one place; `tests/lmql/test_plug.py` notices when it
changes.

LMQL looks its Replicate client up as `lmql.models.lmtp.lmtp_replicate_client.LMTPReplicateClient`
at each connect, so an entry in `sys.modules` is enough to replace it, before or after LMQL is
imported, and without the aiohttp_sse_client that LMQL's own needs. That class sees neither the
tokenizer nor the end of a query; so `lmtp_dcmodel.LMTPDcModel` becomes a thin subclass that, for
`replicate:` endpoints alone, hands both over.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.abc
import importlib.machinery
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from functools import partial
from types import ModuleType
from typing import Any, Final
from weakref import ref

from lmtp_replicate.errors import StreamError
from lmtp_replicate.lmql.beams import Beam
from lmtp_replicate.lmql.bridge import LMTPReplicateClient

CLIENT_MODULE: Final = "lmql.models.lmtp.lmtp_replicate_client"
MODEL_MODULE: Final = "lmql.models.lmtp.lmtp_dcmodel"
MOST_BEAMS: Final = 64


def install() -> None:
    """Make LMQL use our client for `replicate:` endpoints. Idempotent; does not import lmql."""
    if not isinstance(sys.modules.get(CLIENT_MODULE), _ClientModule):
        sys.modules[CLIENT_MODULE] = _ClientModule()
    imported = sys.modules.get(MODEL_MODULE)
    if imported is not None:
        replace_model(imported)
    elif not any(isinstance(finder, _ModelFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ModelFinder())


class _ClientModule(ModuleType):
    """Stands for LMQL's module of that name."""

    def __init__(self) -> None:
        super().__init__(CLIENT_MODULE, "lmtp_replicate's client in the place of LMQL's own.")
        self.__spec__ = importlib.machinery.ModuleSpec(CLIENT_MODULE, None)
        self.LMTPReplicateClient = LMTPReplicateClient


class _ModelFinder(importlib.abc.MetaPathFinder):
    """Waits for LMQL to import its LMTP model, which then is replaced at once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec that the usual finder gives, with our step after its last one."""
        if fullname != MODEL_MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ModelLoader(spec.loader)
        return spec


class _ModelLoader(importlib.abc.Loader):
    def __init__(self, usual: importlib.abc.Loader) -> None:
        self._usual = usual

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As usual."""
        return self._usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As usual, then the replacement."""
        self._usual.exec_module(module)
        replace_model(module)

    def __getattr__(self, name: str) -> Any:  # get_source, get_data: tracebacks, inspect
        return getattr(self._usual, name)


def replace_model(lmtp_dcmodel: Any) -> None:
    """Put our subclass in the place of the module's `LMTPDcModel`. Idempotent."""
    if not getattr(lmtp_dcmodel.LMTPDcModel, "is_lmtp_replicate", False):
        lmtp_dcmodel.LMTPDcModel = _subclass(lmtp_dcmodel.LMTPDcModel)


def _subclass(upstream: Any) -> Any:
    class LMTPDcModel(upstream):  # type: ignore[misc]  # its base is known at run time only
        __doc__ = upstream.__doc__
        is_lmtp_replicate = True
        _query: asyncio.Task[Any] | None = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._visited: deque[Any] = deque(maxlen=MOST_BEAMS)
            if self.use_replicate:
                # LMQL does not close the model of a query that fails, and its tasks keep it alive.
                with contextlib.suppress(RuntimeError):  # no loop, no task
                    self._query = asyncio.current_task()
            if self._query is not None:
                self._on_end = partial(_after_query, ref(self))
                self._query.add_done_callback(self._on_end)

        async def replicate_client_loop(self) -> None:
            """Give the model our client. Nothing is connected and no task is left waiting, so
            that a failing query leaves none behind."""
            self.client = LMTPReplicateClient(
                self.model.model_identifier, None, self.endpoint, tokenizer=self.tokenizer
            )
            self.connected_signal.set()

        async def compute_logits_mask(self, *args: Any, **kwargs: Any) -> Any:
            """As usual. `generate` goes on from here to our client, and lets no other op in
            between; of what LMQL knows about the length it only passes on a number."""
            if kwargs.get("required"):  # LMQL takes a step from this sequence, not yet an op
                self._visited.extend(args[3])
            computed = await super().compute_logits_mask(*args, **kwargs)
            if isinstance(self.client, LMTPReplicateClient):
                self.client.hint = computed.max_tokens_hints[0]
            return computed

        async def topk_continuations(self, sequences: Any, k: int, **kwargs: Any) -> Any:
            """As usual. `sequences` are those beams that LMQL's cache cannot continue; of all
            beams the masks were computed just now."""
            visited = list(self._visited)
            self._visited.clear()
            if isinstance(self.client, LMTPReplicateClient) and self.client.has_beams:
                self.client.step([self._beam(s) for s in visited])
            return await super().topk_continuations(sequences, k, **kwargs)

        def _beam(self, s: Any) -> Beam:
            ids = self.tokenizer.convert_bytes_to_ids(s.input_ids)
            bos = self.tokenizer.bos_token_id
            if bos is not None and ids[:1] != [bos]:
                ids = [bos, *ids]
            return Beam(tuple(ids), float(s.logprobs.sum()))

        async def stream_and_return_first(
            self, s: Any, iterator: AsyncIterator[Any], sampling_mode: str
        ) -> Any:
            """The first item, as soon as it is there: LMQL's own waits for four. Its cache takes
            the others as they come, and waits for them where it gets there sooner."""
            if not (isinstance(self.client, LMTPReplicateClient) and self.client.is_early):
                return await super().stream_and_return_first(s, iterator, sampling_mode)
            first = await anext(iterator, None)
            if first is None:
                raise StreamError("the query was over before its op had an answer")
            self.requests += 1

            async def entries() -> AsyncIterator[Any]:
                item: Any = first
                while item is not None:
                    self.tokens += 1
                    yield self.make_cache_entry(s, item, sampling_mode)
                    item = await anext(iterator, None)

            self.register_token_stream(entries)
            return first

        def close(self) -> None:
            """The query is over."""
            self._forget_query()
            super().close()

        def __del__(self) -> None:
            self._forget_query()
            super().__del__()

        def _forget_query(self) -> None:
            if self._query is not None:
                self._query.remove_done_callback(self._on_end)
            _end_streams(self)

    return LMTPDcModel


def _after_query(model: ref[Any], _query: asyncio.Task[Any]) -> None:
    _end_streams(model())


def _end_streams(model: Any) -> None:
    """End what the query that made `model` has still open."""
    client = getattr(model, "client", None)
    if isinstance(client, LMTPReplicateClient):
        client.close()
