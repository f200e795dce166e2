"""HTTP API of RIS. Of worker/ it imports only messages, errors and config."""
