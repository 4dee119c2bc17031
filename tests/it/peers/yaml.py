"""A YAML file as JSON: `yaml.py FILE`."""

import json
import sys

from ruamel.yaml import YAML

with open(sys.argv[1]) as file:
    json.dump(YAML(typ="safe").load(file), sys.stdout)
