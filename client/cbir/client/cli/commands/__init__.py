"""The commands of the client; each module follows the protocol in :mod:`cbir.client.cli.program`."""
