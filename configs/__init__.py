"""The configuration tree of repq; installed as the package ``repq_cli.configs``."""
