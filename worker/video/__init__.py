"""Video adapter: the only importer of PyAV."""
