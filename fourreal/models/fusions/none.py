"""`none`: the two streams never meet; what sync is measured against."""

import dataclasses

from fourreal.models.fusions.two_streams import TwoStreams


@dataclasses.dataclass(frozen=True)
class NoSync(TwoStreams):
    """Two streams without a word between them."""

    kind = "none"
