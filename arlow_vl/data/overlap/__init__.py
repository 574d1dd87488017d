"""Duplicates and near-duplicates of images within and across sources."""
