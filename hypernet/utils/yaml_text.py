"""Read YAML with every value as text, as on a command line.

YAML 1.1 reads `no` as false, 010 as 8, 12:30 as 750 and 1.10 as 1.1. Options become flags, which convert text by their
own types, so only `null` keeps its meaning here.
"""

from typing import Any

import yaml

MAX_KEYS = 1000  # of a mapping, merged ones included
TEXT = [f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")]
NULL = "tag:yaml.org,2002:null"
MEANINGFUL = {NULL, "tag:yaml.org,2002:merge"}


class OptionsError(yaml.MarkedYAMLError):
    """What YAML may allow, but no file of options means."""


class TextLoader(yaml.SafeLoader):
    """A safe loader that returns None, lists, mappings and literal text; refuses duplicate keys and empty list items."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in MEANINGFUL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping.

        Raises:
            OptionsError: for a key that occurs twice, which YAML's standard forbids, or a list with an empty item (a
                dash without a value; null is a value).
        """
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # not an option's name
            if key.value in seen:
                raise OptionsError(None, None, f"{key.value!r} occurs twice", key.start_mark)
            seen.add(key.value)
            for number, item in enumerate(value.value if isinstance(value, yaml.SequenceNode) else [], start=1):
                if item.tag == NULL and not item.value:
                    problem = f"{key.value}, item {number}: it is empty; write a value, or leave the item out"
                    raise OptionsError(None, None, problem, item.start_mark)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Insert merged mappings (<<); raise OptionsError if merges of merges give too many keys."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_KEYS:
            raise OptionsError(None, None, "it has far too many keys", node.start_mark)


for _tag in TEXT:  # explicit tags, as in !!int 3
    TextLoader.add_constructor(_tag, yaml.SafeLoader.construct_yaml_str)
