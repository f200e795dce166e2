"""The routes of /v1: each file a kind of thing; thin doors to worker.accepting and models."""
