"""Translates between the JSON of OpenAI's API and questions of the engine."""
