"""The network, its physics and its training in torch and Lightning: no MLflow, no argument parsing."""
