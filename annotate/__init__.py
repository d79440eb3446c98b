"""Annotation: video -> geometry -> tracks -> scale -> bundle -> gates -> one Parquet row per clip."""
