"""HTTP at the edge: OpenAI's API on one engine that all requests share."""
