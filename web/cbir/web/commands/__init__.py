"""Commands: what ``cbir web`` takes from the command line; follows the protocol of :mod:`cbir.client.cli.program`."""
