"""Ask a server everything that a client usually wants, and print the answers as JSON: client.py TARGET IMAGE..."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import grpc

from cbir.client import CbirClientError, Client, ImageId

HITS = 5


def connect(target: str) -> Client:
    """TLS and a token, if the environment names them."""
    authority, token = os.environ.get("CBIR_TLS_CA"), os.environ.get("CBIR_TOKEN")
    return Client(
        target,
        timeout=30,
        credentials=grpc.ssl_channel_credentials(Path(authority).read_bytes()) if authority else None,
        metadata={"authorization": f"Bearer {token}"} if token else None,
    )


def search_one(client: Client, path: str) -> dict[str, Any]:
    answer = client.search(path, limit=HITS)
    hits = [{"image_id": hit.image_id, "label": hit.label, "score": hit.score} for hit in answer.hits]
    return {"query": Path(path).name, "hits": hits}


def search_many(client: Client, paths: list[str]) -> dict[str, Any]:
    """Send all images over one call. Answers come in the order in which they are ready."""
    answers = {}
    for name, answer in client.search_stream(((Path(path).name, path) for path in paths), limit=HITS):
        failed = isinstance(answer, CbirClientError)
        answers[name] = {"reason": answer.reason} if failed else {"hits": [hit.image_id for hit in answer.hits]}
    return answers


def provoke_error(client: Client) -> dict[str, str]:
    """Ask for the likes of an image that no gallery has."""
    try:
        client.search(ImageId("no-such-image"))
    except CbirClientError as error:
        return {"code": code_name(error), "reason": error.reason}
    return {"code": "OK", "reason": ""}


def pass_deadline(client: Client, path: str) -> dict[str, str]:
    """Give a search less time than any answer takes."""
    try:
        client.search(path, timeout=1e-6)
    except CbirClientError as error:
        return {"code": code_name(error)}
    return {"code": "OK"}


def code_name(error: CbirClientError) -> str:
    # The errors are named after gRPC's codes.
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(error).__name__).upper()


def main() -> int:
    if len(sys.argv) < 3:
        sys.stderr.write("usage: python client.py TARGET IMAGE...\n")
        return 2
    target, *paths = sys.argv[1:]
    with connect(target) as client:
        # Returns once the health check says so.
        client.wait_ready(30)
        document = {
            "health": "SERVING",
            "search": search_one(client, paths[0]),
            "stream": search_many(client, paths),
            "error": provoke_error(client),
            "deadline": pass_deadline(client, paths[0]),
        }
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
