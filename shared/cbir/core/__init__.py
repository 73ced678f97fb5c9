"""What indexer and server must agree on; it imports nothing else of this project."""
