"""The bounds that the server keeps, as one frozen value that is checked once."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from cbir.core.errors import ConfigurationError
from cbir.core.images import DecodeLimits

__all__ = ["GRACE", "Limits"]

#: Seconds that calls in progress have to end when the server stops.
GRACE = 30.0

_MAY_BE_ZERO = ("max_delay", "cache_entries")


@dataclass(frozen=True)
class Limits:
    """Bounds on queries and on the resources that they may take.

    Attributes:
        max_limit: Most hits that a query may ask for.
        max_examples: Most positive and negative ids in a query, together.
        max_image_bytes: Largest query image in bytes.
        max_pixels: Largest query image in pixels.
        max_text: Most characters in a text query; models read about the first 77 tokens only.
        max_batch: Most queries in one forward pass and one search.
        max_delay: Seconds that an idle engine waits for a batch to fill; 0 to start at once.
        queue: Most image queries that are admitted and not yet answered; further ones are refused with a time to retry
            after.  A query that needs no model (by a stored id or by an embedding) counts an eighth.  Streams have half
            as much to themselves; they wait instead of being refused.
        queue_bytes: Most bytes of the images of these queries.
        window: Most queries of one stream that are in progress; further ones wait in the client.
        cache_entries: Most answers that are cached for when the same query comes again; 0 for no cache.
        cache_bytes: Most bytes of the cached answers.
        decoders: Workers that decode query images, and as many of lower priority for images that take long.
        decode_seconds: Processor time that one image may take.
        decode_bytes: Most memory for images that are decoded at the same time; a single one may take more.
        intake_bytes: Most bytes of requests that have come and are not whole, of all connections together.
        read_seconds: Seconds in which a request has to come.
        wasted_bytes: Bytes a second of refused or abandoned requests after which a connection's next one is read later.
        stream_idle_seconds: Seconds after which a stream is ended whose next query does not come.
        downloads: Most gallery images that are sent at the same time.
        write_seconds: Seconds that one has for reading a picture, and one more for each 256 KiB of it.
        max_thumbnail: Largest longer side of a thumbnail in pixels.
        max_calls: Most calls at the same time, streams and health checks included.
        streams_per_connection: Most calls of one connection at the same time; a client that sends more gets UNAVAILABLE
            for them at once, and may send them again.  0: as many as image queries may wait (``queue``).
        pending: Calls of one method that have come and that the server has not looked at yet; beyond it some are turned
            away unseen, and beyond twice as many all.  Few, as those that wait here are not answered sooner, and as
            many as callers may send in one breath.
        max_admin_calls: Most calls at the same time on the admin listener.
        ping_seconds: Shortest time between two keepalive pings of a client.
        keepalive_seconds: Time between the server's own pings, which find peers that are gone without a word.
        handshake_seconds: Time that a new connection has to say that it speaks the protocol.
        idle_seconds: Time without a call after which a connection is ended.
        age_seconds: Time after which a connection takes no new calls; after twice that it is cut.  Clients connect
            again, and so find servers that are new.
        connections_per_peer: Most connections of one address.
        hang_seconds: Time at one batch after which the engine is taken to hang.
        reloads: Most reloads that wait.
    """

    max_limit: int = 100
    max_examples: int = 256
    max_image_bytes: int = 32 * 2**20
    max_pixels: int = 100_000_000
    max_text: int = 1000
    max_batch: int = 32
    max_delay: float = 0.0
    queue: int = 256
    queue_bytes: int = 512 * 2**20
    window: int = 64
    cache_entries: int = 4096
    cache_bytes: int = 64 * 2**20
    decoders: int = 0
    decode_seconds: float = 10.0
    decode_bytes: int = 2 * 2**30
    intake_bytes: int = 512 * 2**20
    read_seconds: float = 20.0
    wasted_bytes: int = 8 * 2**20
    stream_idle_seconds: float = 600.0
    downloads: int = 32
    write_seconds: float = 10.0
    max_thumbnail: int = 2048
    max_calls: int = 8192
    streams_per_connection: int = 0
    pending: int = 64
    max_admin_calls: int = 64
    ping_seconds: int = 300
    keepalive_seconds: int = 120
    handshake_seconds: int = 10
    idle_seconds: int = 900
    age_seconds: int = 3600
    connections_per_peer: int = 1024
    hang_seconds: float = 60.0
    reloads: int = 8

    def __post_init__(self) -> None:
        if not self.decoders:
            object.__setattr__(self, "decoders", min(16, os.cpu_count() or 2))
        if not self.streams_per_connection:
            object.__setattr__(self, "streams_per_connection", max(64, self.queue))
        for item in fields(self):
            value = getattr(self, item.name)
            least = 0 if item.name in _MAY_BE_ZERO else 1
            if value < least:
                raise ConfigurationError(
                    f"{item.name.replace('_', '-')} is {value}; it must be at least {least}",
                    reason="BAD_LIMIT_SETTING",
                )

    @property
    def buckets(self) -> tuple[int, ...]:
        """The batch sizes that models are compiled for and warmed up with: powers of two, and the largest batch."""
        return (*(2**n for n in range((self.max_batch - 1).bit_length())), self.max_batch)

    @property
    def decode(self) -> DecodeLimits:
        """The bounds on decoding; everything else is as in the indexer, so that equal bytes give equal pixels."""
        return DecodeLimits(max_bytes=self.max_image_bytes, max_pixels=self.max_pixels)

    @property
    def max_message_bytes(self) -> int:
        """Size of the largest request in bytes; leaves room for images a little too large to be refused by name."""
        return self.max_image_bytes + 4 * 2**20
