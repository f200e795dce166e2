"""Evidence bundles as files: one archive, its manifest, its signature, and what checks them."""
