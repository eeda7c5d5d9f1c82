"""Equal size: the feed-forward width at which a variant has its baseline's parameters, or FLOPs."""

from typing import Literal

from gatelab.errors import Unavailable
from gatelab.models.accounting import count_parameters, flops_per_token
from gatelab.models.config import ModelConfig


def match_model(
    model: ModelConfig, baseline: ModelConfig, match: Literal["parameters", "flops"], sequence_length: int
) -> ModelConfig | Unavailable:
    """Return `model` with the `ffn_size` that brings its parameters, or FLOPs per token, nearest to the baseline's.

    Both are linear in the width, so the nearest whole width is exact. Unavailable where even a model without a
    feed-forward layer is larger than the baseline.
    """

    def cost(width: int) -> int:
        sized = model.model_copy(update={"ffn_size": width})
        return count_parameters(sized).total if match == "parameters" else flops_per_token(sized, sequence_length)

    wanted = count_parameters(baseline).total if match == "parameters" else flops_per_token(baseline, sequence_length)
    width = round(1 + (wanted - cost(1)) / (cost(2) - cost(1)))
    if width < 1:
        return Unavailable(
            f"even without a feed-forward layer it has more {match} than its baseline ({cost(0):,} against {wanted:,})"
        )
    return model.model_copy(update={"ffn_size": width})
