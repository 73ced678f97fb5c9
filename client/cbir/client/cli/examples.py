"""Examples that end the help of commands which have none of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["EXAMPLES", "FIRST_STEPS"]

Examples = Sequence[tuple[str, str]]

#: Those of the program itself.
FIRST_STEPS: Examples = (
    ("cbir index photos --out photos-index", "make an index of a folder of images"),
    ("cbir serve photos-index", "answer queries, on this machine"),
    ("cbir search cat.jpg --save hits.png", "ask, in another terminal"),
)

#: By command.
EXAMPLES: Mapping[str, Examples] = {
    "index": (
        ("cbir index photos --out photos-index", "a folder; sub-folders are labels; again: what has changed"),
        ("cbir index shop.csv more.zip --out shop-index", "a table with paths or URLs, and an archive"),
        ("cbir index photos --out photos-index --ensemble mine.toml", "with models of your own"),
    ),
    "eval": (
        ("cbir eval photos-index --leave-one-out", "each labelled image against all others"),
        ("cbir eval photos-index --queries tests/ --report report", "labelled queries, and a page that tells why"),
    ),
    "tune": (("cbir tune photos-index", "choose weights by the gallery's own labels, and publish them if they help"),),
    "train": (
        ("cbir train photos --out training", "fine-tune a member of the default ensemble on the folder's labels"),
        ("cbir train photos --out training --objective glrt --ensemble compact --member resnetv2", "choose yourself"),
    ),
    "info": (("cbir info photos-index --json", "what is in it, for a program"),),
    "versions": (("cbir versions photos-index", "which there are, and which is live"),),
    "verify": (("cbir verify photos-index", "before a copy is served elsewhere"),),
    "rollback": (("cbir rollback photos-index", "the version before the live one becomes live"),),
    "gc": (("cbir gc photos-index --keep 2", "keep the two newest versions"),),
    "dedup": (
        ("cbir dedup photos-index --save pairs.png", "look at them first"),
        ("cbir dedup photos-index --list-extra > extra.txt", "the superfluous files, one a line"),
    ),
    "serve": (
        ("cbir serve photos-index", "on this machine, port 50051"),
        ("cbir serve photos-index --watch --metrics-port 9100", "new versions go live by themselves; for Prometheus"),
        ("cbir serve photos-index --host 0.0.0.0 --tls-cert s.crt --tls-key s.key --tokens tokens.toml", "for others"),
    ),
    "bench": (("cbir bench serve photos-index --quick", "a first look at latency and throughput"),),
    "web": (
        ("cbir web", "in front of the server on this machine"),
        ("cbir web --target gallery.example:50051 --tls", "in front of one elsewhere"),
    ),
    "demo": (("cbir demo", "on drawn samples"), ("cbir demo photos", "on your own images")),
}
