"""Small parts that the mixers are made of."""
