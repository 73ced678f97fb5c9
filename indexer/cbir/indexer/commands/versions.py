"""``cbir info | versions | verify | rollback | gc``: inspect and maintain an index."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbir.client.cli.argument_types import whole
from cbir.core.errors import ArtifactError, CbirError
from cbir.indexer.commands.console import (
    USER_ERRORS,
    add_sign_argument,
    add_store_arguments,
    print_json,
    signing_key,
    stderr,
    vectors_of,
)

if TYPE_CHECKING:
    from cbir.core.artifacts import IndexStore, IndexVersion

__all__ = ["USER_ERRORS", "add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the five commands; ``args.command`` is the name of the one that was called."""
    command = parser.prog.split()[-1]
    parser.add_argument("index", type=Path, metavar="INDEX", help="folder of the index")
    if command in ("info", "verify", "rollback"):
        default = "the one before the live version" if command == "rollback" else "the live version"
        parser.add_argument("--version-name", default=None, metavar="VERSION", help=f"default: {default}")
    if command == "rollback":
        add_sign_argument(parser)
    if command in ("verify", "rollback", "gc"):
        add_store_arguments(parser)
    if command == "verify":
        parser.add_argument(
            "--trust-key", type=Path, action="append", default=[], metavar="FILE",
            help="public Ed25519 key (PEM) that must have signed the version; may be given several times",
        )  # fmt: skip
    if command == "gc":
        parser.add_argument(
            "--keep", type=whole(0), default=3, help="newest versions to keep, the live one in any case (3)"
        )
    parser.add_argument("--json", action="store_true", help="print a JSON document to stdout")


def run(args: argparse.Namespace) -> int:
    """Run the command that ``args.command`` names."""
    from cbir.core.artifacts import IndexStore

    store = IndexStore(args.index)
    document = _ACTIONS[args.command](store, args)
    if args.json:
        print_json(document)
    return 0


def _info(store: IndexStore, args: argparse.Namespace) -> dict[str, Any]:
    from cbir.core.search import kernel_facts

    version = store.open(args.version_name)
    manifest = version.manifest
    size = sum(int(facts["size"]) for facts in manifest.files.values())
    exact = all(facts["index"] == "exact" for facts in manifest.members.values())
    document = {
        "index": str(store.path),
        "version": version.name,
        "created": manifest.created,
        "images": manifest.images,
        "labels": manifest.labels,
        "skipped": len(manifest.skipped),
        "ensemble": manifest.ensemble.name,
        "crop": str(manifest.ensemble.crop),
        "members": {name: {**facts, "weight": version.vote.weights[name]} for name, facts in manifest.members.items()},
        "bytes": size,
        "store": manifest.store.get("kind", "local"),
        "libraries": dict(manifest.libraries),
        "search": kernel_facts(version) if exact and not manifest.store else None,
    }
    if not args.json:
        from rich.console import Console
        from rich.table import Table

        console = Console(highlight=False)
        console.print(
            f"{store.path}  version {version.name}, {manifest.created}\n"
            f"{manifest.images} images, {manifest.labels} labels, {len(manifest.skipped)} skipped, "
            f"{size / 2**20:.1f} MiB; ensemble {manifest.ensemble.name!r}, crop {document['crop']}",
            soft_wrap=True,
            markup=False,
        )
        table = Table("member", "weight", "dim", "metric", "fitted on", "index", "words", "fingerprint")
        for name, facts in manifest.members.items():
            table.add_row(
                name, f"{version.vote.weights[name]:g}", f"{facts['raw_dim']} → {facts['dim']}", facts["metric"],
                facts["fitted_on"], facts["index"], "yes" if facts.get("text") else "", facts["fingerprint"][:12],
            )  # fmt: skip
        console.print(table)
        if document["search"]:
            console.print(
                f"exact search on this CPU: {_search_words(document['search'])}", soft_wrap=True, markup=False
            )
    return document


def _search_words(facts: dict[str, Any]) -> str:
    if facts["state"] == "product":
        return "by product, as the index is small"
    if facts["state"] == "unknown":
        return f"{', '.join(facts['candidates'])} are measured when the index is loaded here for the first time"
    times = ", ".join(f"{name} {ms['one']:.3g} and {ms['batch']:.3g}" for name, ms in facts["milliseconds"].items())
    size = facts["batch_size"]
    return (
        f"one query by {facts['one']}, {size} by {facts['batch']} (measured, ms a query, alone and of {size}: {times})"
    )


