"""The HTTP API: takes jobs, answers what became of them."""
