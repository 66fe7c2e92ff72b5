"""Several processes, on one machine or many, that serve one model behind one address: Ray Serve runs them."""
