"""Memory on every GPU and seconds of an iteration, estimated before a run starts. Imports no torch."""
