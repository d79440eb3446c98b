"""Cameras, the Parquet contract, exports, metrics and reports."""
