"""A trained model in use: answers for the commands, the OpenAI-compatible server and the page."""
