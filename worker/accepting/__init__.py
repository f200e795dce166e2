"""Accepting work: what is checked and recorded before a worker runs it. Light and pure enough for
the API: nothing here imports torch, FAISS or PyAV, not even through others."""