def _versions(store: IndexStore, args: argparse.Namespace) -> dict[str, Any]:
    live = store.current()
    rows = [{"version": name, "live": name == live, **_summary(store, name)} for name in store.versions()]
    if not args.json:
        from rich.console import Console
        from rich.table import Table

        table = Table("live", "created", "images", "state")
        table.add_column("version", no_wrap=True, overflow="fold")
        for row in rows:
            table.add_row(
                "*" if row["live"] else "", str(row.get("created", "")), str(row.get("images", "")),
                str(row["state"]), row["version"],
            )  # fmt: skip
        Console(highlight=False).print(table)
    return {"index": str(store.path), "current": live, "versions": rows}


def _summary(store: IndexStore, name: str) -> dict[str, Any]:
    try:
        manifest = store.open(name).manifest
    except CbirError as error:
        return {"state": str(error)}
    return {"state": "complete", "created": manifest.created, "images": manifest.images}


def _verify(store: IndexStore, args: argparse.Namespace) -> dict[str, Any]:
    from cbir.core.artifacts import IndexStore, TrustedKeys, is_damaged

    trust = TrustedKeys.read(args.trust_key) if args.trust_key else None
    version: IndexVersion = IndexStore(store.path, trust).open(args.version_name, verify=True)
    if version.manifest.store:
        vectors_of(args, store.path).open(version)
    # Files of the cache are no part of a version, but the next ones are made of them.
    blocks = sorted((store.path / "cache").glob("*/*.safetensors"))
    for block in blocks:
        if is_damaged(block):
            raise ArtifactError(
                f"{block} does not match its checksum: the next `cbir index` embeds its images anew",
                reason="INDEX_CORRUPT",
            )
    count = len(version.manifest.files)
    signed = ", and it is signed by a trusted key" if trust else ""
    stderr().print(f"version {version.name} is sound: {count} files match their checksums{signed}", soft_wrap=True)
    return {
        "index": str(store.path), "version": version.name, "files": count, "cache_blocks": len(blocks), "sound": True,
    }  # fmt: skip


def _rollback(store: IndexStore, args: argparse.Namespace) -> dict[str, Any]:
    from cbir.core.artifacts import IndexStore

    store = IndexStore(store.path, key=signing_key(args), on_live=vectors_of(args, store.path).make_live)
    before = store.current() if args.version_name is None else None
    with store.lock():
        now = store.rollback(args.version_name)
    stderr().print(f"version {now} is live (before: {before}); reload the servers", soft_wrap=True)
    return {"index": str(store.path), "previous": before, "version": now}


def _gc(store: IndexStore, args: argparse.Namespace) -> dict[str, Any]:
    from cbir.core.artifacts import EmbeddingCache
    from cbir.indexer.build import class_name_digest

    store.current()
    with store.lock():
        vectors = vectors_of(args, store.path)
        store.open().manifest.check_store(vectors.kind, store.path)
        removed = store.collect(args.keep)
        vectors.retain(store.open(name) for name in store.versions())
        kept: set[bytes] = set()
        prints: set[str] = set()
        for name in store.versions():
            try:
                version = store.open(name)
                gallery = version.gallery
            except CbirError as error:
                stderr().print(f"left alone: {error}", soft_wrap=True, markup=False)
                continue
            kept |= {bytes.fromhex(gallery.sha256(row)) for row in range(len(gallery))}
            kept |= {class_name_digest(label) for label in gallery.labels}
            prints |= {str(facts["fingerprint"]) for facts in version.manifest.members.values()}
        forgotten = 0
        for folder in sorted(p for p in (store.path / "cache").glob("*") if p.is_dir()):
            # The name of a cache folder is a member's fingerprint, or ends in "-" and the fingerprint.
            used = folder.name.rpartition("-")[2] in prints or folder.name.startswith("facts-")
            forgotten += EmbeddingCache(folder.parent, folder.name).discard(kept if used else set())
    stderr().print(f"removed {len(removed)} versions and {forgotten} cached rows of images in none", soft_wrap=True)
    return {"index": str(store.path), "removed": removed, "forgotten": forgotten}


_ACTIONS = {"info": _info, "versions": _versions, "verify": _verify, "rollback": _rollback, "gc": _gc}
