"""Root mean square norms by one operator of torch, for models on a GPU: one kernel each, where
transformers launches about eight, in steps that last as long as their launches."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import rms_norm
from transformers import PreTrainedModel

from lmtp_replicate.engine.compiled_norms import Norms, agrees, epsilon_of, is_candidate


def fuse_norms(model: PreTrainedModel) -> Norms:
    """Have torch's operator compute what in `model` is called an RMSNorm, lies on its device in its
    dtype, and is found to compute the same. The modules stay where they are."""
    norms = Norms("none that can be fused")
    for norm in model.modules():
        if is_candidate(norm, model.dtype, model.device.type):
            forward = FusedNorm(norm)
            if agrees(norm, forward):
                norm.forward = forward
                norms.compiled.append(norm)
                norms.state, norms.reason = "fused", "those that agree with transformers' own"
    return norms


class FusedNorm:
    """Takes the place of `norm.forward`; leaves to that what it does not know."""

    def __init__(self, norm: nn.Module) -> None:
        self._plain = norm.forward
        self._weight: Tensor = norm.weight  # type: ignore[assignment]
        self._epsilon: float = epsilon_of(norm)

    def __call__(self, x: Tensor) -> Tensor:
        # Of several dtypes torch makes many kernels again, and rounds otherwise.
        if x.dtype != self._weight.dtype:
            plain: Tensor = self._plain(x)
            return plain
        return rms_norm(x, self._weight.shape, self._weight, self._epsilon)
