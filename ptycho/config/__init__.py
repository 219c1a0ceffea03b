"""Settings: every one of them is declared here, once."""
