"""Every query RIS makes, as functions over a session. None of them commits."""
