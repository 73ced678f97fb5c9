"""The engine: one index version and its models, ready to answer.  It knows no protocol and no event loop.

A query passes two stages: :meth:`Engine.prepare`, which many threads may call at once, and :meth:`Engine.answer`,
which embeds and searches a whole batch and has one caller at a time.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError

from cbir.core.embedder import Embedder, embed_all, load_embedder
from cbir.core.ensemble import EnsembleSpec
from cbir.core.errors import ArtifactError, CbirError, ConfigurationError
from cbir.core.gallery import GalleryImage
from cbir.core.near_duplicates import Appearance, confirmed
from cbir.core.retriever import Ranking, Retriever, SearchSpec
from cbir.core.store import IndexStore, IndexVersion
from cbir.server.calibration import gallery_pictures
from cbir.server.feedback import apply_feedback
from cbir.server.limits import Limits
from cbir.server.preparation import Preparation, PreparedQuery
from cbir.server.query import EngineInfo, EngineQuery, EngineResult, Hit, ImageBytes, MemberInfo, Text, Timings, Vote
from cbir.server.words import Words

__all__ = ["Engine"]

_log = logging.getLogger(__name__)

Floats = NDArray[np.float32]

#: Gallery rows that are kept unpacked, as reading one out of the column store costs more than ranking it.
_IMAGES_KEPT = 16_384


class Engine:
    """Answers queries against one index version.

    Args:
        embedders: One for each member of the version's ensemble, by name.
        words: What the version has for words, if anything.

    Raises:
        ArtifactError: ``INDEX_MISMATCH``: an embedder gives vectors of another length than the index was made of.
    """

    def __init__(
        self,
        version: IndexVersion,
        retriever: Retriever,
        embedders: Mapping[str, Embedder],
        limits: Limits,
        words: Words | None = None,
    ) -> None:
        for name, dim in zip(retriever.members, retriever.raw_dims, strict=True):
            if embedders[name].dim != dim:
                raise ArtifactError(
                    f"member {name!r} gives embeddings of {embedders[name].dim} components; the index {version.path} "
                    f"was made with {dim}: put the old model back, or index again",
                    reason="INDEX_MISMATCH",
                )
        self._retriever, self._version, self._words = retriever, version, words
        self.embedders = {name: embedders[name] for name in retriever.members}
        self._image: Callable[[int], GalleryImage] = lru_cache(_IMAGES_KEPT)(retriever.gallery.__getitem__)
        self.gallery = retriever.gallery
        self._appearance = Appearance.of(version)
        self._forms = {name: (e.size, e.interpolation) for name, e in self.embedders.items()}
        crop = version.manifest.ensemble.crop
        self._asked_in_words = words.members if words else ()
        self._prepare = Preparation(
            self.gallery, retriever.members, self._forms.values(), crop, limits, self._asked_in_words
        )

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
        verify: bool = False,
        limits: Limits | None = None,
        text: bool = True,
        precision: str = "auto",
    ) -> Engine:
        """Load an index version and its models, and answer one query with them.

        Args:
            version: Default: the live one.
            ensemble: Where the weights lie now; default: where they lay when the index was made.
            device: ``auto``, ``cpu`` or ``cuda``.
            runtime: ``auto``, ``openvino`` or ``torch``.
            index: ``exact`` ignores approximate indexes; None uses what the indexer built.
            verify: Compare every file with its checksum first.
            text: Load text towers where there are any.
            precision: ``auto``, ``f32``, ``bf16``, ``f16`` or ``int8``.

        Raises:
            ArtifactError: The index is absent, half copied, damaged, or of another ensemble or other weights.
            EnsembleError: A model cannot be loaded.
            ConfigurationError: The device, runtime, precision or index is not there.
        """
        if index not in (None, "exact"):
            raise ConfigurationError(
                f"the index cannot be searched as {index!r}: give exact, or nothing for what the indexer built",
                reason="INDEX_UNKNOWN",
            )
        try:
            opened = IndexStore(index_path).open(version, verify=verify)
            spec = ensemble or opened.manifest.ensemble
            opened.check_ensemble(spec)
            pictures = gallery_pictures(opened)
            embedders = {
                member.name: load_embedder(member, device, runtime, precision, pictures) for member in spec.members
            }
            retriever = Retriever.load(opened, device, index)
            words = Words.load(opened, spec, device, text)
            engine = cls(opened, retriever, embedders, limits or Limits(), words)
            engine.warm_up()
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
    def version(self) -> str:
        """The name of the index version."""
        return self._version.name

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        manifest, retriever = self._version.manifest, self._retriever
        facts = zip(manifest.ensemble.members, retriever.weights, retriever.raw_dims, retriever.dims, strict=True)
        members = tuple(
            MemberInfo(
                name=member.name,
                backend=member.backend,
                model=member.model,
                fingerprint=str(manifest.members[member.name]["fingerprint"]),
                weight=float(weight),
                embedding_dim=raw_dim,
                dim=dim,
                metric=member.metric,
                runtime=self.embedders[member.name].runtime,
                text=member.name in self._asked_in_words,
            )
            for member, weight, raw_dim, dim in facts
        )
        return EngineInfo(
            version=self.version,
            created=manifest.created,
            images=len(self.gallery),
            labels=len(self.gallery.labels),
            ensemble=manifest.ensemble.name,
            members=members,
            crop=manifest.ensemble.crop,
            index=retriever.index_name,
        )

    def warm_up(self) -> float:
        """Send a real image through every member, and fill what is made on first use.

        Returns:
            Seconds that one query takes.

        Raises:
            CbirError: The engine cannot answer.
        """
        self.gallery.row(self.gallery.ids[0])
        self.gallery.rows_with_sha256("")
        ramp = np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3)
        picture = io.BytesIO()
        Image.fromarray((ramp * 2654435761 >> 8).astype(np.uint8)).save(picture, "PNG")
        query = EngineQuery(ImageBytes(picture.getvalue()))
        self.search(query)
        if self._asked_in_words:
            self.search(EngineQuery(Text("a photo")))
        begun = perf_counter()
        self.search(query)
        return perf_counter() - begun

    def is_light(self, query: EngineQuery) -> bool:
        """Whether :meth:`prepare` takes microseconds for this query, so that no thread is worth its while."""
        return self._prepare.is_light(query)

    def prepare(self, query: EngineQuery) -> PreparedQuery:
        """The first stage: check the options; decode, cut and resize the image.  Safe for many threads.

        Raises:
            QueryError: Options that cannot be met.
            UnknownImageError: An id that the gallery does not hold.
            ImageError: Bytes that are no usable image.
        """
        return self._prepare(query)

    def search(self, query: EngineQuery) -> EngineResult:
        """Answer one query, both stages.

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
        """The second stage: embed and search a batch in which images, embeddings, stored images and words mix freely.

        Args:
            waited: Seconds that each query spent in queues, to be told in its timings.

        Returns:
            For each query its result, or why there is none.
        """
        refused: dict[int, CbirError] = {}
        vectors = np.zeros((len(batch), sum(self._retriever.dims)), np.float32)
        begun = perf_counter()
        images = [i for i, query in enumerate(batch) if query.inputs]
        raw = self._embed([batch[i] for i in images])
        points = self._words.points(batch, raw) if self._words else None
        embedded = perf_counter()

        def project_images(places: list[int]) -> None:
            picked = np.searchsorted(images, places)
            vectors[places] = self._project({name: values[picked] for name, values in raw.items()})

        def project_embeddings(places: list[int]) -> None:
            names = batch[places[0]].vectors
            vectors[places] = self._project(
                {name: np.stack([batch[i].vectors[name] for i in places]) for name in names}
            )

        _refuse_singly(images, project_images, refused)
        for places in _alike(batch):
            _refuse_singly(places, project_embeddings, refused)
        stored = self._recall(batch, vectors)
        specs = [self._without_near_duplicates(query, vectors[i], stored) for i, query in enumerate(batch)]
        self._move(batch, vectors, stored, refused)

        rankings: dict[int, Ranking] = {}

        def rank(places: list[int]) -> None:
            found = self._retriever.search(vectors[places], self._specs([specs[i] for i in places], points, places))
            rankings.update(zip(places, found, strict=True))

        def rank_by_words(places: list[int]) -> None:
            assert self._words is not None
            assert points is not None
            for i in places:
                rankings[i] = self._words.search(points[i], self._weights(batch[i]), batch[i])

        _refuse_singly([i for i in range(len(batch)) if i not in refused and not batch[i].text], rank, refused)
        _refuse_singly([i for i in range(len(batch)) if batch[i].text], rank_by_words, refused)
        searched = perf_counter()
        answers: list[EngineResult | CbirError] = []
        for i, query in enumerate(batch):
            if i in refused:
                answers.append(refused[i])
                continue
            begun_explaining = perf_counter()
            hits = self._explain(rankings[i])
            timings = Timings(
                decode=query.seconds,
                queue=waited[i] if waited else 0.0,
                embed=embedded - begun if query.inputs or query.text else 0.0,
                search=searched - embedded,
                fuse=perf_counter() - begun_explaining,
            )
            answers.append(EngineResult(hits, tuple(rankings[i].labels), query.crop, self.version, timings))
        return answers

    def _embed(self, queries: Sequence[PreparedQuery]) -> dict[str, Floats]:
        """(B, raw_dim) by member; empty without queries."""
        if not queries:
            return {}
        batches = {form: np.stack([q.inputs[form] for q in queries]) for form in dict.fromkeys(self._forms.values())}
        return embed_all(self.embedders, batches)

    def _weights(self, query: PreparedQuery) -> Floats:
        return self._retriever.weights if query.spec.weights is None else query.spec.weights

    def _specs(self, specs: Sequence[SearchSpec], points: Floats | None, places: list[int]) -> list[SearchSpec]:
        """How the queries are to be answered, with what the names of the classes say about them."""
        if self._words is None or points is None:
            return list(specs)
        weights = [self._retriever.weights if spec.weights is None else spec.weights for spec in specs]
        priors = self._words.label_priors(points[places], np.stack(weights))
        return [replace(spec, label_prior=prior) for spec, prior in zip(specs, priors, strict=True)]

    def _project(self, raw: Mapping[str, Floats]) -> Floats:
        # Numbers too large to square are refused as "not finite"; NumPy's warning about them says no more.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._retriever.project(raw)

    def _recall(self, batch: Sequence[PreparedQuery], vectors: Floats) -> dict[int, Floats]:
        """Fill in the queries that are stored images; (D,) by row of them and of all examples."""
        rows = list(dict.fromkeys(r for q in batch for r in (q.row, *q.positives, *q.negatives) if r is not None))
        if not rows:
            return {}
        stored = dict(zip(rows, self._retriever.stored(rows), strict=True))
        for i, query in enumerate(batch):
            if query.row is not None:
                vectors[i] = stored[query.row]
        return stored

    def _without_near_duplicates(
        self, query: PreparedQuery, vector: Floats, stored: Mapping[int, Floats]
    ) -> SearchSpec:
        """The query's spec, with the suspects excluded that the members find to be the same picture too."""
        found = set(query.spec.exclude_rows)
        for anchor, (rows, bits_off) in query.suspects.items():
            if len(rows):
                image = vector if anchor is None else stored[anchor]
                seen = self._appearance.vectors(np.stack([image, *self._retriever.stored(rows.tolist())]))
                found.update(rows[confirmed(bits_off, seen[1:] @ seen[0])].tolist())
        return replace(query.spec, exclude_rows=tuple(sorted(found)))

    def _move(
        self,
        batch: Sequence[PreparedQuery],
        vectors: Floats,
        stored: Mapping[int, Floats],
        refused: dict[int, CbirError],
    ) -> None:
        """Apply the feedback."""
        for i, query in enumerate(batch):
            if i in refused or not (query.positives or query.negatives):
                continue
            known = query.row is not None or bool(query.inputs) or bool(query.vectors)
            positives, negatives = (
                np.stack([stored[row] for row in side]) if side else np.zeros((0, vectors.shape[1]), np.float32)
                for side in (query.positives, query.negatives)
            )
            try:
                vectors[i] = apply_feedback(vectors[i] if known else None, positives, negatives, self._retriever.dims)
            except CbirError as error:
                refused[i] = error

    def _explain(self, ranking: Ranking) -> tuple[Hit, ...]:
        members = self._retriever.members
        columns = zip(
            ranking.rows.tolist(), ranking.scores.tolist(), ranking.fused.tolist(),
            ranking.label_contributions.tolist(), ranking.ranks.tolist(), ranking.similarities.tolist(),
            ranking.contributions.tolist(), strict=True,
        )  # fmt: skip
        return tuple(
            Hit(self._image(row), score, fused, label, tuple(map(Vote, members, ranks, similarities, contributions)))
            for row, score, fused, label, ranks, similarities, contributions in columns
        )


def _alike(batch: Sequence[PreparedQuery]) -> list[list[int]]:
    """Places of the embeddings, grouped by members and lengths, so that each group stacks."""
    groups: dict[frozenset[tuple[str, int]], list[int]] = {}
    for i, query in enumerate(batch):
        if query.vectors:
            groups.setdefault(frozenset((name, len(v)) for name, v in query.vectors.items()), []).append(i)
    return list(groups.values())


def _refuse_singly(places: list[int], act: Callable[[list[int]], None], refused: dict[int, CbirError]) -> None:
    """Act on a group at once; where it is refused, one by one, so that only the guilty are."""
    if not places:
        return
    try:
        act(places)
    except CbirError as error:
        if len(places) == 1:
            refused[places[0]] = error
            return
        for place in places:
            _refuse_singly([place], act, refused)
