"""What is stored of a text (key cache, latents), and what is kept expanded (key-value cache) within a budget."""
