"""Tables as Markdown, LaTeX, CSV and JSON."""
