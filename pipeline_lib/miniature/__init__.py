"""How the miniature study's small models were made, and their weights."""
