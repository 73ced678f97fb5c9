"""The report of ``cbir eval --report``: a self-contained page, its charts as PNG, its figures as JSON."""
