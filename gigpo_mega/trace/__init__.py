"""What a run sampled and what was made of it: groups from the journal, as text and as a page."""
