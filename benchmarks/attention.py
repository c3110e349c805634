"""What attention within documents costs on a CPU: `python -m benchmarks.attention` from the root of the project.

Forward and backward of a micro-batch of 2,048 tokens on one thread, causal and within documents of about 256 tokens, in
turn; the fastest of several repetitions, in CPU time, so that a busy machine disturbs it little.
"""

from __future__ import annotations

import dataclasses
import time

import torch
from torch import Tensor

from fmscale.config import ModelConfig
from fmscale.model.decoder import Decoder, init_weights
from fmscale.model.loss import token_loss_sum
from fmscale.model.mask import attention_mask

TOKENS, DOCUMENT, REPEAT = 2048, 256, 12
CAUSAL = ModelConfig(vocab_size=4096, d_model=192, n_layers=4, n_heads=3, n_kv_heads=1)  # configs/demo.yaml
DOCUMENTS = dataclasses.replace(CAUSAL, attention="document")


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        for T in (256, 512, 1024, 2048):
            tokens_BT = torch.randint(0, CAUSAL.vocab_size, (TOKENS // T, T), generator=generator)
            begins_BT = torch.rand(tokens_BT.shape, generator=generator) < 1 / DOCUMENT
            begins_BT[:, 0] = True
            index_BT = torch.arange(T).expand_as(tokens_BT)
            positions_BT = index_BT - torch.where(begins_BT, index_BT, 0).cummax(-1).values
            models = [Decoder(config) for config in (CAUSAL, DOCUMENTS)]
            for model in models:
                init_weights(model, CAUSAL, seed=0)
                model.to(dtype)
            times = [[step_s(model, tokens_BT, positions_BT) for model in models] for _ in range(REPEAT)]
            causal_s, document_s = map(min, zip(*times, strict=True))
            mask_s = min(mask_making_s(positions_BT) for _ in range(REPEAT))
            print(
                f"{str(dtype)[6:]:8} {TOKENS // T} x {T:4} tokens   causal {causal_s * 1e3:6.1f} ms   "
                f"document {document_s * 1e3:6.1f} ms   ratio {document_s / causal_s:.2f}   mask {mask_s * 1e3:.2f} ms"
            )


def step_s(model: Decoder, tokens_BT: Tensor, positions_BT: Tensor) -> float:
    """CPU seconds of one forward and backward."""
    started = time.process_time()
    token_loss_sum(model(tokens_BT, positions_BT), tokens_BT).backward()  # type: ignore[no-untyped-call]
    return time.process_time() - started


def mask_making_s(positions_BT: Tensor) -> float:
    started = time.process_time()
    attention_mask(positions_BT, "document")
    return time.process_time() - started


if __name__ == "__main__":
    main()
