"""Find the likes of an image: ``python examples/sdk.py cat.jpg`` while ``cbir serve INDEX`` runs."""

import sys

from cbir.client import CbirClientError, Client

with Client("localhost:50051") as client:
    print(f"{client.index_info().images} images indexed")
    for path, answer in client.search_stream(((path, path) for path in sys.argv[1:]), limit=5, exclude_query=True):
        if isinstance(answer, CbirClientError):
            print(f"{path}: {answer}")
            continue
        for hit in answer.hits:
            print(f"{path}: {hit.score:.2f} {hit.label} {hit.image_id}")
