"""Adapters for evaluation harnesses: lm-eval, lmms-eval and VLMEvalKit (docs/harnesses.md).

Each module imports its harness, an optional dependency, and translates its requests for `asking`, so that the answers
are those of `arlow evaluate` and of the server.
"""
