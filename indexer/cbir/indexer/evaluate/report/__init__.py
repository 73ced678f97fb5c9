"""The report of ``cbir eval --report``: a self-contained web page, its charts as PNG and its figures as JSON."""
