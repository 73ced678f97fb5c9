"""The whole measurement: it starts the servers, chooses queries, runs all phases and returns one document."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from cbir.core.artifacts import IndexStore
from cbir.core.errors import ConfigurationError
from cbir.core.machine import machine_facts
from cbir.server.bench.bare_process import bare_process
from cbir.server.bench.cancellation import cancel_half
from cbir.server.bench.echo import echo_server
from cbir.server.bench.figures.faults import faults
from cbir.server.bench.figures.ratios import ratios
from cbir.server.bench.flood import flood
from cbir.server.bench.load import payloads as supply
from cbir.server.bench.load.crowd import Crowd
from cbir.server.bench.load.frame_generator import FrameGenerator
from cbir.server.bench.load.generator import SEARCH, Generator, Window
from cbir.server.bench.load.payloads import Payloads, Vectors
from cbir.server.bench.load.query_images import drawn_images, fetch_images, read_images
from cbir.server.bench.plan import Plan
from cbir.server.bench.reloads import reload_under_load, two_versions
from cbir.server.bench.replicas import compare_processes
from cbir.server.bench.server_process import ServerProcess, serve_takes, server_process
from cbir.server.bench.sweep import Level, bare_figures, level_figures, run_sweep
from cbir.v1 import search_pb2, search_pb2_grpc

__all__ = ["measure"]

#: Number of distinct query images and of distinct embeddings; every request sent is varied further.
_IMAGES, _EMBEDDINGS = 256, 512
#: Requests in flight where a load only has to be steady and no range of concurrency is measured.
_STEADY = 32
_MOST_IN_STREAM = 64
#: An open loop is measured so many times as long as a closed one.
_OPEN = 4.0
#: By closed loop (kind, requests in flight): the parts of the bare engine that it is compared with.
_BARE = {
    ("image", 1): ("whole", "decode", "decode_apart", "forward", "search"),
    ("image", _STEADY): ("decode_workers", "forward_batch", "search_batch", "read_memory"),
}


async def measure(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything that the plan asks for.

    Args:
        say: Called with a line of text about what is being done.

    Returns:
        The document that ``cbir bench serve --json`` prints.

    Raises:
        CbirError: There is no index, the server or the engine cannot be loaded, or there are no queries to send.
    """
    if plan.index:
        IndexStore(plan.index).open()
    document: dict[str, Any] = {"machine": machine_facts()}
    with ExitStack() as running:
        server: ServerProcess | None = None
        if plan.target is None:
            assert plan.index is not None
            say(f"starting a server on {plan.index}")
            server = running.enter_context(server_process(plan.index, plan.serve_options(), metrics=plan.cancel))
        address = plan.target or (server.address if server else "")
        subject = await _Subject.meet(address, plan, say)
        document |= {"index": subject.info, "settings": _settings(plan, subject)}
        async with Generator([address], plan.channels) as generator:
            document |= await _closed(plan, subject, generator, server, say)
            if server:
                document["server"] = {"resident_mib": server.resident_mib, "options": plan.serve_options()}
            document["open"] = await _open(plan, subject, document["closed"], server, say)
            if plan.cancel and server:
                say("cancelling half of the requests")
                usual = _at(document["closed"], plan.kinds[0], _STEADY)["p50_ms"] / 1000
                document["cancelled"] = await cancel_half(
                    generator, subject.payloads[plan.kinds[0]], server, concurrency=_STEADY, usual=usual,
                    seconds=2 * plan.seconds,
                )  # fmt: skip
    if plan.reloads:
        document["reloads"] = await _reloads(plan, subject, document["closed"], say)
    if plan.cached:
        document["cached"] = await _cached(plan, subject, say)
    if plan.processes > 1 and plan.index:
        kinds = {kind: subject.payloads[kind] for kind in plan.kinds if kind != "id"}
        levels = [Level(kind, concurrency) for kind in kinds for concurrency in (1, _STEADY)]
        document["processes"] = await compare_processes(
            plan.index, plan.serve_options(), kinds, levels, processes=plan.processes, seconds=plan.seconds,
            rounds=plan.rounds, say=say,
        )  # fmt: skip
    document["faults"] = faults(document)
    document["ratios"] = [ratio.to_json() for ratio in ratios(document)]
    return document


