"""The engine: texts are read into contexts, which generate, score and chat."""
