"""Shards out of any source: `plan` says which samples go where, `members` what a sample is in a tar, `write` writes."""
