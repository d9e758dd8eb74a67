"""What type checkers refuse: each line with an error ends with its code, and no other line has one."""

import torch

from torch_clipped import ClippedAdam, ClippedAdamW, ClippedSGD, ClippingType, GradientClipper, clip_gradients_, clip_optimizer


def wrong(params: list[torch.nn.Parameter]) -> None:
    ClippedSGD(params, lr="x")  # error: arg-type
    ClippedSGD(params, momentun=0.9)  # error: call-arg
    ClippedSGD(params, clipping_typ="norm")  # error: call-arg
    ClippedSGD(params, max_norm=1.0)  # error: call-arg
    ClippedSGD(params, clipping_type=1)  # error: arg-type
    ClippedSGD(params, clipping_level="1")  # error: arg-type
    ClippedSGD(params, 0.1, 0.9, 0, 0, False, True)  # error: call-arg
    ClippedSGD(params, betas=(0.9, 0.99))  # error: call-arg
    ClippedSGD()  # error: call-arg
    ClippedAdam(params, betas=0.9)  # error: arg-type
    ClippedAdam(params, momentum=0.9)  # error: call-arg
    ClippedAdam(params, clipping_window=2.5)  # error: arg-type
    ClippedAdamW(params, decoupled_weight_decay=True)  # error: call-arg
    ClippedAdamW(params, nonfinite=True)  # error: arg-type
    ClippedAdamW(params, clipping_cap="1")  # error: arg-type
    ClippedAdamW(params, clipping_warmup=2.5)  # error: arg-type
    clip_optimizer(params)  # error: arg-type
    clip_optimizer(torch.optim.SGD(params), max_norm=1.0)  # error: call-arg
    GradientClipper(params, "norm", 1.0, "skip")  # error: call-arg
    GradientClipper(params, clipping_beta="0.85")  # error: arg-type
    clip_gradients_(params, max_norm=1.0)  # error: call-arg
    clip_gradients_(params, norm_type="two")  # error: arg-type
    name: ClippingType = "nrom"  # error: assignment
    ClippedSGD(params, clipping_type=name)
