"""The endpoint: the model server's handler and what it needs."""
