"""The weights of Ensemble-CBIR's built-in ensembles; nothing here is ever run."""
