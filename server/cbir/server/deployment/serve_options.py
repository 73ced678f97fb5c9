"""The options of ``cbir serve``, and the configuration made from them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cbir.client.cli.argument_types import number, positive, seconds, whole
from cbir.core.errors import ConfigurationError
from cbir.core.machine import Threads, share_out
from cbir.server.limits import GRACE, Limits

if TYPE_CHECKING:
    from cbir.server.access import Access, Listener
    from cbir.server.deployment.deployment import EngineConfig

__all__ = ["access", "add_arguments", "engine_config"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    defaults = Limits()
    parser.add_argument("path", metavar="INDEX", type=Path, help="folder that `cbir index` wrote")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default: %(default)s)")
    parser.add_argument("--port", type=whole(0, 65535), default=50051, help="0: any free one (default: %(default)s)")
    parser.add_argument(
        "--ensemble", metavar="NAME|FILE", help="where the weights are now (default: where the index was made)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: %(default)s")
    parser.add_argument("--runtime", choices=("auto", "openvino", "torch"), default="auto", help="default: %(default)s")
    parser.add_argument(
        "--precision", choices=("auto", "f32", "bf16", "f16", "int8"), default="auto",
        help="what models compute with; auto: half precision where it is fast and agrees; int8: faster on any CPU, "
        "calibrated with indexed images at the first start (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=positive, metavar="N",
        help="threads of a model's forward pass on a CPU (default: as many as its runtime thinks best)",
    )  # fmt: skip
    parser.add_argument(
        "--search-kernel", choices=("auto", "product", "scan", "bf16", "f16"), default="auto",
        help="what exact search on a CPU runs on; auto: what is fastest here, measured when the index is loaded; f16: "
        "for galleries whose rows stay float16 (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--index", dest="search", choices=("exact",), help="ignore approximate indexes")
    parser.add_argument(
        "--max-batch", type=positive, default=defaults.max_batch, metavar="N", help="default: %(default)s queries"
    )
    parser.add_argument(
        "--max-delay", type=_milliseconds, default=defaults.max_delay, metavar="MS",
        help="milliseconds that an idle engine waits for a batch to fill (default: 0, it starts at once)",
    )  # fmt: skip
    parser.add_argument(
        "--queue", type=positive, default=defaults.queue, metavar="N",
        help="query images that may wait; more are refused (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--cache-entries", type=whole(0), default=defaults.cache_entries, metavar="N",
        help="answers that are kept for when the same is asked again; 0: none (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-image-bytes", type=positive, default=defaults.max_image_bytes, metavar="N",
        help="largest query image (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--no-text", action="store_true", help="load no text towers: saves their memory, takes no queries in words"
    )
    parser.add_argument(
        "--verify", action=argparse.BooleanOptionalAction, default=True,
        help="compare every file with its checksum before anything is made of it (about a second for a gigabyte)",
    )  # fmt: skip
    parser.add_argument(
        "--trust-key", type=Path, action="append", default=[], metavar="FILE",
        help="public Ed25519 key (PEM) that must have signed the index; may be given several times",
    )  # fmt: skip
    serving = parser.add_mutually_exclusive_group()
    serving.add_argument("--version-name", metavar="V", help="the version to serve (default: the live one)")
    serving.add_argument(
        "--watch", type=seconds(0.1), nargs="?", const=5.0, default=0.0, metavar="S",
        help="look every S seconds (5) whether another version has gone live, and load it; SIGHUP does so at once",
    )  # fmt: skip
    parser.add_argument(
        "--grace", type=seconds(), default=GRACE, metavar="S",
        help="seconds that calls under way get when the server is stopped (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--metrics-port",
        type=whole(0, 65535),
        default=0,
        metavar="PORT",
        help="for Prometheus (default: no metrics)",
    )
    parser.add_argument("--metrics-host", metavar="HOST", help="address for the metrics (default: the same as --host)")
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="of the log on stderr (default: %(default)s)"
    )
    parser.add_argument(
        "--slow-query-ms",
        type=_milliseconds,
        metavar="MS",
        help="log queries that take longer, with the time of each stage",
    )
    parser.add_argument(
        "--traces", action="store_true",
        help="send a trace of every query by OpenTelemetry, as its environment variables say (extra `otel`)",
    )  # fmt: skip
    parser.add_argument(
        "--milvus-uri", metavar="URI",
        help="where Milvus has the vectors, for indexes made with --store milvus: http://host:19530, or a path ending "
        "in .db for Milvus Lite",
    )  # fmt: skip
    parser.add_argument("--milvus-token-file", type=Path, metavar="FILE", help="file that holds user:password or a key")
    _add_access_arguments(parser)
    parser.add_argument("--json", action="store_true", help="once ready, one line with address, port and version")


def _add_access_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who is let in", "see SECURITY.md and docs/threat-model.md")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain (PEM); read again on change")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    group.add_argument(
        "--tls-client-ca", type=Path, metavar="FILE", help="ask clients for certificates of this authority (PEM)"
    )
    group.add_argument(
        "--tokens", type=Path, metavar="FILE", help="bearer tokens and their scopes (TOML); read again on change"
    )
    group.add_argument(
        "--admin", type=_listener, metavar="ADDRESS",
        help="where reloads are taken: host:port or unix:PATH (default: 127.0.0.1, the port after --port)",
    )  # fmt: skip
    group.add_argument(
        "--expose", action="append", choices=("health", "reflection", "nothing"), default=None,
        help="what the public port tells without a token (default: health); may be given several times",
    )  # fmt: skip
    group.add_argument("--expose-paths", action="store_true", help="answers tell where images lie on this machine")
    group.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine without TLS or tokens: anybody is let in"
    )


def access(args: argparse.Namespace) -> Access:
    """Who is let in, as the command's arguments describe it.

    Raises:
        ConfigurationError: ``TLS_UNUSABLE``: half of what TLS takes.
    """
    from cbir.server.access import Access, ServerTls

    if (args.tls_cert is None) != (args.tls_key is None) or (args.tls_client_ca and not args.tls_cert):
        raise ConfigurationError(
            "TLS takes a certificate and its key: give both --tls-cert and --tls-key", reason="TLS_UNUSABLE"
        )
    tls = ServerTls(args.tls_cert, args.tls_key, args.tls_client_ca) if args.tls_cert else None
    expose = frozenset({"health"} if args.expose is None else args.expose) - {"nothing"}
    return Access(tls, args.tokens, args.admin, expose, args.insecure)


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The configuration of the engine that the command's arguments describe."""
    # Imported here, so that --help and wrong usage do not wait for torch.
    from cbir.core.artifacts import TrustedKeys
    from cbir.core.milvus import vector_store
    from cbir.server.deployment.deployment import EngineConfig

    # Images are prepared on as many threads as there are cores, so each of them computes alone.
    share_out(Threads(inference=args.threads or 0, images=1))
    limits = Limits(
        max_batch=args.max_batch, max_delay=args.max_delay, queue=args.queue, cache_entries=args.cache_entries,
        max_image_bytes=args.max_image_bytes,
    )  # fmt: skip
    return EngineConfig(
        args.path, args.version_name, args.ensemble, args.device, args.runtime, args.search, args.verify, limits,
        not args.no_text, args.precision, TrustedKeys.read(args.trust_key) if args.trust_key else None,
        args.expose_paths, vector_store(args.path, args.milvus_uri, args.milvus_token_file),
        args.search_kernel,
    )  # fmt: skip


def _listener(text: str) -> Listener:
    from cbir.server.access import Listener

    try:
        return Listener.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _milliseconds(text: str) -> float:
    """Milliseconds, returned as seconds."""
    return number(0, 10_000, what="a number of milliseconds")(text) / 1000
