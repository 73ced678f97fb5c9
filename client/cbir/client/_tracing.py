"""A call goes on with the trace of whoever makes it, where the program uses OpenTelemetry."""

from __future__ import annotations

import sys

__all__ = ["trace_context"]


def trace_context() -> tuple[tuple[str, str], ...]:
    """Metadata that names the span that is current here (W3C Trace Context); nothing where there is none.

    The client neither needs OpenTelemetry nor loads it: a program that has a span has loaded it.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((name.lower(), value) for name, value in carrier.items())
