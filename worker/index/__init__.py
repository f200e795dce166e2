"""Index adapter: the only importer of FAISS; vector files, stage 1 and stage 2."""
