"""Text as tokens on disk: tokenised once by several processes, then memory-mapped by every run."""
