"""What only older scripts need: arguments, names and return values of dictionary-learning 0.1."""
