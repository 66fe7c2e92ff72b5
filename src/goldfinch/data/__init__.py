"""Text in, batches of tokens out: tokenizers, reading documents, token shards, preparing them, batches."""
