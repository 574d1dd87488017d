"""Exit statuses of the `arlow` command (docs/use.md has their meaning)."""

USAGE, DATA, RESOURCES, INTERRUPTED, ENDED = 2, 3, 6, 130, 143
