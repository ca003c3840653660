"""What a run leaves, and where: its folder, a sweep's folder, the row and the row as text. No torch here."""
