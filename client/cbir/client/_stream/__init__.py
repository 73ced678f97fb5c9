"""Search streams: what is asked over one call, by threads or by tasks."""
