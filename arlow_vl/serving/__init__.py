"""Inference with a trained model, for the commands, the OpenAI-compatible server and the demo page."""
