"""Access tokens of one OpenID Connect issuer; the only importer of joserfc."""
