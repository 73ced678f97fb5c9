"""The engine: one index version and its models, ready to answer.  It knows no network protocol and no event loop.

A query passes two stages: :meth:`Engine.prepare`, which many threads may call at once, and :meth:`Engine.answer`, which
embeds and searches a whole batch and is called by one thread at a time.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from cbir.core.artifacts import IndexStore, IndexVersion, TrustedKeys, gallery_pictures
from cbir.core.ensemble import Embedder, EnsembleSpec, load_embedder
from cbir.core.errors import ArtifactError, CbirError, ConfigurationError
from cbir.core.images import Decoder
from cbir.core.search import Appearance, Kernel, LocalStore, Searcher, VectorStore
from cbir.server.engine.answering import Answering
from cbir.server.engine.preparation import Preparation, PreparedQuery
from cbir.server.engine.query import EngineInfo, EngineQuery, EngineResult, ImageBytes, MemberInfo, Text
from cbir.server.engine.search_threads import settle_search_threads
from cbir.server.engine.text_search import TextSearch
from cbir.server.limits import Limits

__all__ = ["Engine"]

_log = logging.getLogger(__name__)

#: Seconds of warming up after which the batch sizes that are not yet warm are left out.
_WARM_UP_SECONDS = 20.0


class Engine:
    """Answers queries against one index version.

    Args:
        embedders: One for each member of the version's ensemble, by name.
        text_search: Search by text; None where the index has none.
        decoder: Where query images are decoded; None: on the thread that prepares the query.

    Raises:
        ArtifactError: ``INDEX_MISMATCH``: an embedder's vectors have another length than those the index was made of.
    """

    def __init__(
        self,
        version: IndexVersion,
        searcher: Searcher,
        embedders: Mapping[str, Embedder],
        limits: Limits,
        text_search: TextSearch | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        for name, dim in zip(searcher.members, searcher.raw_dims, strict=True):
            if embedders[name].dim != dim:
                raise ArtifactError(
                    f"member {name!r} gives embeddings of {embedders[name].dim} components; the index {version.path} "
                    f"was made with {dim}: put the old model back, or index again",
                    reason="INDEX_MISMATCH",
                )
        self._searcher, self._version = searcher, version
        self.embedders = {name: embedders[name] for name in searcher.members}
        self.buckets = limits.buckets
        self.gallery = searcher.gallery
        crop = version.manifest.ensemble.crop
        self._text_members = text_search.members if text_search else ()
        self._prepare = Preparation(
            self.gallery,
            searcher.members,
            ((embedder.size, embedder.interpolation) for embedder in self.embedders.values()),
            crop,
            limits,
            self._text_members,
            decoder,
        )
        self._answer = Answering(searcher, self.embedders, text_search, Appearance.of(version, searcher), version.name)

    @classmethod
    def load(
        cls,
        index_path: Path,
        *,
        version: str | None = None,
        ensemble: EnsembleSpec | None = None,
        device: str = "auto",
        runtime: str = "auto",
        index: str | None = None,
        verify: bool = True,
        trust: TrustedKeys | None = None,
        limits: Limits | None = None,
        text: bool = True,
        beside: Engine | None = None,
        on_device: Callable[[Callable[[], None]], None] | None = None,
        precision: str = "auto",
        decoder: Decoder | None = None,
        on_step: Callable[[IndexVersion, EnsembleSpec], None] | None = None,
        store: VectorStore | None = None,
        kernel: Kernel = "auto",
    ) -> Engine:
        """Load an index version and its models, and answer queries with them.

        Args:
            version: Name of the version; None for the live one.
            ensemble: The ensemble with the present paths of the weights; None for the paths stored in the index.
            device: ``auto``, ``cpu`` or ``cuda``.
            runtime: ``auto``, ``openvino`` or ``torch``.
            index: ``exact`` for exact search even if there is an approximate index; None for what the indexer built.
            verify: Compare every file with its checksum first; False: sizes only.
            trust: Who must have signed the version; None: nobody need have.
            text: Load the text towers of members that have one.
            beside: An engine loaded with the same options; models that both share are not loaded again.
            on_device: Runs a function on the thread that owns the device and waits for it; None: run it on this one.
            precision: ``auto``, ``f32``, ``bf16``, ``f16`` or ``int8``.
            decoder: Where query images are decoded; None: on the thread that prepares the query.
            on_step: Called before each model and what else takes long; what it raises ends the loading.
            store: Where the vectors are kept; None: in the index's files.
            kernel: What an exact search on a CPU runs on; ``auto`` chooses by measuring.

        Raises:
            ArtifactError: The index is missing, incomplete, damaged, or was made with another ensemble or weights.
            EnsembleError: A model cannot be loaded.
            ConfigurationError: The device, runtime, precision or index is not available.
        """
        if index not in (None, "exact"):
            raise ConfigurationError(
                f"the index cannot be searched as {index!r}: give exact, or nothing for what the indexer built",
                reason="INDEX_UNKNOWN",
            )
        try:
            opened = IndexStore(index_path, trust).open(version, verify=verify)
            spec = ensemble or opened.manifest.ensemble
            opened.check_ensemble(spec)
            step: Callable[[], None] = partial(on_step, opened, spec) if on_step else lambda: None
            known = beside.models if beside else {}
            pictures = gallery_pictures(opened)
            embedders: dict[str, Embedder] = {}
            for member in spec.members:
                step()
                shared = known.get(_fingerprint(opened, member.name))
                embedders[member.name] = shared or load_embedder(member, device, runtime, precision, pictures)
            step()
            searcher = (store or LocalStore()).open(opened, device, index, kernel)
            text_search = TextSearch.load(opened, spec, device, text)
            if beside is None and all(e.runtime != "torch-cpu" for e in embedders.values()):
                settle_search_threads(searcher, on_device)
            engine = cls(opened, searcher, embedders, limits or Limits(), text_search, decoder)
            # Models taken over from ``beside`` are warm; large batches would only delay the queries that it answers.
            warm = all(_fingerprint(opened, name) in known for name in embedders)
            engine.warm_up((1,) if warm else engine.buckets, on_device)
        except CbirError:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError, RuntimeError, SafetensorError) as error:
            _log.debug("loading %s failed", index_path, exc_info=True)
            detail = " ".join(str(error).split())[:200] or type(error).__name__
            raise ArtifactError(
                f"the index {index_path} cannot be loaded ({type(error).__name__}: {detail}): check it with "
                "`cbir verify`, and the memory of this machine",
                reason="INDEX_UNLOADABLE",
            ) from error
        return engine

    @property
    def models(self) -> dict[str, Embedder]:
        """The members' models by fingerprint of weights and preprocessing, for sharing with another engine."""
        return {_fingerprint(self._version, name): embedder for name, embedder in self.embedders.items()}

    @property
    def version(self) -> str:
        """The name of the index version."""
        return self._version.name

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        manifest, searcher = self._version.manifest, self._searcher
        facts = zip(manifest.ensemble.members, searcher.weights, searcher.raw_dims, searcher.dims, strict=True)
        members = tuple(
            MemberInfo(
                name=member.name,
                backend=member.backend,
                model=member.model,
                fingerprint=_fingerprint(self._version, member.name),
                weight=float(weight),
                embedding_dim=raw_dim,
                dim=dim,
                metric=member.metric,
                runtime=self.embedders[member.name].runtime,
                precision=self.embedders[member.name].precision,
                threads=self.embedders[member.name].threads,
                text=member.name in self._text_members,
            )
            for member, weight, raw_dim, dim in facts
        )
        return EngineInfo(
            version=self.version, created=manifest.created, images=len(self.gallery), labels=len(self.gallery.labels),
            ensemble=manifest.ensemble.name, members=members, crop=manifest.ensemble.crop, index=searcher.index_name,
            query_side=self._prepare.query_side,
        )  # fmt: skip

    def warm_up(
        self, buckets: Sequence[int] = (1,), on_device: Callable[[Callable[[], None]], None] | None = None
    ) -> float:
        """Send real images through all members in batches of every size: much is compiled or allocated on first use.

        On a GPU each size gets its buffers and its graph.  On a CPU a new size costs only some milliseconds, so larger
        ones are left out if the models are so slow that they would delay the start.

        Args:
            buckets: The batch sizes.
            on_device: As in :meth:`load`; called for one batch at a time.

        Returns:
            Seconds that one query takes.

        Raises:
            CbirError: The engine cannot answer.
        """
        self.gallery.prepare()
        ramp = np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3)
        picture = io.BytesIO()
        Image.fromarray((ramp * 2654435761 >> 8).astype(np.uint8)).save(picture, "PNG")
        query = EngineQuery(ImageBytes(picture.getvalue()))
        seconds = 0.0

        def answer(query: EngineQuery, count: int) -> None:
            nonlocal seconds
            begun = perf_counter()
            prepared = self.prepare(query)

            def act() -> None:
                refusals = [a for a in self.answer([prepared] * count) if isinstance(a, CbirError)]
                if refusals:
                    raise refusals[0]

            act() if on_device is None else on_device(act)
            seconds = perf_counter() - begun

        begun, on_gpu = perf_counter(), any(e.runtime == "torch-cuda" for e in self.embedders.values())
        for count in buckets:
            if on_gpu or perf_counter() - begun < _WARM_UP_SECONDS:
                answer(query, count)
        if self._text_members:
            answer(EngineQuery(Text("a photo")), 1)
        answer(query, 1)
        return seconds

    def is_light(self, query: EngineQuery) -> bool:
        """Whether :meth:`prepare` takes only microseconds for this query, so that another thread would not pay."""
        return self._prepare.is_light(query)

    def prepare(self, query: EngineQuery, go_on: Callable[[], bool] | None = None) -> PreparedQuery:
        """The first stage: check the options, and decode, crop and resize the image.  Thread-safe.

        Args:
            go_on: Says whether a caller still waits for the answer; called while an image is decoded.

        Raises:
            QueryError: An option is invalid.
            UnknownImageError: An id is not in the gallery.
            ImageError: The bytes are not a usable image.
        """
        return self._prepare(query, go_on)

    def search(self, query: EngineQuery) -> EngineResult:
        """Answer one query: both stages, one after the other.

        Raises:
            CbirError: As :meth:`prepare` and :meth:`answer`.
        """
        answer = self.answer([self.prepare(query)])[0]
        if isinstance(answer, CbirError):
            raise answer
        return answer

    def answer(
        self, batch: Sequence[PreparedQuery], waited: Sequence[float] | None = None
    ) -> list[EngineResult | CbirError]:
        """The second stage: embed and search a batch of queries, which may be of different kinds.

        Args:
            waited: Seconds that each query has spent in queues, for its timings.

        Returns:
            For each query its result, or the error why there is none.
        """
        return self._answer(batch, waited)


def _fingerprint(version: IndexVersion, member: str) -> str:
    return str(version.manifest.members[member]["fingerprint"])
