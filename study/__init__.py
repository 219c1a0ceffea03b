"""The experiment about training: which clipping keeps a network from diverging."""
