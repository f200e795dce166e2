"""The HTTP API. It accepts and shows; torch, FAISS and PyAV stay in the workers."""
