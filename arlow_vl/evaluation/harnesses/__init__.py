"""Arlow as a model of evaluation harnesses: lm-eval, lmms-eval and VLMEvalKit (docs/harnesses.md).

Each module imports its harness, which is an optional dependency, and translates requests; what is asked of the model is
asked through `asking`, so the answers are those of `arlow evaluate` and of the server.
"""
