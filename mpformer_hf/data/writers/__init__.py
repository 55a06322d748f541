"""Predictions in the formats that official tools and annotation tools read: one module per format."""
