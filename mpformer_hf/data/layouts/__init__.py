"""Datasets as their owners and annotation tools distribute them: one module per layout."""
