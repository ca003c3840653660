"""YAML that anybody may have written: as data, and never as more of it than one can hold."""

from __future__ import annotations

from typing import Any

import yaml

from repq_cli.files import require_modest

LARGEST = 1 << 22  # bytes of a configuration
MOST_SIGNS = 1000  # of nested lists, far more than any has
MOST_LISTS = 10_000  # after aliases are resolved
MOST_MERGED = 100  # aliases that one ``<<`` may name, and ten thousand keys that come of them


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader, for which merge keys (``<<``) cannot stand for more than it can hold."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """As PyYAML's. Raises ValueError where it would be too much."""
        for key, value in node.value:
            if key.tag.endswith(":merge") and isinstance(value, yaml.SequenceNode) and len(value.value) > MOST_MERGED:
                raise ValueError("too many merge keys for a configuration")
        super().flatten_mapping(node)
        if len(node.value) > MOST_LISTS:
            raise ValueError("too many merged keys for a configuration")


def parsed_yaml(content: bytes) -> Any:
    r"""What a configuration's bytes stand for.

    Raises ValueError or yaml.YAMLError for what is no YAML, what holds itself, what a few lines multiply beyond
    measure, and for thousands of levels, where PyYAML in C overflows its stack.

    >>> parsed_yaml(b"a: &a [1, 2]\nb: *a")
    {'a': [1, 2], 'b': [1, 2]}
    """
    if any(content.count(sign) > MOST_SIGNS for sign in (b"[", b"{", b"- ", b"? ")):
        raise ValueError("nested too deeply for a configuration")
    tree = yaml.load(content, Loader=_Loader)  # noqa: S506 - a safe loader
    require_modest([tree], MOST_LISTS)
    return tree
