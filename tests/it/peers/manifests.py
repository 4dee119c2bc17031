"""Manifests on stdin as a list of JSON, each with what Kubernetes in these versions has against it (null is nothing):
`manifests.py VERSION...`. A field that it does not know is an error, too. What is not Kubernetes' own is not looked at."""

import json
import sys

# Beside this file is a yaml.py, which is not the one that is meant.
del sys.path[0]

import kubernetes_validate
import yaml


def against(manifest, versions):
    if manifest["apiVersion"].startswith("monitoring.coreos.com/"):
        return None
    for version in versions:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return f"{version}: {error.path}: {error.message}"
    return None


manifests = [manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest]
json.dump([[manifest, against(manifest, sys.argv[1:])] for manifest in manifests], sys.stdout)
