"""What is stored of a text and what is kept rebuilt of it: key memory, latents, the levels of expansion."""
