"""``repq report``: one HTML page of everything that runs found, which needs no other file."""
