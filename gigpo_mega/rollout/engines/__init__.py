"""Inference engines: the protocol, the SGLang client, and the server with what keeps it from outliving us."""
