"""Drawn images as files: an archive, a folder by class, Parquet, a grid."""
