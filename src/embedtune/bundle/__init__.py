"""Bundles: a classifier as a folder that can be shared and loaded without running anything it brings.

::

    bundle.json       schema, labels, views, head, the hash of every other file, and what the run said of it
    head.skops        the fitted head
    calibrator.skops  what its probabilities are worth, where that was learned
    view-NAME.json    the n-grams a lexical view learned; its projection, if it has one, in view-NAME.safetensors
    adapters/NAME/    fine-tuned weights of a backbone, as `fine_tune` wrote them; fold0/, fold1/ … if cross-fitted
    backbones/NAME/   the backbone itself, where the bundle stands alone
    README.md         the model card, for people; nothing reads it

Without ``backbones/`` the models stay where they are: the bundle names each with the hash of its weights (a Hub
model with its commit) and refuses others.
"""

from embedtune.bundle.folder import BundleParts, copy_bundle, read_bundle, read_manifest, write_bundle
from embedtune.bundle.hub import find_bundle, push_bundle
from embedtune.bundle.views import NamedEncoder, Reading

__all__ = [
    "BundleParts",
    "NamedEncoder",
    "Reading",
    "copy_bundle",
    "find_bundle",
    "push_bundle",
    "read_bundle",
    "read_manifest",
    "write_bundle",
]