@dataclass(frozen=True)
class _Subject:
    """The server under test: its address, what it reports about itself, and the queries to send it."""

    address: str
    info: Mapping[str, Any]
    files: Sequence[bytes]
    payloads: Mapping[str, Payloads]
    image_source: str
    vectors: Vectors
    replies: Mapping[str, bytes] = field(default_factory=dict)

    @classmethod
    async def meet(cls, address: str, plan: Plan, say: Callable[[str], None]) -> _Subject:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = search_pb2_grpc.SearchServiceStub(channel)  # type: ignore[no-untyped-call]
            try:
                info = await stub.GetIndexInfo(search_pb2.GetIndexInfoRequest(), timeout=30, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                raise ConfigurationError(
                    f"the server at {address} does not answer ({error.details()}): start it with `cbir serve`",
                    reason="BENCH_SERVER",
                ) from error
            say(f"{info.images} images, {len(info.members)} members, index {info.index}")
            files, source = await _query_images(address, plan, info, stub)
            dims = {member.name: member.embedding_dim for member in info.members}
            vectors = (
                supply.read_vectors(plan.embeddings, dims)
                if plan.embeddings
                else supply.drawn_vectors(dims, _EMBEDDINGS, plan.seed)
            )
            made = {"image": supply.images(files), "embedding": supply.of_vectors(vectors)}
            if "id" in plan.kinds:
                made["id"] = supply.ids(await _ids(plan, info, stub))
            ask = channel.unary_unary(SEARCH)
            replies = {kind: await ask(made[kind](), timeout=60) for kind in plan.kinds}
        for kind, reply in replies.items():
            if not search_pb2.SearchResponse.FromString(reply).hits:
                raise ConfigurationError(f"a query by {kind} has no hits: index some images", reason="BENCH_NO_HITS")
        return cls(
            address, MessageToDict(info, preserving_proto_field_name=True), files, made, source, vectors, replies
        )


async def _query_images(address: str, plan: Plan, info: Any, stub: Any) -> tuple[list[bytes], str]:
    if plan.images:
        return read_images(plan.images, _IMAGES), str(plan.images)
    files = await fetch_images(address, await _ids(plan, info, stub), _IMAGES)
    return (files, "the gallery") if files else (drawn_images(64), "drawn")


async def _ids(plan: Plan, info: Any, stub: Any) -> list[str]:
    """Ids of indexed images: all of them, or the hits of a drawn image where the index cannot be read here."""
    if plan.index:
        return list(IndexStore(plan.index).open().gallery.ids)
    request = search_pb2.SearchRequest(
        query=search_pb2.Query(image=drawn_images(1)[0]), options=search_pb2.SearchOptions(limit=info.max_limit)
    )
    return [hit.image_id for hit in (await stub.Search(request, timeout=60)).hits]


async def _closed(
    plan: Plan, subject: _Subject, generator: Generator, server: ServerProcess | None, say: Callable[[str], None]
) -> dict[str, Any]:
    with ExitStack() as beside:
        engine, echo_address, echo_process = None, None, None
        if plan.limits:
            echo_address, echo_process = beside.enter_context(
                echo_server(subject.replies.get("embedding", subject.replies[plan.kinds[0]]))
            )
            if plan.index:
                say("loading the engine alone")
                # It searches for what the load searches for.
                vectors = None if plan.kinds[0] == "image" else subject.vectors
                arguments = [str(plan.index), *plan.serve_options()]
                engine = beside.enter_context(bare_process(arguments, subject.files, vectors))
        async with Generator([echo_address], plan.channels) if echo_address else nullcontext() as echo:
            steps = _steps(plan, engine is not None)
            sweep = await run_sweep(
                steps, subject.payloads, generator, echo, engine, (server.pid if server else None, echo_process),
                plan.seconds, plan.rounds, say,
            )  # fmt: skip
        facts = engine.facts if engine else {}
    closed: list[dict[str, Any]] = []
    echoed: list[dict[str, Any]] = []
    for level, figures in zip(sweep.loads, sweep.figures(), strict=True):
        (echoed if level.echo else closed).append(figures)
    return {"closed": closed, "limits": {"echo": echoed, "bare": bare_figures(sweep.bare, facts) if engine else None}}


def _steps(plan: Plan, alone: bool) -> list[Level | str]:
    """All closed loops and parts of the bare engine, with those that are compared next to each other.

    Args:
        alone: Whether there is a bare engine.
    """
    steps: list[Level | str] = []
    wide = min(_MOST_IN_STREAM, plan.concurrency[-1])
    for kind in plan.kinds:
        if kind == "id":
            steps += [Level(kind, count) for count in sorted({1, wide})]
            continue
        for count in sorted({1, _STEADY, *plan.concurrency} if kind == plan.kinds[0] else {1, *plan.concurrency}):
            steps.append(Level(kind, count))
            steps += _BARE.get((kind, count), ()) if alone else ()
        steps.append(Level(kind, wide, "stream"))
        if plan.limits:
            steps += [Level(kind, 1, echo=True), Level(kind, wide, echo=True), Level(kind, wide, "stream", echo=True)]
    if alone and "image" not in plan.kinds:
        steps += ("search", "search_batch", "read_memory")
    return steps


async def _open(
    plan: Plan,
    subject: _Subject,
    closed: Sequence[Mapping[str, Any]],
    server: ServerProcess | None,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    kind = plan.kinds[0]
    deadline = plan.deadline or max(1.0, 20 * _at(closed, kind, 1)["p50_ms"] / 1000)
    crowd = Crowd([subject.address], plan.channels, plan.generators, timeout=deadline)
    floods = []
    async with FrameGenerator([subject.address], plan.channels) as calm:
        for fraction in plan.fractions:
            say(f"open loop: {kind}, {fraction:g} of capacity")
            figures = await flood(
                crowd, subject.payloads[kind], calm=calm, concurrency=_fastest(closed, kind)["concurrency"],
                fraction=fraction, seconds=plan.open_seconds or _OPEN * plan.seconds, capacity_seconds=plan.seconds,
                deadline=deadline, arrivals=plan.arrivals, seed=plan.seed, server=server,
            )  # fmt: skip
            floods.append(figures)
    return floods


async def _reloads(
    plan: Plan, subject: _Subject, closed: Sequence[Mapping[str, Any]], say: Callable[[str], None]
) -> dict[str, Any]:
    assert plan.index is not None
    kind = plan.kinds[0]
    rate = plan.reload_load * _fastest(closed, kind)["per_second"]
    say(f"{plan.reloads} reloads while {rate:.0f} requests arrive a second")
    with two_versions(plan.index) as (index, versions), server_process(index, plan.serve_options()) as server:
        async with FrameGenerator([server.address], plan.channels) as generator:
            await generator.closed(subject.payloads[kind], 1, Window(plan.seconds))
            return await reload_under_load(
                generator, subject.payloads[kind], server.admin, versions, reloads=plan.reloads, rate=rate,
                seconds=_OPEN * plan.seconds, seed=plan.seed,
            ) | {"load": plan.reload_load}  # fmt: skip


async def _cached(plan: Plan, subject: _Subject, say: Callable[[str], None]) -> list[dict[str, Any]]:
    assert plan.index is not None
    if not serve_takes("--cache-entries"):
        say("this release has no cache: --cached shows nothing")
        return []
    kind = plan.kinds[0]
    few = subject.payloads[kind].repeated(8)
    figures = []
    with server_process(plan.index, plan.serve_options(cache=True)) as server:
        async with Generator([server.address], plan.channels) as generator:
            # Each request once, so that all answers are in the cache.
            await generator.closed(few, 1, Window(0.0, warm=0.0, each=len(few.bodies)))
            for concurrency in (1, _STEADY):
                say(f"cached: {kind}, {concurrency} in flight")
                load = await generator.closed(few, concurrency, Window(plan.seconds))
                figures.append(level_figures(Level(kind, concurrency), [load]))
    return figures


def _settings(plan: Plan, subject: _Subject) -> dict[str, Any]:
    return {
        "query_images": {
            "from": subject.image_source,
            "files": len(subject.files),
            "mean_bytes": sum(map(len, subject.files)) / len(subject.files),
        },
        "request_bytes": {kind: subject.payloads[kind].mean_bytes for kind in plan.kinds},
        "reply_bytes": {kind: len(reply) for kind, reply in subject.replies.items()},
        "seconds": plan.seconds,
        "rounds": plan.rounds,
        "channels": plan.channels,
        "generators": plan.generators,
        "serve": list(plan.serve),
    }


def _at(closed: Sequence[Mapping[str, Any]], kind: str, concurrency: int) -> Mapping[str, Any]:
    return next(
        one for one in closed if (one["kind"], one["mode"], one["concurrency"]) == (kind, "unary", concurrency)
    )  # fmt: skip


def _fastest(closed: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """The closed loop of unary requests with the highest rate."""
    unary = (one for one in closed if (one["kind"], one["mode"]) == (kind, "unary"))
    return max(unary, key=lambda one: float(one["per_second"]))
