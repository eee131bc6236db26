"""Read YAML as options are written: every value is text, as on a command line.

YAML 1.1 reads `no` as false, 010 as 8, 12:30 as 750 and 1.10 as 1.1. Options become flags, which convert text by their own
types, so nothing but `null` needs a meaning here.
"""

from typing import Any

import yaml

MAX_KEYS = 1000  # of a mapping with all that it merges
TEXT = [f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")]
MEANINGFUL = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:merge"}


class TextLoader(yaml.SafeLoader):
    """A safe loader whose values are texts as they are written, None, lists and mappings; keys occur once."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in MEANINGFUL]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; raise ComposerError for a key that occurs twice, which YAML's standard forbids."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # no option's name
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} occurs twice", key.start_mark)
            seen.add(key.value)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Insert what a mapping merges (<<); raise ConstructorError where merges of merges multiply without end."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_KEYS:
            raise yaml.constructor.ConstructorError(None, None, "it has far too many keys", node.start_mark)


for _tag in TEXT:  # those that are named, as in !!int 3
    TextLoader.add_constructor(_tag, yaml.SafeLoader.construct_yaml_str)
