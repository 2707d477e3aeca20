"""Episodes: prompts, engines, environments, and the collector that plays them."""
