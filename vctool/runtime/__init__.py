"""Everything that runs a model directory without torch: graphs, encoding, indexing, search, evidence."""
