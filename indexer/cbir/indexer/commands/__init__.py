"""The commands of the indexer; each module follows the protocol in :mod:`cbir.client.cli.program`."""
