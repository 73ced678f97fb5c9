"""The commands of the server; each module follows the protocol in :mod:`cbir.client.cli.program`."""
