"""GoldFinch in Hugging Face's libraries: `pip install 'goldfinch[hf]'`."""
